"""The coordinator's process: the product's own database, run journal, driver, rounds and collector, in this thread."""

import threading
from collections.abc import Callable
from pathlib import Path

from confide.files import private_folder
from confide.identity.roster import RosterStore
from confide.sealing.roles import Collector
from confide_server.rounds.driver import Parts, RunDriver
from confide_server.rounds.turns import Turns
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.events import Happening
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.service import Submission

from confide_simulations.chaos.boundary import Boundaries
from confide_simulations.chaos.consortium import COORDINATOR, Consortium, Ground
from confide_simulations.chaos.disk import close_files
from confide_simulations.chaos.network import SimulatedLink
from confide_simulations.chaos.timeline import Timeline

RETRY_S = 5.0


class _Down(threading.Event):
    """Set when the process is to end, which it never is; who waits for it lets virtual time go by."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self._timeline = timeline

    def wait(self, timeout: float | None = None) -> bool:
        self._timeline.sleep(timeout or 0.0)
        return False


class SimulatedCoordinator:
    """Started anew after each death, on what is left of its folder."""

    def __init__(
        self,
        folder: Path,
        consortium: Consortium,
        ground: Ground,
        *,
        timeline: Timeline,
        boundaries: Boundaries,
        clock: Callable[[], float],
        full: Callable[[], bool],
        link: Callable[[], SimulatedLink],
        on_event: Callable[[str, Happening], None],
        on_trouble: Callable[[str, str], None],
    ) -> None:
        """clock: Unix seconds. link: a new process's. on_event: told each event once it is durable.

        on_trouble: told (run id, why it cannot be driven just now).
        """
        self.folder, self._consortium = private_folder(folder), consortium
        self.database = ground.database
        self.database.replace(ground.empty_database)
        RosterStore(folder / "roster.json", consortium.root.public).accept(consortium.signed_roster, now=clock())
        self._timeline, self._boundaries, self._clock, self._full = timeline, boundaries, clock, full
        self._make_link, self._on_event, self._on_trouble = link, on_event, on_trouble
        self.up = self.done = False
        """No run is open any more."""
        self._link: SimulatedLink | None = None

    def book(self) -> RunJournal:
        """The run journal over what the folder and the database hold now."""
        self.database.begin(self._clock, self._boundaries, self._full)
        roster = RosterStore(self.folder / "roster.json", self._consortium.root.public)
        book = RunJournal(self.database, CheckpointStore(str(private_folder(self.folder / "checkpoints"))), roster)
        book.listeners = [self._on_event]
        return book

    def look_for(self, node: str) -> None:
        """A node started, or lost its connection."""
        if self._link is not None:
            self._link.look_for(node)

    def submit(self, submission: Submission) -> str:
        """Returns the run id."""
        return self.book().submit(submission)

    def drive(self) -> None:
        """The process begins, and drives open runs until none is left. Raises Killed when it dies."""
        self._boundaries.born(COORDINATOR)
        self.up = True
        book, self._link = self.book(), self._make_link()
        parts = Parts(
            book=book,
            link=self._link,
            roster=RosterStore(self.folder / "roster.json", self._consortium.root.public),
            name=COORDINATOR,
            identity=self._consortium.keys[COORDINATOR],
            folder=private_folder(self.folder / "runs"),
            clock=lambda: self._timeline.now,
        )
        turns, collectors, down = Turns(parts.max_concurrent_runs), dict[str, Collector](), _Down(self._timeline)
        while (run := book.next_run(timeout_s=0.0)) is not None:
            driver = RunDriver(
                parts,
                run,
                turns=turns,
                collectors=collectors,
                down=down,
                retry_s=lambda: RETRY_S,
                on_trouble=self._on_trouble,
            )
            driver._until_it_ends()
        self.done = True

    def die(self) -> None:
        """The process is gone; its files stay."""
        self.up = False
        if self._link is not None:
            self._link.closed = True
        self.database.close()
        close_files(self.folder)
