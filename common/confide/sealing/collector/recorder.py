"""Every change of what the coordinator knows: written to its journal first, then applied."""

from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from confide.journal import Journal
from confide.sealing.collector.state import CollectorState

# A later, durable entry says that they are complete; what a power cut takes of them before that is asked for again.
_GATHERED = {"bundle", "dealings", "upload", "confirmation", "reveal"}


class Recorder:
    """The state and the journal that it is rebuilt from."""

    def __init__(self, path: Path, state: CollectorState) -> None:
        """Open or create the journal and apply what is in it. Raises StateError when damaged or in use."""
        self.state = state
        self.journal = Journal(path)
        for event in self.journal:
            state.apply(event)

    def record(self, event: str, *, parsed: Message | None = None, **fields: Any) -> None:
        """Write and apply one of state.py's events. parsed: the message in `body`, when it is at hand."""
        body = {"event": event, **fields}
        self.journal.append(body, durable=event not in _GATHERED)
        self.state.apply(body, parsed)

    def close(self) -> None:
        """Release the journal."""
        self.journal.close()
