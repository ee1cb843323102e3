"""The coordinator half of sealing for a consortium larger than one sum can hold: one collector a group.

The root's roster says which node is in which group (docs/sealing.md, groups), so the coordinator chooses for nobody
with whom it is summed; each node checks that. Every group has its own epoch, list and quorum, and opens its own sum.
The sums are added here, and the run driver sees one Collector. The groups go in step: an exchange asks all groups that
stand before the same step.

Guarantee: none of its own. What holds of one sum (sealing.member) holds of each group's.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, ProtocolFailure
from confide.files import private_folder, write_atomic
from confide.identity.roster import Roster
from confide.proto import fleet_pb2
from confide.runs.metrics import Metric
from confide.runs.parameters import colluding, eligible
from confide.runs.specification import Specification
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.roles import Abandoned, Exchange, Opened, SlotPlan

_ORDER = (fleet_pb2.ADVERTISE, fleet_pb2.SHARE, fleet_pb2.TRAIN, fleet_pb2.SCORE, fleet_pb2.CONFIRM, fleet_pb2.REVEAL)
_TRIES = 2
"""Epochs that a group may fail to make between two slots; then the others go on without it."""
_ANCHORED = "anchored"
_UNGROUPED = "ungrouped"
"""Folder of the nodes that are in no named group: no group's folder, which begin with "group-"."""


class _Total:
    """What the groups of one slot opened, added up as each opens: one vector, however many groups there are."""

    def __init__(self) -> None:
        self.update: NDArray[np.floating] | None = None
        self.weight = 0.0
        self.metrics: dict[Metric, tuple[float, int]] = {}
        self.contributors: list[str] = []
        self.dropped: dict[str, str] = {}
        self.promises: dict[str, Mapping[str, object]] = {}
        self.failures: dict[str, Abandoned] = {}
        self.evidence: list[Mapping[str, object]] = []

    def take(self, group: str, outcome: Opened | Abandoned) -> None:
        """Add one group's outcome."""
        self.dropped.update(outcome.dropped)
        if isinstance(outcome, Abandoned):
            self.failures[group] = outcome
            return
        if self.update is None:
            self.update = outcome.update_sum
        else:
            np.add(self.update, outcome.update_sum, out=self.update)
        self.weight += outcome.weight_sum
        for name, (value, count) in outcome.metrics.items():
            before = self.metrics.get(name, (0.0, 0))
            self.metrics[name] = (before[0] + value, before[1] + count)
        self.contributors += outcome.contributors
        self.promises[group] = outcome.promise
        self.evidence += outcome.evidence

    def outcome(self) -> Opened | Abandoned:
        """Opened as soon as one group opened: the others' updates are missing, as those of absent nodes are."""
        if self.update is None:
            group, first = min(self.failures.items())
            return Abandoned(first.code, f"no group opened a sum; group {group!r}: {first.reason}", self.dropped)
        words = f"{len(self.promises)} sums are seen, one of each group"
        if self.failures:
            missing = (f"{group!r} ({found.code})" for group, found in sorted(self.failures.items()))
            words += f"; opened nothing: {', '.join(missing)}"
        return Opened(
            update_sum=self.update,
            weight_sum=self.weight,
            metrics=self.metrics,
            contributors=tuple(sorted(self.contributors)),
            dropped=self.dropped,
            promise={
                "kind": "sealed",
                "sums": len(self.promises),
                "list_size": len(self.contributors),
                "groups": {group: dict(promise) for group, promise in sorted(self.promises.items())},
                "words": words,
            },
            evidence=tuple(self.evidence),
        )


class GroupedCollector:
    """A confide.sealing.roles.Collector over one SealedCollector for each group of the roster."""

    def __init__(
        self, *, specification: Specification, roster: Roster, folder: Path, run_id: str, schema: TensorSchema
    ) -> None:
        """folder: this run's own; each group's collector has a folder in it."""
        self.outcome: Opened | Abandoned | None = None
        self._folder = private_folder(folder)
        self._roster = roster
        self._make: Callable[[str], SealedCollector] = lambda group: SealedCollector(
            specification=specification,
            roster=self._roster,
            folder=self._folder / (f"group-{group}" if group else _UNGROUPED),
            run_id=run_id,
            schema=schema,
            group=group,
        )
        self._groups: dict[str, SealedCollector] = {}
        self._group_of: dict[str, str] = {}
        self._total = _Total()
        self._asked: dict[str, Exchange] = {}
        """What each group wants asked; those of the step that is out are taken off at its end."""
        self._tries: Counter[str] = Counter()
        """Epochs of each group that were begun since the last slot."""
        self._colluding: Callable[[str], int] = lambda group: colluding(
            specification, eligible(specification, self._roster.groups.get(group, ()))
        )
        anchored = self._folder / _ANCHORED
        self._anchored = set(anchored.read_text().split() if anchored.exists() else ())
        """Nodes that were in a sum of this run: what they have of its models goes back to the signed first one."""
        self._round = 0
        self._shown: set[str] = set()
        """Groups that were shown the first model in this slot."""
        self._showing: set[str] = set()
        """Those that are being shown it."""
        self._learn_groups()

    def _learn_groups(self) -> None:
        for group, names in self._roster.groups.items():
            self._group_of |= dict.fromkeys(names, group)
            if group not in self._groups:
                self._groups[group] = self._make(group)

    def _of(self, present: tuple[str, ...], group: str) -> tuple[str, ...]:
        return tuple(name for name in present if self._group_of.get(name) == group)

    @property
    def resumable(self) -> SlotPlan | None:
        """The slot that is open in a group, or that was when the last process ended."""
        plans = (collector.resumable for collector in self._groups.values())
        return next((plan for plan in plans if plan is not None), None)

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster. A revoked member ends its group's epoch; new groups begin with the next epoch."""
        for collector in self._groups.values():
            collector.update_roster(roster)
        self._roster = roster
        self._asked.clear()
        if self.resumable is None:
            self._learn_groups()

    # ------------------------------------------------------------------ epoch

    def _needing(self, present: tuple[str, ...]) -> list[str]:
        return [
            group
            for group, collector in self._groups.items()
            if (here := self._of(present, group)) and collector.epoch_needed(here)
        ]

    def epoch_needed(self, present: tuple[str, ...]) -> bool:
        """Whether a group needs an epoch and has not failed to make one too often, or no group has one."""
        needing = self._needing(present)
        standing = [group for group in self._groups if group not in needing and self._of(present, group)]
        return any(self._tries[group] < _TRIES for group in needing) or (bool(needing) and not standing)

    def waits_for(self, present: tuple[str, ...], gone: Mapping[str, str]) -> tuple[str, ...]:
        """Nobody while one group can be summed; else all for whom a group waits.

        Raises BLOCK_SPLIT when no group can be summed any more.
        """
        waiting: set[str] = set()
        hopeless: ProtocolFailure | None = None
        for group, collector in self._groups.items():
            try:
                missing = collector.waits_for(self._of(present, group), gone)
            except ProtocolFailure as error:
                hopeless = error
                continue
            if not missing:
                return ()
            waiting |= set(missing)
        if not waiting and hopeless is not None:
            raise hopeless
        return tuple(sorted(waiting))

    def returned(self, names: Collection[str]) -> None:
        """Tell each group."""
        for collector in self._groups.values():
            collector.returned(names)

    def begin_epoch(self, present: tuple[str, ...]) -> None:
        """Start an epoch in every group that needs one; the others keep theirs."""
        self._learn_groups()
        self.outcome = None
        self._asked.clear()
        for group in self._needing(present):
            self._groups[group].begin_epoch(self._of(present, group))
            self._tries[group] += 1

    # ------------------------------------------------------------------ the driver's loop

    def open_slot(self, plan: SlotPlan) -> None:
        """Begin a slot in every group, or go on with one that a crash left open. Who has no epoch opens nothing."""
        self.outcome, self._total, self._round = None, _Total(), plan.round
        self._asked.clear()
        self._tries.clear()
        self._shown, self._showing = set(), set()
        for group, collector in self._groups.items():
            if collector.last_slot == plan.slot and collector.resumable is None:
                # It ended before a crash, and only a slot in which no group opened anything ends before its round.
                code = FailureName.QUORUM_SHORT.value
                self._total.take(group, Abandoned(code, "abandoned before the coordinator restarted", {}))
            else:
                collector.open_slot(plan)
        self._harvest()

    def _harvest(self) -> None:
        """Take what groups have opened; the slot has an outcome when all of them have."""
        for group, collector in self._groups.items():
            if collector.outcome is not None:
                self._total.take(group, collector.outcome)
                self._note_anchored(group, collector.outcome)
                collector.outcome = None
        if self.resumable is not None and len(self._total.promises) + len(self._total.failures) == len(self._groups):
            self.outcome = self._total.outcome()

    def _note_anchored(self, group: str, outcome: Opened | Abandoned) -> None:
        """Who was in a sum has most likely followed the chain; a group that opens nothing for want of it has not."""
        before = set(self._anchored)
        if isinstance(outcome, Opened):
            self._anchored |= set(outcome.contributors)
        elif any(why.startswith(FailureName.MODEL_CHAIN_BROKEN) for why in outcome.dropped.values()):
            self._anchored = {name for name in self._anchored if self._group_of.get(name) != group}
        if self._anchored != before:
            write_atomic(self._folder / _ANCHORED, "\n".join(sorted(self._anchored)).encode())

    def _first_model(self) -> Exchange | None:
        """ANCHOR, for every group before TRAIN in which too few are known to have followed the chain."""
        late = {
            group: wanted.bodies
            for group, wanted in self._asked.items()
            if wanted.step == fleet_pb2.TRAIN
            and group not in self._shown
            and len(self._anchored & set(wanted.bodies)) <= self._colluding(group)
        }
        if self._round <= 1 or not late:
            return None
        self._showing = set(late)
        deadline_s = max(self._asked[group].deadline_s for group in late)
        bodies = {name: b"" for names in late.values() for name in names}
        return Exchange(step=fleet_pb2.ANCHOR, bodies=bodies, deadline_s=deadline_s, with_model=True)

    def exchange(self) -> Exchange | None:
        """The earliest step that any group stands before, asked in all groups that stand before it."""
        for group, collector in self._groups.items():
            if group not in self._asked and (wanted := collector.exchange()) is not None:
                self._asked[group] = wanted
        self._harvest()
        if not self._asked:
            return None
        if (showing := self._first_model()) is not None:
            return showing
        step = min((wanted.step for wanted in self._asked.values()), key=_ORDER.index)
        now = [wanted for wanted in self._asked.values() if wanted.step == step]
        return Exchange(
            step=step,
            bodies={name: body for wanted in now for name, body in wanted.bodies.items()},
            deadline_s=max(wanted.deadline_s for wanted in now),
            with_model=now[0].with_model,
        )

    def receive(self, node: str, body: bytes, payload: DigestedFile | None) -> None:
        """Give one answer to its group. Raises ConfideError as that does."""
        collector = self._collector_of(node)
        if not self._showing:
            collector.receive(node, body, payload)

    def lost(self, node: str, code: str, message: str) -> None:
        """The node does not answer this exchange."""
        self._collector_of(node).lost(node, code, message)

    def _collector_of(self, node: str) -> SealedCollector:
        if node not in self._group_of:
            raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"{node} is in no group of the roster")
        return self._groups[self._group_of[node]]

    def close_exchange(self) -> None:
        """All who were asked have answered, or the deadline passed; groups before a later step were not asked."""
        if self._showing:
            for group in self._showing:
                del self._asked[group]  # made anew: who did not take the first model is not asked to train
            self._shown |= self._showing
            self._showing = set()
        elif self._asked:
            step = min((wanted.step for wanted in self._asked.values()), key=_ORDER.index)
            for group in [group for group, wanted in self._asked.items() if wanted.step == step]:
                del self._asked[group]
                self._groups[group].close_exchange()
        self._harvest()

    def end_message(self, next_model_sha256: bytes) -> fleet_pb2.End:
        """One end for all: a node of a group that opened nothing is not among the contributors."""
        ends = [collector.end_message(next_model_sha256) for collector in self._groups.values() if collector.last_slot]
        committed = [end for end in ends if end.committed]
        return fleet_pb2.End(
            slot=ends[0].slot,
            committed=bool(committed),
            failure="" if committed else ends[0].failure,
            next_model_sha256=next_model_sha256,
            contributors=sorted(name for end in committed for name in end.contributors),
        )

    def close(self) -> None:
        """Release all journals."""
        for collector in self._groups.values():
            collector.close()
