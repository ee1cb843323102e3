"""Signed heads of a run's log of rounds, as they came: what the coordinator can be held to.

heads = Heads(folder)
heads.take(head_of_message(run_id, end.head), roster)      # raises TwoHeads
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from confide import canonical, journal
from confide.files import write_atomic
from confide.identity.roster import RosterStore
from confide.rounds.heads import SignedHead, TwoHeads, contradiction, parse_head, verify_head

HEARD = "heads.log"
"""What the agent heard at the end of rounds, a journal."""
CHECKED = "checked-heads.log"
"""What `confide node verify-run` was shown, a journal: the agent may run beside it."""
PROOF = "equivocation.json"
"""In the run's folder: two heads that convict the coordinator."""


class Heads:
    """The heads of one run in its folder. Each call opens and closes its journal: heads are rare."""

    def __init__(self, folder: Path, name: str = HEARD) -> None:
        self._folder = folder
        self._name = name

    def take(self, head: SignedHead, roster: RosterStore) -> None:
        """Verify and keep a head. Raises IdentityError, REVOKED, or TwoHeads where it contradicts one kept before.

        What contradicts is kept too, and the proof beside it, before this raises.
        """
        verify_head(roster.current, head)
        known = [one for one in kept_heads(self._folder) if one.size == head.size]
        if not any(one.root_sha256 == head.root_sha256 for one in known):
            with self._journal() as log:
                log.append(head.model_dump(mode="json"))
        for one in known:
            if (found := contradiction(one, head)) is not None:
                keep_proof(self._folder, found, roster)
                raise found

    @contextlib.contextmanager
    def _journal(self) -> Iterator[journal.Journal]:
        log = journal.Journal(self._folder / self._name)
        try:
            yield log
        finally:
            log.close()


def kept_heads(folder: Path) -> list[SignedHead]:
    """Every head that is kept of a run, as it came. Raises StateError when a journal is damaged."""
    bodies = [body for name in (HEARD, CHECKED) for body in journal.read(folder / name)[0]]
    return [parse_head(body) for body in bodies]


def keep_proof(folder: Path, found: TwoHeads, roster: RosterStore) -> Path:
    """Write what convicts the coordinator into the run's folder; returns where."""
    path = folder / PROOF
    if not path.exists():
        write_atomic(path, canonical.encode(found.proof(json.loads(roster.signed))))
    return path
