"""Several specifications over several seeds: one table of means and standard deviations, and one plot.

Each run has its own folder, <output>/<specification>/seed-<seed>, with everything that `confide simulate` leaves; the
same comparison again goes on where it was. A seed draws held-out records, partition, first adapter and batches, so that
run k of every specification stands before the same records and the same nodes.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confide.errors import SpecificationError
from rich.table import Table

from confide_simulations.simulate import results, study
from confide_simulations.simulate.engine import Engine
from confide_simulations.simulate.simulation import Watch

Row = dict[str, Any]
Watching = Callable[["Planned"], AbstractContextManager[Watch]]
"""Entered around each run; gives the run's Watch."""
_HIDDEN = frozenset({"round", "contributors", "dropped", "attempts", "seconds", "upload_bytes"})


@dataclass(frozen=True)
class Planned:
    """One run, checked."""

    name: str
    asked: study.Study
    prepared: study.Prepared


@dataclass(frozen=True)
class Entry:
    """One specification's runs."""

    name: str
    reports: tuple[results.Report, ...]

    def final(self) -> dict[str, list[float]]:
        """Of each metric its value after the last round, one for each seed."""
        found: dict[str, list[float]] = {}
        for report in self.reports:
            for name, value in report.rows[-1].items():
                if name not in _HIDDEN:
                    found.setdefault(name, []).append(float(value))
        found["upload_bytes"] = [float(sum(row.get("upload_bytes", 0) for row in r.rows)) for r in self.reports]
        found["seconds"] = [sum(row.get("seconds", 0.0) for row in r.rows) for r in self.reports]
        return found


def names_of(specifications: Sequence[Path]) -> list[str]:
    """File names without endings, which name the runs. Raises SpecificationError when two are alike."""
    names = [path.stem for path in specifications]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecificationError(
            f"two specification files are called {twice[0]!r}; rename one, the table goes by names"
        )
    return names


def prepare(template: study.Study, specifications: Sequence[Path], seeds: int) -> list[Planned]:
    """All runs, specifications in the given order and seeds from the template's (else 0) on. Raises ConfideError."""
    if seeds < 1:
        raise SpecificationError(f"--seeds is {seeds}; at least 1 is needed")
    first = template.seed or 0
    planned = []
    for name, path in zip(names_of(specifications), specifications, strict=True):
        for seed in range(first, first + seeds):
            folder = template.output / name / f"seed-{seed}"
            one = replace(template, specification=path, seed=seed, output=folder, models=template.output / "models")
            planned.append(Planned(name, one, study.prepare(one)))
    return planned


def run(runs: Sequence[Planned], engine: Engine, watching: Watching, output: Path) -> list[Entry]:
    """Run everything, one after the other, and write the comparison."""
    reports: dict[str, list[results.Report]] = {}
    for one in runs:
        with watching(one) as watch:
            reports.setdefault(one.name, []).append(study.run(one.asked, one.prepared, engine, watch))
    entries = [Entry(name, tuple(made)) for name, made in reports.items()]
    write(output, entries)
    return entries


def summary(entries: Sequence[Entry]) -> list[Row]:
    """One row a specification: mean and standard deviation (n - 1; null for one seed) of every final metric."""
    rows = []
    for entry in entries:
        row: Row = {"name": entry.name, "seeds": len(entry.reports)}
        for metric, values in entry.final().items():
            row[f"{metric}_mean"] = statistics.fmean(values)
            row[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def write(output: Path, entries: Sequence[Entry]) -> None:
    """compare.json, compare.parquet (every round of every run) and compare.png."""
    results.write_json(
        output / "compare.json",
        {
            "summary": summary(entries),
            "runs": [{"name": entry.name, **report.to_json()} for entry in entries for report in entry.reports],
        },
    )
    rows = [
        {"name": entry.name, "seed": report.specification.seed, **row}
        for entry in entries
        for report in entry.reports
        for row in report.rows
    ]
    results.write_rows(output / "compare.parquet", rows)
    plot(entries, output / "compare.png")


def table(entries: Sequence[Entry]) -> Table:
    """For the terminal."""
    made = Table(title="after the last round: mean ± standard deviation over seeds")
    rows = summary(entries)
    metrics = list(dict.fromkeys(name.removesuffix("_mean") for row in rows for name in row if name.endswith("_mean")))
    made.add_column("")
    for row in rows:
        made.add_column(f"{row['name']} ({row['seeds']} seeds)", justify="right")
    for metric in metrics:
        made.add_row(metric, *[_shown(row, metric) for row in rows])
    return made


def _shown(row: Row, metric: str) -> str:
    if f"{metric}_mean" not in row:
        return "-"
    mean, deviation = row[f"{metric}_mean"], row[f"{metric}_std"]
    digits = ".0f" if metric == "upload_bytes" else ".1f" if metric == "seconds" else ".4f"
    return f"{mean:{digits}}" + ("" if deviation is None else f" ± {deviation:{digits}}")


def plot(entries: Sequence[Entry], path: Path) -> None:
    """Held-out loss by round (training loss where nothing was held out): mean, and one standard deviation shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    every = [row for entry in entries for report in entry.reports for row in report.rows]
    column = "held_out_eval_loss" if any("held_out_eval_loss" in row for row in every) else "train_loss"
    figure, axes = pyplot.subplots(figsize=(7.0, 4.2), dpi=120)
    for entry in entries:
        curves = [{row["round"]: row[column] for row in r.rows if column in row} for r in entry.reports]
        rounds = sorted(set.intersection(*map(set, curves)))
        if not rounds:
            continue
        values = np.array([[curve[number] for number in rounds] for curve in curves])
        mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1 if len(curves) > 1 else 0)
        (line,) = axes.plot(rounds, mean, "o-", ms=3, lw=1.6, label=f"{entry.name} ({len(curves)} seeds)")
        axes.fill_between(rounds, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0)
    axes.set_xlabel("round")
    axes.set_ylabel("loss on held-out records" if column.startswith("held") else "training loss")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
