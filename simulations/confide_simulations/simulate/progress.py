"""The progress bar of a simulated run; without a terminal, one line a round."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunProgress:
    """Counts contributions of nodes; takes the run's events."""

    def __init__(self, console: Console, *, rounds: int, nodes: int, label: str = "") -> None:
        self._console, self._rounds, self._nodes, self._label = console, rounds, nodes, label
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(f"{label}starting", total=rounds * nodes)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """A simulation's Watch."""
        if kind == "contributed":
            self._bar.update(self._task, advance=1, description=f"{self._label}round {data['round']}/{self._rounds}")
        elif kind == "dropped":
            self._console.print(
                f"{self._label}round {data['round']}: {data['node']} did not contribute: {data['reason']}",
                highlight=False,
                markup=False,
            )
        elif kind == "round_committed":
            self._bar.update(self._task, completed=data["round"] * self._nodes)
            if not self._console.is_terminal:
                loss = data["metrics"].get("train_loss", {}).get("mean")
                shown = "" if loss is None else f", training loss {loss:.4f}"
                line = f"{self._label}round {data['round']}/{self._rounds}: {len(data['contributors'])} nodes"
                self._console.print(f"{line}{shown}, {data['seconds']:.1f} s", highlight=False, markup=False)
