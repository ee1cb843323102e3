"""Table, JSON and plot of a reproduced result: mean and standard deviation over seeds, beside every seed's figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from confide_simulations.benchmarks.meta import meta
from confide_simulations.results.recipe import Recipe, Run
from confide_simulations.results.running import Outcome, lowest
from confide_simulations.simulate.results import write_json

Row = dict[str, Any]


def summary(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[Row]:
    """One row a run that has outcomes, in the recipe's order. `sd` is null for one seed."""
    rows = []
    for run in recipe.run:
        found = [outcome for outcome in outcomes if outcome.run == run.name]
        if not found:
            continue
        rows.append(
            {
                "run": run.name,
                "group": run.group,
                "nodes": run.nodes,
                "partition": run.partition,
                "set": dict(run.at(lowest(found[0].tuning)).set if found[0].tuning else run.set),
                "tuning": [list(pair) for pair in found[0].tuning],
                "seeds": [outcome.seed for outcome in found],
                "upload_bytes": statistics.fmean(outcome.upload_bytes for outcome in found),
                "seconds": round(statistics.fmean(outcome.seconds for outcome in found), 1),
                "final": {name: _spread([o.final[name] for o in found]) for name in _common(found)},
                "curve": _curve(found),
            }
        )
    return rows


def _common(found: Sequence[Outcome]) -> list[str]:
    return sorted(set.intersection(*(set(outcome.final) for outcome in found)))


def _curve(found: Sequence[Outcome]) -> list[tuple[int, float]]:
    """(round, mean held-out loss)."""
    return [
        (int(points[0][0]), round(statistics.fmean(value for _, value in points), 5))
        for points in zip(*(outcome.curve for outcome in found), strict=True)
    ]


def _spread(values: Sequence[float]) -> Row:
    return {
        "mean": round(statistics.fmean(values), 5),
        "sd": round(statistics.stdev(values), 5) if len(values) > 1 else None,
        "values": [round(value, 5) for value in values],
    }


def write(recipe: Recipe, outcomes: Sequence[Outcome], folder: Path) -> list[Row]:
    """results.json and plot.png; returns the rows."""
    rows = summary(recipe, outcomes)
    config = {
        "specification": recipe.specification,
        "material": recipe.material.model_dump(mode="json"),
        "key": recipe.key,
        "held_out": recipe.held_out,
        "evaluation": recipe.evaluation,
        "tuning_seed": recipe.tuning_seed,
    }
    missing = [run.name for run in recipe.run if run.name not in {row["run"] for row in rows}]
    document = {
        "title": recipe.title,
        "meta": meta(seed=min(recipe.seeds), config=config),
        "not_run": missing,
        "runs": rows,
    }
    write_json(folder / "results.json", document)
    if rows:
        plot(recipe, rows, folder / "plot.png")
    return rows


def table(recipe: Recipe, rows: Sequence[Row]) -> Table:
    """For the terminal: the plotted metric of every run."""
    made = Table(title=recipe.title)
    for name in ("run", "seeds", recipe.plot.label, "sd", "sent", "seconds"):
        made.add_column(name, justify="left" if name == "run" else "right")
    for row in rows:
        value = row["final"][recipe.plot.metric]
        deviation = "-" if value["sd"] is None else f"{value['sd']:.4f}"
        figures = (f"{value['mean']:.4f}", deviation, f"{row['upload_bytes'] / 1e6:.2f} MB", f"{row['seconds']:.0f}")
        made.add_row(row["run"], str(len(row["seeds"])), *figures)
    return made


def plot(recipe: Recipe, rows: Sequence[Row], path: Path) -> None:
    """As the recipe says; error bars are one standard deviation, where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.0, 4.6), dpi=110)
    runs = {run.name: run for run in recipe.run}
    (_bars if recipe.plot.kind == "bars" else _scatter)(axes, recipe, rows, runs)
    axes.set_title(recipe.title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _bars(axes: Any, recipe: Recipe, rows: Sequence[Row], runs: dict[str, Run]) -> None:
    """Groups side by side. The axis does not begin at zero: differences are small, and it says so."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    place, ticks, labels = 0.0, [], []
    for number, group in enumerate(groups):
        members = [row for row in rows if row["group"] == group]
        values = [row["final"][recipe.plot.metric] for row in members]
        places = [place + index for index in range(len(members))]
        means, deviations = [v["mean"] for v in values], [v["sd"] or 0.0 for v in values]
        axes.errorbar(places, means, yerr=deviations, fmt="o", ms=6, capsize=4, lw=1.6, color=f"C{number}", label=group)
        for at, value in zip(places, values, strict=True):
            axes.plot([at] * len(value["values"]), value["values"], ".", ms=4, color="0.45", zorder=1)
        ticks += places
        labels += [runs[row["run"]].label or row["run"] for row in members]
        place += len(members) + 0.6
    axes.set_xticks(ticks, labels, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel(recipe.plot.label)
    if len(groups) > 1:
        axes.legend(fontsize=8, frameon=False)


def _scatter(axes: Any, recipe: Recipe, rows: Sequence[Row], runs: dict[str, Run]) -> None:
    """Metric against bytes that a node sends, both as measured."""
    for number, group in enumerate(dict.fromkeys(row["group"] for row in rows)):
        members = [row for row in rows if row["group"] == group]
        points = []
        for row in members:
            run, value = runs[row["run"]], row["final"][recipe.plot.metric]
            sent = row["upload_bytes"] / (run.synchronous_nodes or run.nodes)
            points.append((sent, value["mean"], value["sd"] or 0.0))
            axes.annotate(run.label, (sent, value["mean"]), fontsize=7, xytext=(4, 3), textcoords="offset points")
        sent, means, deviations = zip(*sorted(points), strict=True)
        style = "o" if any(runs[row["run"]].synchronous_nodes for row in members) else "o-"
        axes.errorbar(sent, means, yerr=deviations, fmt=style, ms=4, lw=1.0, capsize=3, color=f"C{number}", label=group)
    axes.set_xscale("log")
    axes.set_xlabel("bytes that one node sends in the whole run")
    axes.set_ylabel(recipe.plot.label)
    axes.legend(fontsize=8, frameon=False)
