"""A run as a table that grows with its events: rounds, contributors, losses, who was dropped and why.

>>> view = RunView("run")
>>> view.feed("run_started", {"nodes": ["a", "b"], "rounds": 2, "sealing": "none", "name": "example"})
'example started: 2 nodes, 2 rounds, sealing none'
>>> view.feed("round_committed", {"round": 1, "metrics": {"train_loss": {"mean": 2.5, "count": 2}},
...                               "contributors": ["a", "b"], "dropped": {}, "seconds": 3.0})
'round 1: 2 of 2 contributed, train_loss 2.5000, 3.0 s'
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confide.text import PARAGRAPH_CHARS, markup
from rich.console import Group
from rich.table import Table
from rich.text import Text

from confide_server.admin_cli.progress_lines import ProgressLines, duration

ACCEPTED = "[bold red]accepted: who is missing from one of two sums can be told from them[/bold red]"
SEALING_NONE = "[bold red]none: the coordinator sees each update[/bold red]"


def plain(text: str) -> str:
    """Text that came from elsewhere, made harmless for a terminal: no markup, no control characters."""
    return markup(text, PARAGRAPH_CHARS)


def sealing_markup(kind: str) -> str:
    """The kind for a table; "none" is red wherever it appears."""
    return SEALING_NONE if kind == "none" else f"[green]{plain(kind)}[/green]"


@dataclass
class _Row:
    metrics: dict[str, float]
    contributors: Sequence[str]
    seconds: float


@dataclass
class RunView:
    """What is known of one run so far. `status` is "failed", "stopped", "finished", or something before that."""

    run_id: str
    name: str = ""
    status: str = "submitted"
    detail: str = ""
    sealing: str = ""
    differences: str = ""
    rounds: int = 0
    nodes: tuple[str, ...] = ()
    _rows: dict[int, _Row] = field(default_factory=dict)
    _dropped: dict[int, dict[str, str]] = field(default_factory=dict)
    working: ProgressLines = field(default_factory=ProgressLines)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in {"failed", "stopped", "finished"}

    def feed(self, kind: str, data: Mapping[str, Any]) -> str:
        """Take one event (kinds and data: confide_server.state.runs.service.RunEvent); returns it as one line of text.

        The line is empty where there is nothing worth printing (progress_lines.py).
        """
        line = self.working.feed(kind, data)
        if kind == "progress":
            return line
        handler = getattr(self, f"_on_{kind}", None)
        return str(handler(data)) if handler is not None else f"{kind} {dict(data)}"

    def screen(self) -> Group:
        """The table, and below it what each node that works says it is doing."""
        return Group(self.table(), *(Text(line, style="dim") for line in map(plain, self.working.lines)))

    def table(self) -> Table:
        """Rounds so far, with the losses that nodes reported on average."""
        names = sorted({name for row in self._rows.values() for name in row.metrics})
        title = f"{plain(self.name or self.run_id[:8])}: {self.status}"
        if self.sealing:
            title += f"  sealing {sealing_markup(self.sealing)}"
        if self.sealing == "sealed" and self.differences == "accepted":
            title += f"  differences {ACCEPTED}"
        table = Table("round", "contributors", *names, "seconds", "dropped", title=title, caption=plain(self.detail))
        for number in sorted(set(self._rows) | set(self._dropped)):
            row = self._rows.get(number)
            reasons = "; ".join(f"{node}: {why}" for node, why in sorted(self._dropped.get(number, {}).items()))
            cells = [f"{row.metrics[name]:.4f}" if row and name in row.metrics else "" for name in names]
            who = f"{len(row.contributors)} of {len(self.nodes) or '?'}" if row else "open"
            seconds = f"{row.seconds:.1f}" if row else ""
            table.add_row(str(number), who, *cells, seconds, f"[yellow]{plain(reasons)}[/yellow]" if reasons else "")
        return table

    def _on_offer_answered(self, data: Mapping[str, Any]) -> str:
        self.status = "offering"
        waits = "gets ready" if data.get("preparing") else "waits for approval"
        verdict = "accepts" if data["accepted"] else (waits if data["waiting"] else "refuses")
        reason = f": {data['reason']}" if data.get("reason") else ""
        if data.get("round_s"):
            reason = f", and measured {duration(data['round_s'])} for a round{reason}"
        self.detail = f"{data['node']} {verdict}{reason}"
        return self.detail

    def _on_run_started(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = "running", ""
        self.name, self.sealing = data["name"], data["sealing"]
        self.differences = data.get("differences", "")
        self.nodes, self.rounds = tuple(data["nodes"]), data["rounds"]
        return f"{self.name} started: {len(self.nodes)} nodes, {self.rounds} rounds, sealing {self.sealing}"

    def _on_epoch_started(self, data: Mapping[str, Any]) -> str:
        return f"epoch of {len(data['members'])} members, {data['slots']} slots"

    def _on_run_submitted(self, data: Mapping[str, Any]) -> str:
        self.name = data["name"]
        parent = (
            f", from round {data['parent_round']} of run {data['parent_run_id'][:8]}" if data["parent_run_id"] else ""
        )
        return f"{self.name} submitted by {data['administrator']}{parent}"

    def _on_run_cosigned(self, data: Mapping[str, Any]) -> str:
        return f"signed by {data['by']}" + ("" if data["complete"] else ", and waits for a further administrator")

    def _on_run_waits(self, data: Mapping[str, Any]) -> str:
        self.detail = data["reason"]
        return self.detail

    def _on_run_paused(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = (
            "paused",
            f"paused by {data['by']}" + (f": {data['reason']}" if data["reason"] else ""),
        )
        return f"{self.detail}; an open round is brought to its end first"

    def _on_run_resumed(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = "running" if self.nodes else "submitted", ""
        return f"resumed by {data['by']}, after round {data['round']}"

    def _on_paused(self, data: Mapping[str, Any]) -> str:
        who = ", ".join(data["missing"])
        self.detail = f"paused before round {data['round']}: waits for {who}; a sum without it would show its update"
        return self.detail

    def _on_resumed(self, data: Mapping[str, Any]) -> str:
        self.detail = ""
        return f"round {data['round']}: everybody who was waited for is there"

    def _on_round_started(self, data: Mapping[str, Any]) -> str:
        deadline = f", at most {duration(data['deadline_s'])} for each node" if data.get("deadline_s") else ""
        self.detail = f"round {data['round']} of {self.rounds}, attempt {data['attempt']}{deadline}"
        return self.detail

    def _on_contributed(self, data: Mapping[str, Any]) -> str:
        return f"round {data['round']}: {data['node']} contributed {data['bytes']} bytes"

    def _on_dropped(self, data: Mapping[str, Any]) -> str:
        why = f"{data['code']}: {data['reason']}"
        self._dropped.setdefault(data["round"], {})[data["node"]] = why
        return f"round {data['round']}: {data['node']} did not contribute, because {why}"

    def _on_slot_abandoned(self, data: Mapping[str, Any]) -> str:
        self.detail = f"round {data['round']}, attempt {data['attempt']} abandoned: {data['code']}: {data['reason']}"
        return self.detail

    def _on_round_committed(self, data: Mapping[str, Any]) -> str:
        number, means = data["round"], {name: value["mean"] for name, value in data["metrics"].items()}
        self._rows[number] = _Row(means, data["contributors"], data["seconds"])
        for node, why in dict(data["dropped"]).items():
            self._dropped.setdefault(number, {}).setdefault(node, str(why))
        shown = "".join(f", {name} {value:.4f}" for name, value in sorted(means.items()))
        count = f"{len(data['contributors'])} of {len(self.nodes) or '?'}"
        return f"round {number}: {count} contributed{shown}, {data['seconds']:.1f} s"

    def _on_run_finished(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = "finished", f"model {data['model_sha256'][:16]} after {data['rounds']} rounds"
        return f"finished: {self.detail}"

    def _on_run_failed(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = "failed", f"{data['code']}: {data['reason']}"
        return f"failed: {self.detail}"

    def _on_run_deleted(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = "deleted", f"by {data['by']}"
        return f"deleted {self.detail}: nothing else is kept of it"

    def _on_run_stopped(self, data: Mapping[str, Any]) -> str:
        self.status, self.detail = "stopped", f"in round {data['round']}"
        return f"stopped {self.detail}"
