"""A node's ledger of epochs, whose length its peers remember, and theirs: over all runs (docs/sealing.md, "Rollback").

    heights.log    journal: epoch {run, epoch, ledgers}   one entry before each bundle; `ledgers`: how long the node's
                                                          other journals were, and their heads
                            stopped {reason}              ROLLBACK_DETECTED: no epoch is answered any more
    heights.json   table: by peer, the ledgers of its own that it has shown, shortest first, each as
                            [length, head, its signature]; those before the one that it proved last are dropped

>>> import tempfile; heights = Heights(Path(tempfile.mkdtemp()))
>>> heights.begin("ab" * 16, 1)[0], heights.position()[0]
(1, 1)
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from confide import canonical
from confide.errors import FailureName, ProtocolFailure, StateError
from confide.files import private_folder, write_atomic
from confide.journal import Journal

LOG_NAME, TABLE_NAME = "heights.log", "heights.json"
MOST_HEARD = 64
"""Ledgers of one peer that are kept at most: the oldest ones, and the newest."""
Height = tuple[int, str, str]
"""(length, head, the owner's signature), hex."""


class Ledger(Protocol):
    """A journal of this node's that only grows."""

    def __len__(self) -> int: ...

    @property
    def head(self) -> str:
        """Hash of its last entry, hex."""

    def head_at(self, length: int) -> str:
        """The head when it had `length` entries."""


class Heights:
    """One node's, for all its runs.

    Guarantee: a node whose state folder was restored from a state before an epoch that any of its peers took part in
    answers no epoch any more, in whatever run it meets that peer, as long as the peer keeps its own folder, and however
    many epochs it was asked for meanwhile: what a peer was shown is dropped only once the node has signed a list in an
    epoch in which it was held up to it. Of the other journals one that was restored alone is noticed without any peer.
    """

    def __init__(self, folder: Path, ledgers: Callable[[], Mapping[str, Ledger]] = dict) -> None:
        """ledgers: the node's other journals, by name. Raises StateError when a file is damaged or in use."""
        self._journal = Journal(private_folder(folder) / LOG_NAME)
        self._ledgers = ledgers
        self._path = folder / TABLE_NAME
        self._heard = _read(self._path)
        self._kept: dict[str, tuple[int, str]] = {}
        self.stopped: str | None = None
        for body in self._journal:
            self._apply(body)

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()

    def require_running(self) -> None:
        """Raise ROLLBACK_DETECTED once the node has stopped."""
        if self.stopped is not None:
            raise ProtocolFailure(FailureName.ROLLBACK_DETECTED, self.stopped)

    def begin(self, run_id: str, epoch: int, ledgers: Mapping[str, Ledger] | None = None) -> tuple[int, str]:
        """Note an epoch, durably; returns (length, head) of this ledger, for the bundle.

        ledgers: more journals of the node. Raises ROLLBACK_DETECTED when one is shorter than it was, or another.
        """
        self.require_running()
        held = {**self._ledgers(), **(ledgers or {})}
        for name, (length, head) in self._kept.items():
            found = held.get(name)
            if found is not None and (len(found) < length or found.head_at(length) != head):
                raise ProtocolFailure(
                    FailureName.ROLLBACK_DETECTED,
                    f"the node's {name} had {length} entries when its last epoch began, and has {len(found)} now, or "
                    "others: it was restored from an older state, or replaced. Restore the newest one",
                )
        positions = {name: [len(ledger), ledger.head] for name, ledger in sorted(held.items())}
        self._write(event="epoch", run=run_id, epoch=epoch, ledgers=positions)
        return self.position()

    def position(self) -> tuple[int, str]:
        """(length, head) of this ledger."""
        return len(self._journal), self._journal.head

    def hear(self, shown: Mapping[str, Height]) -> None:
        """Remember what peers show of theirs, where it is longer than any heard of before; durable once for all."""
        longer = {name: height for name, height in shown.items() if height[0] > self._longest(name)}
        for name, height in longer.items():
            self._heard[name] = (*self._heard.get(name, ())[: MOST_HEARD - 1], height)
        if longer:
            self._save()

    def proved(self, shown: Mapping[str, int]) -> None:
        """These peers have signed a list in an epoch in which all that is kept of them was held up to them.

        shown: how long each one's ledger was then. What is older is of no use any more.
        """
        kept = {
            name: tuple(one for one in self._heard[name] if one[0] >= length)
            for name, length in shown.items()
            if name in self._heard
        }
        fewer = {name: ledgers for name, ledgers in kept.items() if ledgers and ledgers != self._heard[name]}
        if fewer:
            self._heard |= fewer
            self._save()

    def _longest(self, peer: str) -> int:
        return self._heard[peer][-1][0] if peer in self._heard else -1

    def _save(self) -> None:
        table = {name: [list(one) for one in kept] for name, kept in self._heard.items()}
        write_atomic(self._path, canonical.encode(table))

    def of(self, peer: str) -> Height:
        """The longest ledger that this peer has shown."""
        return self._heard[peer][-1]

    def earlier(self, peer: str) -> tuple[Height, ...]:
        """The shorter ones that are kept, shortest first."""
        return self._heard[peer][:-1]

    def agrees(self, length: int, head: str) -> bool:
        """Whether this node's ledger had that head at that length."""
        return length <= len(self._journal) and self._journal.head_at(length) == head

    def check(self, peer: str, length: int, head: str) -> None:
        """Raise ROLLBACK_DETECTED, for good, when a peer knows a longer or another ledger of this node.

        length, head: which this node has signed.
        """
        own = len(self._journal)
        if self.agrees(length, head):
            return
        what = f"{peer} has seen this node's ledger at length {length}; here it has {own}" + (
            "" if length > own else " and says something else at that length"
        )
        self._write(
            event="stopped", reason=f"{what}. The disk was restored from an older state: restore the newest one"
        )
        self.require_running()

    def _write(self, **body: Any) -> None:
        self._journal.append(body)
        self._apply(body)

    def _apply(self, body: dict[str, Any]) -> None:
        match body["event"]:
            case "epoch":
                self._kept |= {name: (length, head) for name, (length, head) in body["ledgers"].items()}
            case "stopped":
                self.stopped = body["reason"]


def _read(path: Path) -> dict[str, tuple[Height, ...]]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_bytes())
        return {str(name): tuple(map(_height, _heights(kept))) for name, kept in document.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise StateError(f"{path} is damaged: {error}; restore it from a backup that is not older") from error


def _heights(kept: Any) -> list[Any]:
    """Of one peer; an earlier release kept the longest alone."""
    return [kept] if isinstance(kept[0], int) else list(kept)


def _height(one: Any) -> Height:
    length, head, signed = one
    return int(length), str(head), str(signed)
