"""What the demo shows at the end: one table, one plot, one JSON document."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confide.files import write_atomic
from confide.text import line
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """One committed round. nll: of the model after it, on the held-out questions, nats per answer token."""

    round: int
    nll: float
    contributors: tuple[str, ...]
    dropped: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Everything that was measured. NLL is in nats per answer token on the held-out questions; lower is better."""

    seconds: float
    peak_memory_mib: float
    sealing: str
    rounds: tuple[RoundResult, ...]
    base: float
    federated: float
    alone: Mapping[str, float]
    adapter: str
    held_out: int
    question: str = ""
    expected: str = ""
    answer_before: str = ""
    answer_after: str = ""
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The document of `confide demo --json`."""
        return {
            "seconds": round(self.seconds, 1),
            "peak_memory_mib": round(self.peak_memory_mib),
            "sealing": self.sealing,
            "rounds": [
                {
                    "round": result.round,
                    "nll": result.nll,
                    "contributors": list(result.contributors),
                    "dropped": dict(result.dropped),
                }
                for result in self.rounds
            ],
            "nll": {"base": self.base, "federated": self.federated, "alone": dict(self.alone)},
            "adapter": self.adapter,
        }


def score_table(result: DemoResult) -> Table:
    """Base, alone and federated, side by side."""
    table = Table(title=f"{result.held_out} held-out questions over all categories, answer tokens only")
    table.add_column("model")
    table.add_column("NLL (nats/token)", justify="right")
    table.add_column("perplexity", justify="right")
    rows: list[tuple[str, float]] = [("base model, untrained", result.base)]
    rows += [(f"{node} alone, same number of steps", nll) for node, nll in result.alone.items()]
    for label, nll in rows:
        table.add_row(label, f"{nll:.3f}", f"{math.exp(nll):.1f}")
    table.add_section()
    label = f"federated, {len(result.alone)} organizations together"
    table.add_row(label, f"{result.federated:.3f}", f"{math.exp(result.federated):.1f}", style="bold green")
    return table


def print_report(console: Console, result: DemoResult) -> None:
    """Table, answers and notes."""
    console.print(score_table(result))
    console.print(f"[bold]Question:[/bold] {result.question}", highlight=False)
    console.print(f"  the shards' owner wrote: {line(result.expected)}", highlight=False, markup=False)
    console.print(f"  before: {line(result.answer_before)}", highlight=False, markup=False)
    console.print(f"  after:  {line(result.answer_after)}", highlight=False, markup=False)
    for note in result.notes:
        console.print(note)


def plot(result: DemoResult, path: Path, train_loss: Sequence[tuple[int, float]]) -> None:
    """Held-out NLL by round against the baselines, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.2), dpi=120)
    steps = [0] + [r.round for r in result.rounds]
    axes.plot(steps, [result.base] + [r.nll for r in result.rounds], "o-", lw=2.2, color="#0b6e4f", label="federated")
    if train_loss:
        rounds, losses = zip(*train_loss, strict=True)
        axes.plot(rounds, losses, ":", color="#888888", label="mean training loss at the nodes, from the sealed sum")
    for index, (node, nll) in enumerate(sorted(result.alone.items(), key=lambda item: item[1])):
        axes.axhline(nll, ls="--", lw=1, color=f"C{index % 10}", label=f"{node} alone, all its steps: {nll:.2f}")
    axes.set_xlabel("round")
    axes.set_ylabel(f"NLL on {result.held_out} held-out questions (nats/token)")
    axes.set_xticks(steps)
    axes.set_title("Four organizations, one model, no shared text" if len(result.alone) == 4 else "Federated run")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def write_json(path: Path, result: DemoResult) -> None:
    """The JSON document, replaced whole."""
    write_atomic(path, json.dumps(result.to_json(), indent=2).encode() + b"\n", mode=0o644)
