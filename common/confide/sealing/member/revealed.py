"""What a node has revealed for, node-wide over all its runs: which model, over which list of names.

A journal in the node's state folder, never a secret:

    list      {data, names}             a list that comes for the first time; counted from 0
    revealed  {data, run, slot, model, list}   before the shares leave

`data` is the group of data sets: what was revealed of one says nothing about another. `Revealed.on(data)` is what a
run's SealedMember gets.

>>> import tempfile
>>> revealed = Revealed(Path(tempfile.mkdtemp()) / "revealed.jsonl")
>>> memory = revealed.on("records")
>>> memory.reveal(run="r", slot=1, model="m", names=("a", "b", "c"), fewest=3)
>>> memory.check(model="m", names=("a", "b"), fewest=3)
Traceback (most recent call last):
confide.errors.ProtocolFailure: MODEL_REVEALED: this node has revealed for the model m already, ...
"""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import FailureName, ProtocolFailure
from confide.journal import Journal
from confide.sealing.differences import REMEDY, check_split

NAME = "revealed.jsonl"


class Revealed:
    """The journal and what follows from it. One object for all runs of a node: it holds the file."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises StateError when damaged or in use."""
        self._journal = Journal(path)
        self._lock = threading.RLock()
        self._lists: list[tuple[str, frozenset[str]]] = []
        self._models: dict[tuple[str, str], set[int]] = {}
        for event in self._journal:
            self._apply(event)

    @property
    def journal(self) -> Journal:
        """Whose length the node's heights remember, so that an older one put in its place is noticed."""
        return self._journal

    def on(self, data: str) -> "Memory":
        """The memory of one group of data sets."""
        return Memory(self, data)

    def close(self) -> None:
        """Release the file."""
        self._journal.close()

    def lists(self, data: str) -> list[frozenset[str]]:
        """Every list that was revealed for on this data, oldest first."""
        return [names for group, names in self._lists if group == data]

    def of_model(self, data: str, model: str) -> list[frozenset[str]]:
        """Those that were revealed for this model."""
        return [self._lists[number][1] for number in sorted(self._models.get((data, model), ()))]

    def check(self, data: str, *, model: str, names: Collection[str], fewest: int) -> None:
        """Raise MODEL_REVEALED or BLOCK_SPLIT unless a sum over `names` may follow what was revealed."""
        with self._lock:
            self.check_model(data, model, frozenset(names))
            check_split(self.lists(data), names, fewest)

    def check_model(self, data: str, model: str, names: frozenset[str]) -> None:
        """Raise MODEL_REVEALED unless every list that was revealed for this model is this one."""
        with self._lock:
            for known in self.of_model(data, model):
                if known != names:
                    raise _revealed(model, known, names)

    def note(self, data: str, *, run: str, slot: int, model: str, names: Collection[str]) -> None:
        """Remember durably; what is known already is not written again."""
        wanted = frozenset(names)
        with self._lock:
            if (data, wanted) not in self._lists:
                self._write({"event": "list", "data": data, "names": sorted(wanted)})
            number = self._lists.index((data, wanted))
            if number not in self._models.get((data, model), ()):
                event = {"event": "revealed", "data": data, "run": run, "slot": slot, "model": model, "list": number}
                self._write(event)

    def reveal(self, data: str, *, run: str, slot: int, model: str, names: Collection[str], fewest: int | None) -> None:
        """`check`, unless `fewest` is None, and `note`, as one step: two runs cannot reveal between them."""
        with self._lock:
            if fewest is not None:
                self.check(data, model=model, names=names, fewest=fewest)
            self.note(data, run=run, slot=slot, model=model, names=names)

    def _write(self, event: dict[str, Any]) -> None:
        self._journal.append(event)
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        if event["event"] == "list":
            self._lists.append((event["data"], frozenset(event["names"])))
        elif event["event"] == "revealed":
            self._models.setdefault((event["data"], event["model"]), set()).add(event["list"])


@dataclass(frozen=True)
class Memory:
    """A node's memory of one group of data sets, as one run uses it."""

    revealed: Revealed
    data: str

    def check(self, *, model: str, names: Collection[str], fewest: int) -> None:
        """As Revealed.check."""
        self.revealed.check(self.data, model=model, names=names, fewest=fewest)

    def check_split(self, names: Collection[str], fewest: int) -> None:
        """The part of `check` that no model is needed for."""
        check_split(self.revealed.lists(self.data), names, fewest)

    def check_cohort(self, *, model: str, members: Collection[str], fewest: int | None) -> None:
        """Raise MODEL_REVEALED, before training, when a list over `members` could not be signed for this model."""
        if fewest is not None:
            self.revealed.check_model(self.data, model, frozenset(members))

    def reveal(self, *, run: str, slot: int, model: str, names: Collection[str], fewest: int | None) -> None:
        """As Revealed.reveal; durable when it returns."""
        self.revealed.reveal(self.data, run=run, slot=slot, model=model, names=names, fewest=fewest)


def _revealed(model: str, known: frozenset[str], wanted: frozenset[str]) -> ProtocolFailure:
    between = ", ".join(sorted(known ^ wanted)[:8])
    return ProtocolFailure(
        FailureName.MODEL_REVEALED,
        f"this node has revealed for the model {model[:16]} already, over {len(known)} organizations; over "
        f"{len(wanted)} others the difference would show {between}. Only the very same list is signed again. {REMEDY}",
    )
