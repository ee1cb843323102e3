"""The run driver: takes one submitted run from offer to last round in a thread of its own, and survives being killed.

Whatever fails for a reason that can pass (a full disk, a Flower run that lapsed) is tried again from the last durable
state; whatever cannot pass ends the run with its name. Guarantee: a round that was reported is durable, and a crash
at any moment loses no reported round.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from confide.errors import ConfideError, StateError
from confide.identity.keys import SigningKey
from confide.identity.roster import RosterStore
from confide.identity.submission import STOPPED, SignedEnd, sign_end
from confide.proto import fleet_pb2
from confide.sealing.factory import make_collector
from confide.sealing.roles import Collector

from confide_server.fleet.port import Link, Session
from confide_server.rounds.cohort import Cohort
from confide_server.rounds.exchange import Courier
from confide_server.rounds.retrying import wait_s
from confide_server.rounds.round_loop import Rounds
from confide_server.rounds.turns import Turn, Turns
from confide_server.state.events import RunFailed, RunFinished, RunStopped
from confide_server.state.runs.journal import OpenRun, RunJournal
from confide_server.state.runs.status import RunStatus
from confide_server.telemetry.logs import about
from confide_server.telemetry.traces import span

RETRY_S = 5.0
SPARE_REPLY_BYTES = 64 << 20
"""A reply may hold this much more than four times the model (masks, shares, wide lanes)."""
log = logging.getLogger(__name__)


class Stopped(Exception):
    """An administrator asked the run to stop."""


class Resting(Exception):
    """An operator lets the run rest; it goes on from here when it is resumed."""


class GoingDown(Exception):
    """The process is to end; the run goes on when it is started again."""


@dataclass(frozen=True)
class Parts:
    """What the driver works with."""

    book: RunJournal
    link: Link
    roster: RosterStore
    name: str
    """The coordinator's, in the roster."""
    identity: SigningKey
    """Signs the end of a run."""
    folder: Path
    """Where collectors keep what they must find again: one folder a run."""
    head: Callable[[str], fleet_pb2.RunHead | None] = lambda run_id: None
    """The signed head of a run's log of rounds (confide_server.state.runs.round_log)."""
    on_trouble: Callable[[str], None] = lambda trouble: None
    """Told why no run is driven, and "" when that has passed."""
    max_concurrent_runs: int = 4
    """Runs that work with nodes at the same time; runs that wait for somebody do not count."""
    clock: Callable[[], float] = time.monotonic
    """By which runs wait: a test's own, where it is to run fast."""
    deadline_factor: float = 1.0
    """Deadlines of the specification times this. Above 1 where nodes take turns on one machine: a simulation."""


class RunDriver:
    """Drives one run until it ends, rests, or the process goes down."""

    def __init__(
        self,
        parts: Parts,
        run: OpenRun,
        *,
        turns: Turns,
        collectors: dict[str, Collector],
        down: threading.Event,
        retry_s: Callable[[], float],
        on_trouble: Callable[[str, str], None],
    ) -> None:
        """collectors: of all open runs; this driver touches its own only. on_trouble: told (run id, why it waits)."""
        self._parts = parts
        self._run_id = run.run_id
        self._first: OpenRun | None = run
        self._turns = turns
        self._collectors = collectors
        self._down = down
        self._retry_s = retry_s
        self._on_trouble = on_trouble
        self.thread = threading.Thread(target=self._loop, name=f"run-{run.run_id[:8]}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def join(self) -> None:
        """Wait for its end; `down` is set before."""
        if self.thread.is_alive():
            self.thread.join()

    def _loop(self) -> None:
        """Whatever can pass is said, and tried again later and later, from the last durable state."""
        with about(run=self._run_id):
            self._until_it_ends()

    def _until_it_ends(self) -> None:
        failures = 0
        while not self._down.is_set():
            try:
                run, self._first = self._first or self._parts.book.open_run(self._run_id), None
                if run is not None:
                    with span("run", run=run.run_id):
                        self._drive(run)
                return
            except GoingDown:
                return
            except Exception as error:
                failures += 1
                pause_s = wait_s(error, failures, self._retry_s())
                log.error(
                    "run %s: %s: %s Trying again in %.0f s.",
                    self._run_id[:8],
                    type(error).__name__,
                    error,
                    pause_s,
                    exc_info=not isinstance(error, StateError),
                )
                self._on_trouble(self._run_id, f"{type(error).__name__}: {error}")
                self._down.wait(pause_s)
            finally:
                self._turns.give_back(self._run_id)

    def _drive(self, run: OpenRun) -> None:
        book = self._parts.book
        try:
            self._run(run)
        except GoingDown:
            raise
        except Resting:
            book.progress.leave(run.run_id)
            book.waits(run.run_id, (), "")
            book.update(run.run_id, detail="rests")
            return
        except StateError as error:
            book.update(run.run_id, detail=f"waiting: {error}")
            raise
        except Exception as error:
            book.fail(run.run_id, error)
        if run.run_id in self._collectors:
            self._collectors.pop(run.run_id).close()

    def _run(self, run: OpenRun) -> None:
        parts = self._parts
        model_bytes = 4 * run.schema.size
        session = parts.link.open_session(run.flower_run_id, 4 * model_bytes + SPARE_REPLY_BYTES)
        try:
            parts.book.update(run.run_id, flower_run_id=str(session.run_id), detail="")
            self._on_trouble(run.run_id, "")
            courier = self._courier(run, session, lambda: self._check(run.run_id))
            closing = self._courier(run, session, self._check_down)
            cohort = Cohort(
                run,
                parts.book,
                parts.link,
                parts.roster,
                courier,
                lambda s: self._pause(run.run_id, s),
                lambda node: self._turns.holder(node, besides=run.run_id),
                parts.clock,
            )
            rounds = Rounds(
                run,
                parts.book,
                parts.roster,
                courier,
                closing,
                cohort,
                self._collector(run),
                lambda s: self._pause(run.run_id, s),
                lambda end: sign_end(parts.identity, parts.name, end),
                self._turn(run),
                parts.head,
            )
            self._to_the_end(run, cohort, rounds)
            session.end()
        finally:
            session.leave()

    def _turn(self, run: OpenRun) -> Turn:
        return Turn(
            self._turns,
            run.run_id,
            priority=lambda: self._parts.book.priority(run.run_id),
            pause=lambda s: self._pause(run.run_id, s),
            say=lambda before: self._say_turn(run.run_id, before),
            clock=self._parts.clock,
        )

    def _say_turn(self, run_id: str, before: Mapping[str, str] | None) -> None:
        """For which nodes the run waits, and how long those say that they need."""
        if before is None:
            self._parts.book.waits(run_id, (), "")
            return
        said = [
            f"{node} works for run {other[:8]}"
            if other
            else f"{node} is busy for about {self._turns.busy_s(node):.0f} s"
            for node, other in before.items()
        ]
        reason = ", ".join(said) or f"{self._parts.max_concurrent_runs} runs are at work, as many as may be"
        self._parts.book.waits(run_id, tuple(before), f"waits for its turn: {reason}")

    def _at_work(self, node: str, run_id: str) -> str:
        return f"works for run {run_id[:8]}" if run_id else f"is busy for about {self._turns.busy_s(node):.0f} s"

    def _courier(self, run: OpenRun, session: Session, check: Callable[[], None]) -> Courier:
        return Courier(
            link=self._parts.link,
            session=session,
            book=self._parts.book,
            run_id=run.run_id,
            roster=lambda: self._parts.roster.current,
            check=check,
            silence_s=run.specification.federation.exchange_deadline_s,
            deadline_factor=self._parts.deadline_factor,
            clock=self._parts.clock,
            on_busy=self._turns.busy,
        )

    def _to_the_end(self, run: OpenRun, cohort: Cohort, rounds: Rounds) -> None:
        book = self._parts.book
        try:
            self._check(run.run_id)
            cohort.gather()
            last = rounds.run_all()
        except Stopped:
            rounds.abandon_open(STOPPED, "an administrator stopped the run")
            rounds.farewell(SignedEnd(run.run_id, STOPPED, *book.stop_order(run.run_id)))
            done = book.committed(run.run_id)
            book.end(run.run_id, RunStatus.STOPPED, RunStopped(round=done), f"stopped after round {done}")
        except StateError:
            raise
        except ConfideError as error:
            log.warning("run %s failed: %s", run.run_id, error)
            rounds.abandon_open(error.code, str(error))
            rounds.farewell(SignedEnd(run.run_id, error.code))
            failed = RunFailed(code=error.code, reason=str(error))
            book.end(run.run_id, RunStatus.FAILED, failed, error.coded)
        else:
            rounds.farewell(SignedEnd(run.run_id, ""))
            finished = RunFinished(rounds=last.round, model_sha256=last.sha256.hex())
            book.end(run.run_id, RunStatus.FINISHED, finished)

    def _collector(self, run: OpenRun) -> Collector:
        # Kept while the run is open: it holds its journal, and a second one could not open it.
        if run.run_id not in self._collectors:
            folder, roster = self._parts.folder / run.run_id, self._parts.roster.current
            self._collectors[run.run_id] = make_collector(run.specification, roster, folder, run.run_id, run.schema)
        return self._collectors[run.run_id]

    def _check_down(self) -> None:
        if self._down.is_set():
            raise GoingDown

    def _check(self, run_id: str) -> None:
        self._check_down()
        if self._parts.book.stop_requested(run_id):
            raise Stopped

    def _pause(self, run_id: str, seconds: float) -> None:
        """Sleep where no question is out: there an operator may let the run rest. What is done is durable."""
        self._down.wait(seconds)
        self._check(run_id)
        if self._parts.book.paused(run_id):
            raise Resting
