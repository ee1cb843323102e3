"""A thread that tells what the node is doing: a file for `confide node status`, a signed report for the coordinator.

Nothing waits for it and nothing fails with it. A report is sent when something changed, at most every two seconds, and
otherwise every fifteen; of work that falls between two looks nothing is said.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from confide.errors import ConfideError
from confide.identity.member import LocalMember
from confide.proto import fleet_pb2

from confide_client.progress import Doing, Progress

TELL_EVERY_S = 2.0
TELL_AGAIN_S = 15.0
log = logging.getLogger(__name__)

Send = Callable[[fleet_pb2.ProgressReport], None]


class Teller:
    """Looks at the node's progress while it is started. `send` is set while there is a connection."""

    def __init__(self, progress: Progress, member: LocalMember, path: Path, every_s: float = TELL_EVERY_S) -> None:
        """path: the file for this node's operator."""
        self._progress, self._member, self._path, self._every_s = progress, member, path, every_s
        self.send: Send | None = None
        self._sent: tuple[tuple[object, ...], float] = ((), 0.0)
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End, and leave no file."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._every_s)
        self._path.unlink(missing_ok=True)

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except Exception:  # whatever it is, work goes on without being told
                log.debug("progress was not told", exc_info=True)

    def look(self) -> None:
        """Note and report what is done at this moment."""
        doing = self._progress.now()
        self._note(doing)
        if doing is None:
            self._sent = ((), 0.0)
            return
        # Milliseconds since 1970: it rises over restarts too.
        self._number = max(self._number + 1, time.time_ns() // 1_000_000)
        message = doing.message(self._member.name, self._number)
        # Of what leaves, not of what is done: when a private run's report comes must not tell of its steps either.
        said = (message.run_id, message.phase, message.step)
        before, when = self._sent
        if self.send is None or (said == before and time.monotonic() - when < TELL_AGAIN_S):
            return
        self._sent = (said, time.monotonic())
        body = message.SerializeToString(deterministic=True)
        with contextlib.suppress(ConfideError):
            self.send(fleet_pb2.ProgressReport(progress=body, signature=self._member.identity.sign("progress", body)))

    def _note(self, doing: Doing | None) -> None:
        """Not synced: it is of this moment only."""
        if doing is None:
            self._path.unlink(missing_ok=True)
            return
        document = {"at": time.time(), "run": doing.run_id, "words": doing.words(), "phase": doing.phase.value}
        document |= {"step": doing.step, "steps": doing.steps, "seconds_left": doing.seconds_left}
        temporary = self._path.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(document, file)
        temporary.replace(self._path)
