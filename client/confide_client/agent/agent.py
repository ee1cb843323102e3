"""The agent: waits for instructions, lets the ClientApp answer them, and never gives up on its coordinator.

A coordinator that cannot be reached, was restarted, or does not know this node yet is tried again, a little later each
time; what it asked before the interruption it asks again, and gets the same reply. SIGTERM or Ctrl-C ends the agent at
once, also in the middle of training: nothing half-done was sent, and everything that counts is on disk already. A full
disk ends nothing: while the audit log cannot be written, what is asked is refused, saying why, and asked again.

It trains in the main thread, one instruction after the other; `receiving` polls beside it, and says meanwhile that the
node is busy to whoever asks for another run.
"""

import contextlib
import logging
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType

from confide.errors import IdentityError, RetryableError, StateError, TransportError
from confide.identity.expiry import DailyWarning, notices
from confide.identity.member import LocalMember
from confide.journal import Journal
from confide.memory import map_big_buffers
from confide.running import Held, mark
from confide.text import line
from flwr.app import Context, RecordDict

from confide_client.agent.app import make_app
from confide_client.agent.control_sync import ControlSync
from confide_client.agent.fleet import FleetLink, FleetRefusal, FleetSettings, RunOver
from confide_client.agent.receiving import Receiver
from confide_client.agent.runtime import NodeRuntime
from confide_client.agent.telling import Teller
from confide_client.audit.log import Audit
from confide_client.runs.loading import trainers_of
from confide_client.runs.run import Node
from confide_client.state import StateFolder

log = logging.getLogger(__name__)

PAUSE_LOOK_S = 0.5
LOOK_S = 1.0
"""How often an agent without a message looks whether it was paused."""
RECONCILE_EVERY_S = 300.0
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 5.0


class Stopped(BaseException):
    """SIGTERM or SIGINT came. Not an Exception: nothing on the way may take it for a failed training."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first SIGTERM or SIGINT into Stopped; later ones no longer disturb the way out."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Agent:
    """One node's agent. `run` returns when the process is told to stop."""

    def __init__(self, state: StateFolder, node: Node | None = None) -> None:
        """node: the parts to work with, when not the ordinary ones. Raises StateError when another agent runs."""
        self._state = state
        self._member: LocalMember = node.member if node else state.member()
        self._audit = node.audit if node else Audit(_exclusive_journal(state))
        parts = node or Node(state=state, member=self._member, audit=self._audit, make_trainer=trainers_of(state))
        self._runtime = NodeRuntime(parts)
        self._teller = Teller(parts.progress, self._member, state.progress)
        self._app = make_app(lambda _: self._runtime)
        self._errands = ControlSync(state, self._member)
        self._warning = DailyWarning(partial(notices, state.root))
        self._complaint = self._refusal = ""

    @property
    def coordinator(self) -> str:
        """host:port. Raises StateError when it is not known."""
        address = self._state.settings.coordinator or self._member.membership.fleet_address
        if not address:
            raise StateError("no coordinator is known; set one with `confide node init FOLDER --coordinator HOST:PORT`")
        return address

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        map_big_buffers()
        settings = FleetSettings(
            coordinator=self.coordinator,
            fleet_key=self._member.fleet_key(),
            ca_pem=self._member.ca_certificate_path.read_text(encoding="utf-8"),
            node_id_path=self._state.fleet_node,
            proxy=self._state.settings.proxy,
        )
        self._audit.note_when_there_is_room("agent started", coordinator=settings.coordinator)
        reason = "error"
        try:
            with stoppable():
                self._errands.start()
                self._teller.start()
                self._serve_forever(settings)
        except Stopped as stopped:
            reason = str(stopped)
        finally:
            self._teller.stop()
            self._errands.stop()
            self._audit.note_when_there_is_room("agent stopped", reason=reason)
            self._note(connected=False, running=False)
            self._runtime.close()
            self._audit.close()

    def _serve_forever(self, settings: FleetSettings) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            self._warning.look()
            self._wait_while_paused()
            try:
                with FleetLink(settings) as link:
                    self._connected(settings.coordinator)
                    retry_s = FIRST_RETRY_S
                    self._teller.send = link.report
                    self._serve(link)
            except (TransportError, IdentityError, RetryableError) as error:
                self._teller.send = None
                self._disconnected(error)
            time.sleep(retry_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the returns of many nodes
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    def _serve(self, link: FleetLink) -> None:
        reconcile_at = 0.0
        with Receiver(link, busy=self._runtime.busy, open_runs=lambda: self._runtime.open_runs) as receiver:
            while not self._state.pause():
                if time.monotonic() >= reconcile_at:
                    self._reconcile(link)
                    reconcile_at = time.monotonic() + RECONCILE_EVERY_S
                try:
                    message = receiver.next(LOOK_S)
                    if message is not None:
                        context = Context(message.metadata.run_id, link.node_id, {}, RecordDict(), {})
                        link.send(self._app(message, context))
                except RunOver as over:
                    log.info("dropped: %s", over)
                    reconcile_at = 0.0

    def _reconcile(self, link: FleetLink) -> None:
        """At every connection, and now and then: a run may have ended while this node was away or busy."""
        self._warning.look()
        try:
            self._runtime.reconcile(link.run_ends)
        except FleetRefusal as error:
            log.info("the coordinator does not say which runs have ended: %s", error)
        except RetryableError as error:
            log.warning("runs that have ended are settled when there is room: %s", error)

    def _wait_while_paused(self) -> None:
        """Between two instructions, without a connection: the coordinator sees this node as away, and runs wait."""
        said = self._state.pause()
        if not said:
            return
        self._teller.send = None
        self._audit.note_when_there_is_room(
            "paused", by=line(said.get("by", ""), 64), reason=line(said.get("reason", ""))
        )
        self._note(connected=False, running=True, complaint="paused by its operator")
        while self._state.pause():
            time.sleep(PAUSE_LOOK_S)
        self._audit.note_when_there_is_room("resumed")

    def _connected(self, coordinator: str) -> None:
        log.info("connected to %s as %s", coordinator, self._member.name)
        self._complaint = self._refusal = ""
        self._audit.note_when_there_is_room("connected", coordinator=coordinator)
        self._note(connected=True, running=True)

    def _disconnected(self, error: Exception) -> None:
        if str(error) == self._refusal:
            return
        self._refusal = str(error)
        complaint = self._explained(error)
        if complaint != self._complaint:
            log.warning("waiting for the coordinator: %s", complaint)
            self._complaint = complaint
            self._note(connected=False, running=True, complaint=complaint)

    def _explained(self, error: Exception) -> str:
        """A fleet port that refuses a node does not say why: what has ended here, or the control service, may."""
        if not isinstance(error, IdentityError):
            return str(error)
        over = [notice.text for notice in notices(self._state.root, time.time()) if notice.over]
        return "; ".join(over) or self._errands.refusal() or str(error)

    def _note(self, **facts: object) -> None:
        """For `confide node status`, which is told of it later where the disk is full."""
        try:
            self._state.note_agent(**mark(), name=self._member.name, coordinator=self.coordinator, **facts)
        except RetryableError as error:
            log.warning("the agent's status was not written: %s", error)


def _exclusive_journal(state: StateFolder) -> Journal:
    try:
        return Journal(state.audit)
    except Held as error:
        raise StateError(f"an agent is running on {state.root} already; stop that one first") from error
