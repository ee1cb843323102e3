"""What a recipe's run is judged by: each stage's metrics before and after, on records that nobody trained on.

`recipe.json` holds them with date, hardware, versions and every specification; `recipe.png` shows the first metric of
each stage by round. A trained stage is scored on held-out records; a stage that trains nothing reports the mean over
the nodes' own evaluation records, out of the (sealed) sum.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from confide_simulations.benchmarks.meta import meta
from confide_simulations.recipes.running import Options, StageResult
from confide_simulations.simulate.results import write_json

HELD_OUT, NODES = "held-out records", "nodes' own evaluation records"
_NAMES = {
    "eval_loss": "loss (nats)",
    "perplexity": "perplexity",
    "eval_bits_per_byte": "bits per byte",
    "eval_exact_match": "exact match",
    "eval_accuracy": "accuracy",
    "eval_macro_f1": "macro-F1",
    "eval_ndcg_at_10": "nDCG@10",
    "eval_recall_at_10": "recall@10",
}
_FIRST = {
    "classification": "eval_macro_f1",
    "contrastive": "eval_ndcg_at_10",
    "in_context": "eval_macro_f1",
}
"""The metric that is drawn; a language model's is its loss."""


def scores_on(result: StageResult) -> str:
    """On which records a stage is scored."""
    return HELD_OUT if result.stage.held_out else NODES


def curve(result: StageResult, metric: str) -> list[tuple[int, float]]:
    """(round, value), round 0 being the first model; of a stage that trains nothing, the one value."""
    column = f"held_out_{metric}" if result.stage.held_out else metric
    return [(int(row["round"]), float(row[column])) for row in result.report.rows if column in row]


def metrics_of(result: StageResult) -> dict[str, dict[str, float]]:
    """By metric: before (none where nothing is trained) and after."""
    found: dict[str, dict[str, float]] = {}
    for metric in _NAMES:
        points = curve(result, metric)
        if points:
            before = {"before": points[0][1]} if result.stage.held_out else {}
            found[metric] = {**before, "after": points[-1][1]}
    return found


def to_json(options: Options, results: Sequence[StageResult]) -> dict[str, Any]:
    """recipe.json."""
    stages: dict[str, Any] = {}
    for result in results:
        stages[result.stage.name] = {
            "scored_on": scores_on(result),
            "records": result.report.held_out or None,
            "metrics": metrics_of(result),
            "seconds": round(result.report.seconds, 1),
            "nodes": dict(result.report.nodes),
            "model_sha256": result.report.manifest["model_sha256"],
        }
    config: Mapping[str, Any] = {
        "recipe": options.recipe.name,
        "data": "packaged" if options.data is None else "own file",
        "sealing": options.sealing,
        "specifications": {r.stage.name: r.specification.model_dump(mode="json") for r in results},
    }
    return {"meta": meta(seed=results[0].specification.seed, config=config), "stages": stages}


def write(options: Options, results: Sequence[StageResult]) -> None:
    """recipe.json and recipe.png into the output folder."""
    write_json(options.output / "recipe.json", to_json(options, results))
    plot(options, results, options.output / "recipe.png")


def table(options: Options, results: Sequence[StageResult]) -> Table:
    """For the terminal."""
    sealed = "[green]sealed[/green]" if options.sealing == "sealed" else "[bold red]NONE[/bold red]"
    made = Table(title=f"{options.recipe.name}: {options.nodes} nodes, sealing: {sealed}")
    for name in ("stage", "metric", "before", "after", "on"):
        made.add_column(name, justify="right" if name in ("before", "after") else "left")
    for result in results:
        count = f"{result.report.held_out} {HELD_OUT}" if result.stage.held_out else NODES
        for metric, values in metrics_of(result).items():
            before = f"{values['before']:.4f}" if "before" in values else "-"
            made.add_row(result.stage.name, _NAMES[metric], before, f"{values['after']:.4f}", count)
        made.add_section()
    return made


def plot(options: Options, results: Sequence[StageResult], path: Path) -> None:
    """One panel a stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 3.6), dpi=120, squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        metric = _FIRST.get(result.specification.method.name, "eval_loss")
        points = curve(result, metric)
        if points:
            axis.plot(*zip(*points, strict=True), "o-", lw=2, color="#0b6e4f")
            axis.set_xticks([number for number, _ in points])
        axis.set_title(result.stage.name)
        axis.set_xlabel("round")
        axis.set_ylabel(f"{_NAMES[metric]} on {scores_on(result)}", fontsize=8)
        axis.grid(alpha=0.25)
    figure.suptitle(f"{options.recipe.name}, {options.nodes} nodes, sealing: {options.sealing}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
