"""The node's seal log: what was reserved, spent, signed and revealed in every slot, and what must outlive a restart.

A journal of events (confide.journal), never of secrets:

    epoch     {run, epoch, first_slot, slots}                 written before the bundle is made
    roster    {version, sha256}                               the highest version seen
    model     {sha256, round, anchored}                       the model chain's newest link
    reserved  {run, slot, round, attempt, model, evaluate_only, context, n, c, q, t, d}   before training
    spent     {run, slot, upload_digest, bytes}               before the first byte leaves
    signed    {run, slot, survivors, list_sha256, anchored}   before the signature leaves
    revealed  {run, slot, self_masks, mask_secrets}           before the shares leave
    ended     {run, slot, committed, failure, contributed}
    heard, stopped                                            of an earlier release (now confide.sealing.member.heights)

`rows` shows it per slot, for `confide node seal-log`.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from confide import journal
from confide.errors import FailureName, ProtocolFailure


class Costs(Protocol):
    """Where a slot's privacy cost is kept: the privacy ledger, or NoCosts. Each call is durable when it returns."""

    def reserve(self, *, run_id: str, slot: int, round: int, model_sha256: str, evaluate_only: bool) -> None:
        """Before training. Raises BUDGET_EXHAUSTED or LedgerError: the slot is then refused."""

    def spend(self, *, run_id: str, slot: int, upload_digest: str) -> None:
        """Before the first byte leaves."""

    def ended(self, *, run_id: str, slot: int, committed: bool, contributed: bool) -> None:
        """The slot is over; an abandoned one stays charged."""


class NoCosts:
    """Nothing is charged."""

    def reserve(self, *, run_id: str, slot: int, round: int, model_sha256: str, evaluate_only: bool) -> None:
        """The event "reserved" is all."""

    def spend(self, *, run_id: str, slot: int, upload_digest: str) -> None:
        """The event "spent" is all."""

    def ended(self, *, run_id: str, slot: int, committed: bool, contributed: bool) -> None:
        """The event "ended" is all."""


class SealLog:
    """The journal and what follows from it: the highest epoch and slot, attempts, the newest model."""

    def __init__(self, path: Path) -> None:
        """Open or create; raises StateError when damaged or in use."""
        self.journal = journal.Journal(path)
        self.last_epoch = 0
        self.last_slot = 0
        self.unended: int | None = None
        """A slot that was reserved and whose end was not heard."""
        self.roster: tuple[int, str] = (0, "")
        self.model: tuple[str, int, bool] | None = None
        self.attempts: Counter[str] = Counter()
        """By model, training and evaluation together."""
        self.last_attempt: dict[int, int] = {}
        """By round, the highest that was taken."""
        self.stopped: str | None = None
        for event in self.journal:
            self._apply(event)

    def write(self, event: str, **fields: Any) -> None:
        """Append durably."""
        body = {"event": event, **fields}
        self.journal.append(body)
        self._apply(body)

    def _apply(self, body: dict[str, Any]) -> None:
        match body["event"]:
            case "epoch":
                self.last_epoch = body["epoch"]
            case "roster":
                self.roster = (body["version"], body["sha256"])
            case "model":
                self.model = (body["sha256"], body["round"], body["anchored"])
            case "reserved":
                self.last_slot = self.unended = body["slot"]
                self.attempts[body["model"]] += 1
                self.last_attempt[body["round"]] = max(body["attempt"], self.last_attempt.get(body["round"], 0))
            case "ended":
                self.unended = None
            case "stopped":
                self.stopped = body["reason"]

    def require_running(self) -> None:
        """Raise ROLLBACK_DETECTED once the node has stopped."""
        if self.stopped is not None:
            raise ProtocolFailure(FailureName.ROLLBACK_DETECTED, self.stopped)


def rows(path: Path) -> list[dict[str, Any]]:
    """One row per slot, oldest first, from the log at `path`: what was reserved, sent, signed and revealed."""
    bodies, _ = journal.read(path)
    slots: dict[tuple[str, int], dict[str, Any]] = {}
    for body in bodies:
        event = body["event"]
        if event in {"reserved", "spent", "signed", "revealed", "ended"}:
            row = slots.setdefault((body["run"], body["slot"]), {"run": body["run"], "slot": body["slot"]})
            row[event] = {name: value for name, value in body.items() if name not in {"event", "run", "slot"}}
    return list(slots.values())
