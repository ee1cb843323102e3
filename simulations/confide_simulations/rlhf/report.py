"""What `confide demo rlhf` shows at its end."""

import json

from rich.console import Console
from rich.table import Table

from confide_simulations.rlhf.run import Result


def to_bytes(result: Result) -> bytes:
    """The JSON document."""
    return json.dumps(result.to_json(), indent=2).encode() + b"\n"


def print_report(console: Console, result: Result) -> None:
    """Accuracies, differences with intervals, and the gate."""
    table = Table(title=f"{result.test_pairs} held-out comparisons: the preferred one has the larger reward")
    table.add_column("reward model")
    table.add_column("accuracy", justify="right")
    names = {"central": "all comparisons pooled", "federated": "federated and sealed, no privacy"}
    names |= {f"eps{epsilon}": f"federated, epsilon {epsilon} for each comparison" for epsilon in (8, 3, 1)}
    for key, label in names.items():
        table.add_row(label, f"{result.accuracy[key]:.3f}")
    for key, label in (("alone", "alone"), ("alone_eps1", "alone at epsilon 1")):
        for node, value in result.accuracy[key].items():
            table.add_row(f"{node} {label}", f"{value:.3f}")
    console.print(table)
    for name, (mean, low, high) in result.differences.items():
        console.print(f"  {name}: {mean:+.3f} (95 %: {low:+.3f} to {high:+.3f})", highlight=False)
    console.print(
        f"a node sent {result.bytes_per_node_round:,} bytes a round; raters' alpha {result.alpha:.3f}", highlight=False
    )
    if result.aligned is not None:
        figures, verdict = result.aligned.figures, result.aligned.verdict
        console.print(
            f"policy: win rate {figures.win_rate:.3f} ({figures.interval[0]:.3f} to {figures.interval[1]:.3f}) over "
            f"{figures.prompts} prompts, {figures.kl:.2f} nats from the base",
            highlight=False,
        )
        console.print(
            f"gate: {'passed' if verdict.passed else 'NOT passed'}", style="green" if verdict.passed else "red"
        )
        for text in (*verdict.failed, *(f"not known: {one}" for one in verdict.unknown)):
            console.print(f"  {text}", highlight=False, markup=False)
    console.print(f"{result.seconds:.0f} s", highlight=False)
