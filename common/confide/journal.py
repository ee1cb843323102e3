"""An append-only, hash-chained, fsynced file of JSON lines.

Each line is {"body": ..., "previous": hash, "hash": hash}; `hash` covers `previous` and the body's canonical
bytes. Audit logs, the seal log and the privacy ledger are journals.

Guarantee: an edit, a reordering or a removal other than at the very end is detected when the journal is
opened. A removal at the end (a restored older disk) is detected only by someone who remembers `length` and
`head`; peers do (docs/sealing.md, rollback). A line cut short by a crash was never acknowledged and is dropped.

>>> import tempfile; path = Path(tempfile.mkdtemp()) / "log"
>>> journal = Journal(path); _ = journal.append({"event": "a"}); journal.close()
>>> [entry["event"] for entry in Journal(path)]
['a']
"""

import json
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import RetryableError, StateError
from confide.files import fsync_folder
from confide.running import hold

GENESIS = "0" * 64


def _chain(previous: str, body: bytes) -> str:
    return canonical.hash_fields("confide/v1/journal", bytes.fromhex(previous), body).hex()


def _verified(path: Path, data: bytes) -> tuple[list[bytes], str, int]:
    """The encoded bodies, the head and the number of good bytes; raises StateError where the chain breaks."""
    bodies: list[bytes] = []
    head, good = GENESIS, 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            body, previous, stated = canonical.encode(entry["body"]), entry["previous"], entry["hash"]
            sound = previous == head and stated == _chain(previous, body)
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise StateError(
                f"{path} line {number} does not follow from the line before it: the journal was edited, reordered "
                "or damaged. Restore it from a backup that is not older, or ask your auditor."
            )
        bodies.append(body)
        head, good = stated, good + len(line) + 1
    return bodies, head, good


def heads(bodies: Iterable[dict[str, Any]]) -> list[str]:
    """The head after 0, 1, 2, ... of the bodies, for checking what somebody remembers: heads(bodies)[length]."""
    result = [GENESIS]
    for body in bodies:
        result.append(_chain(result[-1], canonical.encode(body)))
    return result


class Journal:
    """One journal file, held exclusively by this process while open."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal and verify its chain.

        Raises StateError if damaged, Held if in use, RetryableError where a new one cannot be made durable.
        """
        self.path = path
        self._lock = threading.Lock()
        self._descriptor = hold(path, f"{path} is in use by another process; stop that one first.")
        try:
            self._bodies, self.head, good = _verified(path, path.read_bytes())
        except StateError:
            os.close(self._descriptor)  # else the next attempt would say "in use"
            raise
        # Also when its owner forgets to close it: a descriptor of its own does not end with the object.
        self._release = weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, good)
        os.lseek(self._descriptor, good, os.SEEK_SET)
        if not self._bodies:
            self._settle()

    def _settle(self) -> None:
        """Make a new file's name durable; also one that a process made which then ended before it had done so."""
        try:
            fsync_folder(self.path.parent)  # there is nothing yet in the file itself
        except OSError as error:
            self.close()
            raise RetryableError(f"cannot make {self.path}: {error.strerror}. Free space on its disk.") from error

    def __len__(self) -> int:
        return len(self._bodies)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, list(self._bodies))

    def entry(self, number: int) -> dict[str, Any]:
        """The entry of this number, counted from 1. Raises IndexError."""
        if number < 1:
            raise IndexError(f"entries are counted from 1; {number} was asked for")
        found: dict[str, Any] = json.loads(self._bodies[number - 1])
        return found

    def head_at(self, length: int) -> str:
        """The head when the journal had `length` entries; GENESIS for 0."""
        head = GENESIS
        for body in self._bodies[:length]:
            head = _chain(head, body)
        return head

    def append(self, body: dict[str, Any], *, durable: bool = True) -> str:
        """Append and return the new head. When this returns, the entry survives a power cut.

        durable=False: it survives a crash of this process at once, and a power cut after the next durable entry.
        """
        with self._lock:
            encoded = canonical.encode(body)
            new_head = _chain(self.head, encoded)
            # The canonical encoding of {"body": ..., "hash": ..., "previous": ...}, with the body encoded once.
            line = b'{"body":%b,"hash":"%b","previous":"%b"}\n' % (encoded, new_head.encode(), self.head.encode())
            start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(self._descriptor, view) :]
                if durable:
                    os.fsync(self._descriptor)
            except OSError as error:
                os.ftruncate(self._descriptor, start)
                os.lseek(self._descriptor, start, os.SEEK_SET)
                raise RetryableError(
                    f"cannot append to {self.path}: {error.strerror}. Free space; nothing was lost."
                ) from error
            self._bodies.append(encoded)
            self.head = new_head
            return new_head

    def close(self) -> None:
        """Release the file. Once more changes nothing; appending then fails."""
        self._release()
        self._descriptor = -1


def read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Verify a journal without holding it (for display while its owner runs): (bodies, head)."""
    bodies, head, _ = _verified(path, path.read_bytes() if path.exists() else b"")
    return [json.loads(body) for body in bodies], head
