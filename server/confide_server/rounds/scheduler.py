"""The scheduler: one thread for each open run, supervised, so that no run waits for another one's people or faults.

    Scheduler     begins a driver for each run that is open and does not rest; looks after them
    driver.py     takes one run from offer to last round
    turns.py      which runs work with which nodes at the same time
    cohort.py     who takes part
    round_loop.py one round after the other
    exchange.py   questions to nodes, proven answers back

An exception in one run never reaches another one's thread. What can pass (a full disk, a Flower run that lapsed) is
tried again by the run's own driver.
"""

import logging
import shutil
import threading
from collections.abc import Mapping

from confide.errors import StateError
from confide.sealing.roles import Collector

from confide_server.rounds.driver import RETRY_S, Parts, RunDriver
from confide_server.rounds.retrying import wait_s
from confide_server.rounds.turns import Turns
from confide_server.state.runs.journal import OpenRun

MAX_OPEN = 64
"""Runs that have a driver at a time; further ones are not offered before one of them has ended or rests."""
log = logging.getLogger(__name__)


class Scheduler:
    """Drives all open runs of one coordinator."""

    def __init__(self, parts: Parts, *, retry_s: float = RETRY_S) -> None:
        self._parts = parts
        self.retry_s = retry_s
        self._down = threading.Event()
        self._turns = Turns(parts.max_concurrent_runs, parts.clock)
        self._drivers: dict[str, RunDriver] = {}
        self._collectors: dict[str, Collector] = {}
        """Of open runs, resting ones too: what is in them outlives a driver, and no second one could open its files."""
        self._troubles: dict[str, str] = {}
        self._said = ""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="run-scheduler", daemon=True)

    def start(self) -> None:
        """Begin, with the runs that an earlier process left open first."""
        self._thread.start()

    def stop(self) -> None:
        """Leave open runs as they are, end all threads, and release the runs' files to whoever goes on with them."""
        self._down.set()
        self._parts.book.notify()
        if self._thread.is_alive():
            self._thread.join()
        for driver in list(self._drivers.values()):
            driver.join()
        for collector in self._collectors.values():
            collector.close()
        self._collectors.clear()

    @property
    def threads(self) -> Mapping[str, bool]:
        """Name of each thread that should live, and whether it does; a run's ends with its run."""
        drivers = (driver.thread.name for driver in list(self._drivers.values()) if driver.thread.is_alive())
        return {self._thread.name: self._thread.is_alive(), **dict.fromkeys(drivers, True)}

    def forget(self, run_id: str) -> None:
        """Remove what the protocol keeps in files of a run that has ended."""
        shutil.rmtree(self._parts.folder / run_id, ignore_errors=True)

    def _loop(self) -> None:
        """Never ends but by `stop`: whatever goes wrong is said, and tried again later and later."""
        failures = 0
        while not self._down.is_set():
            try:
                self._reap()
                run = self._next()
                self.note_trouble("", "")
                if run is not None and not self._down.is_set():
                    self._begin(run)
                failures = 0
            except Exception as error:
                failures += 1
                pause_s, named = wait_s(error, failures, self.retry_s), isinstance(error, StateError)
                log.error("%s: %s Trying again in %.0f s.", type(error).__name__, error, pause_s, exc_info=not named)
                self.note_trouble("", f"{type(error).__name__}: {error}")
                self._down.wait(pause_s)

    def _next(self) -> OpenRun | None:
        if len(self._drivers) >= MAX_OPEN:
            self._down.wait(1.0)
            return None
        return self._parts.book.next_run(timeout_s=1.0, besides=tuple(self._drivers))

    def _reap(self) -> None:
        for run_id, driver in list(self._drivers.items()):
            if not driver.thread.is_alive():
                del self._drivers[run_id]
                self._turns.give_back(run_id)
                self.note_trouble(run_id, "")

    def _begin(self, run: OpenRun) -> None:
        self._drivers[run.run_id] = RunDriver(
            self._parts,
            run,
            turns=self._turns,
            collectors=self._collectors,
            down=self._down,
            retry_s=lambda: self.retry_s,
            on_trouble=self.note_trouble,
        )
        self._drivers[run.run_id].start()

    def note_trouble(self, run_id: str, trouble: str) -> None:
        """Why a run ("": all of them) is not driven just now; "" when that has passed."""
        with self._lock:
            self._troubles.pop(run_id, None)
            if trouble:
                self._troubles[run_id] = trouble
            said = next(iter(self._troubles.values()), "")
            if said != self._said:
                self._said = said
                self._parts.on_trouble(said)
