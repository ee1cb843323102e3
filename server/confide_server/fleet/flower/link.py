"""Flower's SuperLink state and Fleet app, fed from the consortium's roster.

link = FleetLink(folder)            # fleet.db and objects/ below it
link.admit(roster)                  # nodes of the roster, and nobody else, may connect
serve(link.app())                   # uvicorn with TLS
session = link.open_session(None)   # one live Flower run
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.errors import StateError
from confide.files import private_folder
from confide.identity.roster import Role, Roster
from confide.proto.fleet_pb2 import ProgressReport, RunEnds
from confide.secrecy import private_file
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from fastapi import FastAPI
from flwr.common.constant import HEARTBEAT_PATIENCE, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NodeStatus
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.config_loader import get_federation_manager
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError
from starlette.middleware import Middleware

from confide_server.fleet.flower.binding import Binding
from confide_server.fleet.flower.in_flight import InFlight
from confide_server.fleet.flower.nodes import KnownNodes, Node
from confide_server.fleet.flower.request_filter import RequestFilter
from confide_server.fleet.flower.routes import OnReport, TellEnds, router
from confide_server.fleet.flower.session import FleetSession
from confide_server.fleet.flower.store import FileObjectStore
from confide_server.fleet.flower.translation import Translation

HEARTBEAT_S = 30.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Presence:
    """How a node of the roster stands to this process."""

    online: bool
    """It sent a heartbeat within the last minute."""
    activations: int
    """How often it connected since this process started; what it pulled before its last connection is lost."""


@dataclass(frozen=True)
class Standing:
    """When a node of the roster was there, over restarts of this process."""

    online: bool
    last_seen: float
    """Unix seconds of its last heartbeat, about; 0: never."""
    stopped: bool
    """It said goodbye: its operator stopped it."""


class FleetLink:
    """The one owner of Flower's state in this process."""

    def __init__(self, folder: Path) -> None:
        """Open or create the state. Raises StateError when fleet.db is damaged."""
        logging.getLogger("flwr").setLevel(logging.ERROR)
        logging.getLogger("flwr").handlers.clear()  # its own would say everything a second time, in colours
        self._folder = private_folder(folder)
        self._database = folder / "fleet.db"
        self.nodes = KnownNodes()
        self.board = InFlight(self.nodes)
        self.on_report: OnReport = lambda node, report: None
        """Takes what a node reports of its work, on the fleet port's threads."""
        self.run_ends: TellEnds = lambda run_ids: RunEnds()
        """How these runs ended, for a node that missed it."""
        self._spool = private_folder(folder / "replies")
        for left_over in self._spool.iterdir():
            left_over.unlink()
        private_file(self._database)
        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        objects.store_instance = FileObjectStore(folder / "objects")
        self._factory = LinkStateFactory(str(self._database), get_federation_manager(is_simulation=False), objects)
        self._presence: tuple[float, dict[int, bool]] = (0.0, {})
        try:
            self.state: LinkState = self._factory.state()
            weakref.finalize(self, _release, self.state)  # also when nobody releases it
            self.state.get_node_info()
        except DatabaseError as error:
            raise StateError(
                f"{self._database} is damaged ({error.orig}). It holds only connections and nothing of a run: move it "
                "away and start again; nodes reconnect by themselves."
            ) from error

    def admit(self, roster: Roster) -> None:
        """Let exactly the roster's active nodes connect; a revoked one is cut off at once."""
        nodes: list[Node] = []
        for member in roster.active(Role.NODE):
            key = load_der_public_key(bytes.fromhex(member.fleet_key))
            assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - the roster checked it
            pem = public_key_to_bytes(key)
            node_id = self.state.get_node_id_by_public_key(pem) or self._register(pem, member.name)
            if node_id:
                nodes.append(Node(member.name, node_id, pem, key))
        self.board.set_nodes(nodes)
        known = {node.node_id for node in nodes}
        infos = self.state.get_node_info()
        self.nodes.connected_before(info.node_id for info in infos if info.last_activated_at)
        for info in infos:
            if info.node_id not in known and info.status != NodeStatus.UNREGISTERED:
                self.state.delete_node(NOOP_FLWR_AID, info.node_id)

    def _register(self, public_key: bytes, name: str) -> int:
        try:
            return self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, HEARTBEAT_S, name=name)
        except ValueError:
            # Flower never takes a key back that was unregistered; neither does a roster bring a revoked member back.
            log.warning("node %s comes with a fleet key that was withdrawn before; it needs a new one", name)
            return 0

    def presence(self) -> dict[str, Presence]:
        """How each node of the roster stands, by name; at most half a second old."""
        when, online = self._presence
        if time.monotonic() - when > 0.5 or not when:
            infos = self.state.get_node_info(statuses=[NodeStatus.ONLINE])
            online = {info.node_id: True for info in infos}
            self._presence = (time.monotonic(), online)
        return {
            node.name: Presence(online.get(node.node_id, False), self.nodes.activations(node.node_id))
            for node in self.nodes.all()
        }

    def standing(self) -> dict[str, Standing]:
        """How each node of the roster stands, by name."""
        infos = {info.node_id: info for info in self.state.get_node_info()}
        now = time.time()
        found: dict[str, Standing] = {}
        for node in self.nodes.all():
            info = infos.get(node.node_id)
            if info is None or not info.last_activated_at:
                found[node.name] = Standing(online=False, last_seen=0.0, stopped=False)
                continue
            online, stopped = info.status == NodeStatus.ONLINE, self.nodes.has_left(node.node_id)
            # Flower remembers until when it would have waited for a heartbeat; after a goodbye, when that came.
            heard = info.online_until - (0.0 if stopped else HEARTBEAT_PATIENCE * HEARTBEAT_S)
            found[node.name] = Standing(online, now if online else min(now, heard), stopped and not online)
        return found

    def open_session(self, previous_run_id: int | None, reply_limit_bytes: int) -> FleetSession:
        """The Flower run of this id if it is still alive, else a new one (the old one is stopped).

        reply_limit_bytes: what a node's one reply may hold at most.
        """
        return FleetSession(self.state, self.board, self._spool, previous_run_id, reply_limit_bytes)

    def app(self) -> FastAPI:
        """The app for the public port: fleet routes only, no docs."""

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.board.serve_on(asyncio.get_running_loop())
            yield

        app = FastAPI(
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            lifespan=lifespan,
            middleware=[  # outermost first
                Middleware(RequestFilter, nodes=self.nodes),
                Middleware(Translation),
                Middleware(Binding, nodes=self.nodes),
            ],
        )
        app.state.linkstate_factory = self._factory
        app.state.board = self.board
        app.state.on_report = self._report
        app.state.run_ends = self._run_ends
        app.include_router(router)
        return app

    def _report(self, node: str, report: ProgressReport) -> None:
        self.on_report(node, report)

    def _run_ends(self, run_ids: Sequence[str]) -> RunEnds:
        return self.run_ends(run_ids)

    def close(self) -> None:
        """End all waiting calls."""
        self.board.stop()

    def release(self) -> None:
        """Close fleet.db, when nothing serves or drives any more."""
        _release(self.state)


def _release(state: LinkState) -> None:
    engine = getattr(state, "_engine", None)
    if isinstance(engine, Engine):
        engine.dispose()
