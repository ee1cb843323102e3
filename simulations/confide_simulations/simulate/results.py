"""What a simulated run leaves for the researcher: rounds.parquet, results.json, loss.png and the model.

One row a round. `train_loss` and `eval_*` are means over the nodes that reported them: training loss of the round's
local steps, and the received model on the nodes' own evaluation splits. `held_out_*` is the model after the round, on
records that no node has.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.codec.tensors import TensorSchema
from confide.files import write_atomic
from confide.runs.specification import Specification
from confide_server.state.runs.service import RunEvent
from rich.table import Table

from confide_simulations.benchmarks.meta import meta

Row = dict[str, Any]
_MOST_NATS = 20.0
_SHOWN = {
    "training loss": "train_loss",
    "own evaluation": "eval_loss",
    "held out": "held_out_eval_loss",
    "held-out bytes a token": "held_out_bytes_per_token",
    "update norm": "update_norm",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run. rows: by round; row 0 is the first model, with only its held-out metrics."""

    specification: Specification
    nodes: Mapping[str, int]
    """Records of each node's shard."""
    partition: str
    held_out: int
    workers: int
    seconds: float
    """Of this process: a run that was gone on with took longer in all."""
    rows: Sequence[Row]
    manifest: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """results.json."""
        config = {
            "specification": self.specification.model_dump(mode="json"),
            "partition": self.partition,
            "nodes": dict(self.nodes),
            "held_out_records": self.held_out,
            "workers": self.workers,
        }
        return {
            "meta": meta(seed=self.specification.seed, config=config),
            "sealing": self.specification.sealing.kind.value,
            "model_sha256": self.manifest["model_sha256"],
            "seconds": round(self.seconds, 2),
            "rounds": list(self.rows),
            "final": {key: value for key, value in self.rows[-1].items() if isinstance(value, float)},
        }


def rows_of(events: Sequence[RunEvent], scores: Mapping[int, Mapping[str, float]]) -> list[Row]:
    """One row a committed round, from the run's events and the held-out scores; row 0 is the first model."""
    rows: list[Row] = [{"round": 0, **_held_out(scores.get(0, {}))}]
    attempts = 0
    sent = 0
    for event in events:
        if event.kind == "round_started":
            attempts, sent = event.data["attempt"], 0
        elif event.kind == "contributed":
            sent += event.data["bytes"]
        elif event.kind == "round_committed":
            number = event.data["round"]
            row: Row = {
                "round": number,
                "contributors": len(event.data["contributors"]),
                "dropped": len(event.data["dropped"]),
                "attempts": attempts,
                "upload_bytes": sent,
                "seconds": float(event.data["seconds"]),
                "update_norm": float(event.data["update_norm"]),
            }
            means = {name: float(value["mean"]) for name, value in event.data["metrics"].items()}
            # The norm of the mean update is known exactly; the mean of the nodes' norms is another figure.
            means["node_update_norm"] = means.pop("update_norm", float("nan"))
            row |= {name: value for name, value in means.items() if value == value}
            rows.append({**row, **_held_out(scores.get(number, {}))})
    return rows


def _held_out(scores: Mapping[str, float]) -> Row:
    row = {f"held_out_{name}": value for name, value in scores.items()}
    if "eval_bits_per_byte" in scores:  # the loss is of tokens, so that it has a perplexity
        row["held_out_perplexity"] = math.exp(min(scores["eval_loss"], _MOST_NATS))
    return row


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A parquet file with one column for each name that occurs; null where a row has none."""
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    temporary = path.with_name(f".{path.name}.part")
    pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replaced whole; keys in the given order."""
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n", mode=0o644)


def write_report(folder: Path, report: Report, model: bytes, base: Path | None) -> None:
    """Everything into `folder`, what was learned as adapter, model or tokenizer folder included."""
    from confide.models.export import write_export
    from confide.models.store import require_base
    from confide.models.trainable import schema_of
    from confide.tokenizer.export import write_tokenizer_export

    specification = report.specification
    write_rows(folder / "rounds.parquet", report.rows)
    write_json(folder / "results.json", report.to_json())
    plot(report, folder / "loss.png")
    if not specification.trains_model:
        write_tokenizer_export(folder / "model", model, report.manifest, specification)
    elif specification.training.local_steps:
        base = require_base(specification, base)
        schema: TensorSchema = schema_of(specification, base)
        tensors = schema.unflatten(schema.decode(model))
        write_export(folder / "model", tensors, report.manifest, specification, base)


def table(report: Report, most: int = 12) -> Table:
    """The last rounds, for the terminal."""
    sealed = report.specification.sealed
    shown = "[green]sealed[/green]" if sealed else "[bold red]NONE[/bold red]"
    made = Table(title=f"{len(report.nodes)} virtual nodes, partition {report.partition}, sealing: {shown}")
    columns = {title: name for title, name in _SHOWN.items() if any(name in row for row in report.rows)}
    for title in ("round", "nodes", *columns, "seconds"):
        made.add_column(title, justify="right")
    for row in [report.rows[0], *report.rows[1:][-most:]]:
        figures = [f"{row[name]:.4f}" if name in row else "-" for name in columns.values()]
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else "-"
        made.add_row(str(row["round"]), str(row.get("contributors", "-")), *figures, seconds)
    return made


def plot(report: Report, path: Path) -> None:
    """Loss by round, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.2), dpi=120)
    curves: tuple[tuple[str, str, str], ...] = (
        ("held_out_eval_loss", "held-out records, model after the round", "o-"),
        ("eval_loss", "nodes' own evaluation, model before the round", "s--"),
        ("train_loss", "local training", ":"),
    )
    tokenizer = not report.specification.trains_model
    if tokenizer:
        curves = (("held_out_bytes_per_token", "held-out records, tokenizer after the round", "o-"),)
    for column, label, style in curves:
        points = [(row["round"], row[column]) for row in report.rows if column in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, lw=1.6, ms=4, label=label)
    axes.set_xlabel("round")
    axes.set_ylabel("bytes per token" if tokenizer else "loss")
    axes.set_title(f"{report.specification.name}: {len(report.nodes)} nodes, {report.partition}")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
