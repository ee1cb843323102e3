"""The table that is redrawn while the federation trains."""

import time
from typing import Any

from confide_server.admin_cli.progress_lines import ProgressLines
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text


class LiveRounds:
    """Follows run events; on a terminal it redraws, elsewhere it prints one line an event that matters."""

    def __init__(self, console: Console, *, rounds: int, nodes: int, sealing: str) -> None:
        self._console = console
        self._rounds, self._nodes, self._sealing = rounds, nodes, sealing
        self._started = time.monotonic()
        self._doing = "starting"
        self._rows: list[tuple[str, ...]] = []
        self._working = ProgressLines()
        self.train_loss: list[tuple[int, float]] = []
        self._live = Live(self, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> "LiveRounds":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._console.print(self._table())

    def __rich__(self) -> RenderableType:
        elapsed = f"{time.monotonic() - self._started:.0f} s"
        nodes = (Text(f"  {words}", style="dim") for words in self._working.lines)
        return Group(self._table(), Text(f"{self._doing} ({elapsed})", style="dim"), *nodes)

    def _table(self) -> Table:
        title = f"{self._nodes} organizations, {self._rounds} rounds, sealing: "
        shown = "[green]sealed[/green]" if self._sealing == "sealed" else "[bold red]NONE[/bold red]"
        table = Table(title=title + shown)
        for name in ("round", "organizations", "training loss", "own evaluation", "update norm", "seconds"):
            table.add_column(name, justify="right" if name != "organizations" else "left")
        for row in self._rows:
            table.add_row(*row)
        return table

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Take one event of the run."""
        working = self._working.feed(kind, data)
        if working and not self._console.is_terminal:
            self._say(working)
        line = _LINES.get(kind)
        if line is not None and (kind, self._sealing) != ("epoch_started", "none"):
            self._doing = line.format(**data)
            if not self._console.is_terminal:
                self._say(self._doing)
        if kind == "round_committed":
            self._commit(data)

    def _say(self, line: str) -> None:
        self._console.print(f"  {time.monotonic() - self._started:5.0f} s  {line}", highlight=False)

    def _commit(self, data: dict[str, Any]) -> None:
        means = {name: value["mean"] for name, value in data["metrics"].items()}
        if "train_loss" in means:
            self.train_loss.append((int(data["round"]), float(means["train_loss"])))
        contributors = f"{len(data['contributors'])} of {self._nodes}"
        if data["dropped"]:
            contributors += ", without " + ", ".join(sorted(data["dropped"]))
        figures = [f"{means[name]:.3f}" if name in means else "-" for name in ("train_loss", "eval_loss")]
        norm = f"{data['update_norm']:.2f}" if data.get("update_norm") is not None else "-"
        self._rows.append((str(data["round"]), contributors, *figures, norm, f"{data['seconds']:.0f}"))


_LINES = {
    "offer_answered": "{node} answered the offer",
    "run_started": "the run has started",
    "epoch_started": "a sealing epoch: keys and shares are exchanged",
    "round_started": "round {round}: the nodes train",
    "contributed": "round {round}: {node} contributed",
    "dropped": "round {round}: {node} did not contribute, because {reason}",
    "slot_abandoned": "round {round}: abandoned ({code}), {reason}",
    "round_committed": "round {round} is committed",
    "run_finished": "the run has finished",
    "run_failed": "the run failed: {reason}",
}
