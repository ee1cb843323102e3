"""Where a process may die: between any two things that another process or the next start could see.

    member.*, collector.*        the named moments of the protocol (confide.sealing.crash_points)
    FILE written, FILE synced    before and after a file, or the entries of a folder, reach the disk
    commit, committed            before and after a transaction of the coordinator's database does
    send STEP, sent STEP         before and after the coordinator's question leaves
    reply STEP, replied STEP     before and after a node's answer leaves

SIGKILL is an exception that nothing catches. From then on the process is dead: whatever its `finally` blocks still try
to write durably or to send raises the same again.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.process = process


@dataclass
class Doom:
    """Who dies where: the process, the boundary, and how many times more it passes it."""

    process: str
    boundary: str
    left: int


class Boundaries:
    """Counts who passes what, and kills who is doomed there."""

    def __init__(self, running: Callable[[], str], on_kill: Callable[[str, str], None]) -> None:
        """running: whose code runs just now; "" for the simulation's own. on_kill: told (process, boundary)."""
        self._running, self._on_kill = running, on_kill
        self.dooms: list[Doom] = []
        self.passed: Counter[str] = Counter()
        self._dead: set[str] = set()

    def reached(self, boundary: str) -> None:
        """The process that runs is at a boundary. Raises Killed when it dies there, or is dead already."""
        process = self._running()
        if not process:
            return
        if process in self._dead:
            raise Killed(process)
        self.passed[boundary] += 1
        for doom in self.dooms:
            if doom.process == process and doom.boundary == boundary:
                doom.left -= 1
                if doom.left <= 0:
                    self.dooms.remove(doom)
                    self.kill(process, boundary)

    def kill(self, process: str, boundary: str) -> None:
        """The process, whose code runs, dies now."""
        self._dead.add(process)
        self._on_kill(process, boundary)
        raise Killed(process)

    def born(self, process: str) -> None:
        """It is started again."""
        self._dead.discard(process)
