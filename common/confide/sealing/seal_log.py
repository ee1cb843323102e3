"""The node's seal log: what was reserved, spent, signed and revealed in every slot, and what must outlive a restart.

A journal of events (confide.journal), never of secrets:

    epoch     {run, epoch, first_slot, slots}                 written before the bundle is made
    heard     {peer, length, head, signature}                 the longest ledger that a peer has shown
    roster    {version, sha256}                               the highest version seen
    model     {sha256, round, anchored}                       the model chain's newest link
    reserved  {run, slot, round, attempt, model, evaluate_only, context, n, c, q, t, d}   before training
    spent     {run, slot, upload_digest, bytes}               before the first byte leaves
    signed    {run, slot, survivors, list_sha256, anchored}   before the signature leaves
    revealed  {run, slot, self_masks, mask_secrets}           before the shares leave
    ended     {run, slot, committed, failure, contributed}
    stopped   {reason}                                        ROLLBACK_DETECTED: nothing is answered any more

`rows` shows it per slot, for `confide node seal-log`.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from confide import journal
from confide.errors import FailureName, ProtocolFailure


class Costs(Protocol):
    """Where a slot's privacy cost is kept: the privacy ledger, or NoCosts. Each call is durable when it returns."""

    def position(self) -> tuple[int, str]:
        """(length, head) of the ledger that peers remember."""

    def head_at(self, length: int) -> str:
        """The ledger's head when it had `length` entries."""

    def reserve(self, *, run_id: str, slot: int, round: int, model_sha256: str, evaluate_only: bool) -> None:
        """Before training. Raises BUDGET_EXHAUSTED or LedgerError: the slot is then refused."""

    def spend(self, *, run_id: str, slot: int, upload_digest: str) -> None:
        """Before the first byte leaves."""

    def ended(self, *, run_id: str, slot: int, committed: bool, contributed: bool) -> None:
        """The slot is over; an abandoned one stays charged."""


class NoCosts:
    """Nothing is charged; the seal log itself is the ledger whose length peers remember."""

    def __init__(self, log: journal.Journal) -> None:
        self._log = log

    def position(self) -> tuple[int, str]:
        """The seal log's own."""
        return len(self._log), self._log.head

    def head_at(self, length: int) -> str:
        """The seal log's own."""
        return self._log.head_at(length)

    def reserve(self, *, run_id: str, slot: int, round: int, model_sha256: str, evaluate_only: bool) -> None:
        """The event "reserved" is all."""

    def spend(self, *, run_id: str, slot: int, upload_digest: str) -> None:
        """The event "spent" is all."""

    def ended(self, *, run_id: str, slot: int, committed: bool, contributed: bool) -> None:
        """The event "ended" is all."""


class SealLog:
    """The journal and what follows from it: the highest epoch and slot, attempts, peers' ledgers."""

    def __init__(self, path: Path) -> None:
        """Open or create; raises StateError when damaged or in use."""
        self.journal = journal.Journal(path)
        self.last_epoch = 0
        self.last_slot = 0
        self.unended: int | None = None
        """A slot that was reserved and whose end was not heard."""
        self.roster: tuple[int, str] = (0, "")
        self.heights: dict[str, tuple[int, str, str]] = {}
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
            case "heard":
                self.heights[body["peer"]] = (body["length"], body["head"], body["signature"])
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

    def hear(self, peer: str, length: int, head: str, signature: str) -> None:
        """Remember a peer's signed ledger when it is longer than any heard of before."""
        if peer not in self.heights or length > self.heights[peer][0]:
            self.write("heard", peer=peer, length=length, head=head, signature=signature)

    def check_height(self, costs: Costs, peer: str, length: int, head: str) -> None:
        """Raise ROLLBACK_DETECTED, for good, when a peer knows a longer or another ledger of this node."""
        own, _ = costs.position()
        if length <= own and costs.head_at(length) == head:
            return
        what = f"{peer} has seen this node's ledger at length {length}; here it has {own}" + (
            "" if length > own else " and says something else at that length"
        )
        self.write("stopped", reason=f"{what}. The disk was restored from an older state: restore the newest one")
        self.require_running()


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
