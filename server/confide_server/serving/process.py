"""The serving process: a base model, its adapters by alias, keys, one port. Started by `confide serve`.

    run(Settings(state=Path("serving"), base=Path("models/smollm2")))

Guarantee: without TLS nothing but this machine reaches the port, unless the operator says so; two processes never serve
one folder; aliases that are changed while it runs hold within POLL_S, for requests that begin after that.
"""

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from confide.errors import ConfideError, ModelError, StateError
from confide.files import private_folder, write_atomic
from confide.running import hold

from confide_server.bounded_http import BoundedServer
from confide_server.quota import Quota, listening, room_for
from confide_server.serving.access import Access, OpenAccess
from confide_server.serving.adapters import AdapterStore
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.documents import Documents
from confide_server.serving.endpoint.app import Limits, Parts, build_app
from confide_server.serving.keyed_access import KeyedAccess
from confide_server.serving.port import BASE, Engine
from confide_server.state import serving_aliases
from confide_server.state.database import Database
from confide_server.state.serving_aliases import Standing

log = logging.getLogger(__name__)

POLL_S = 0.5
RETRY_S = 30.0
"""After so long an alias that could not be made ready is tried again, as when an engine elsewhere was down."""
KEPT_LOADED = 4
"""Adapters that stay loaded after their last alias was pointed elsewhere."""
WRITES_WELL = 1_000_000_000
"""Parameters from which on a model's own words stand beside an answer unless the operator says otherwise."""
MAX_NAME = 64
"""Of a model, as the records hold it."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_GRACE_S = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an endpoint serves.

    upstream: URL of an engine elsewhere (vLLM); else the base model is loaded here. upstream_key_file holds its key.
    name: the alias of the base model itself. embedder: folder of a sentence encoder, served as embedder_name.
    library: folder of documents (`confide rag`), and the model folder by which its collections are embedded.
    library_reranker: folder of the cross-encoder with which collections were calibrated, if any.
    library_model: the alias that chooses what is quoted from them; "": the embedder does.
    library_prose: the alias that also says in its own words, unverified, what is quoted; "": none does; None: that of
    library_model, if it is large enough to write well.
    certificate, key: PEM files of TLS. plain: without TLS also beyond this machine (behind a proxy that has it).
    keys: whether keys are asked for. keep_text: whether questions and answers are kept in the database.
    """

    state: Path
    base: Path
    name: str = ""
    upstream: str = ""
    upstream_key_file: Path | None = None
    embedder: Path | None = None
    embedder_name: str = "embedder"
    library: Path | None = None
    library_embedder: Path | None = None
    library_reranker: Path | None = None
    library_model: str = ""
    library_prose: str | None = None
    bind: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    plain: bool = False
    keys: bool = True
    keep_text: bool = False
    database: str = ""
    rows: int = 16
    cache_tokens: int = 32768
    waiting: int = 256
    connections: int = 512
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Raise StateError for what would be open to others."""
        local = self.bind in LOOPBACK
        if (self.certificate is None) != (self.key is None):
            raise StateError("TLS needs both, --certificate and --key; give the other one too")
        if not local and self.certificate is None and not self.plain:
            raise StateError(
                f"{self.bind} is reached from other machines; give --certificate and --key, or --plain-http if a proxy "
                "in front of this has TLS"
            )
        if (self.library is None) != (self.library_embedder is None):
            raise StateError("documents need both, --library and --library-embedder; give the other one too")
        if self.library_model and (self.library is None or self.upstream):
            raise StateError("--library-model chooses among documents (--library), by a model in this process")
        if self.library_prose and (self.library is None or self.upstream):
            raise StateError("--library-prose goes with answers from documents (--library), by a model in this process")
        for name, option in ((self.base_alias, "--name"), (self.embedder_name, "--embedder-name")):
            if len(name) > MAX_NAME:
                raise StateError(f"a model's name has at most {MAX_NAME} characters; give {name!r} another by {option}")
        if not local and not self.keys:
            raise StateError(f"without keys only this machine may ask, and {self.bind} is reached from others")

    @property
    def base_alias(self) -> str:
        """The name under which the base itself is asked."""
        return self.name or self.base.resolve().name

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names under which it may be asked. On all addresses without a name: any."""
        if not self.hosts and self.bind not in LOOPBACK:
            return frozenset()
        return frozenset(host.lower() for host in self.hosts) | LOOPBACK | {self.bind}


def open_database(state: Path, url: str = "", *, flushed: bool = True) -> Database:
    """The endpoint's database, in its state folder unless a URL names another. flushed: see Database."""
    private_folder(state)
    return Database(url or f"sqlite:///{state.resolve() / 'serving.db'}", flushed=flushed)


class Serving:
    """All parts of a running endpoint."""

    def __init__(self, settings: Settings) -> None:
        """Load and open everything; nothing listens yet. Raises ConfideError naming what does not fit."""
        settings.check()
        self.settings = settings
        self.catalogue = Catalogue()
        with contextlib.ExitStack() as opened:
            private_folder(settings.state)
            refusal = f"an endpoint serves from {settings.state} already; stop it first, or use another --state"
            opened.callback(os.close, hold(settings.state / ".running", refusal))
            self._tls = _tls(settings)
            # A killed process forgets nothing; a loss of power may take the last requests' records with it.
            self.database = open_database(settings.state, settings.database, flushed=False)
            opened.callback(self.database.close)
            self.access: Access = OpenAccess()
            if settings.keys:
                keyed = KeyedAccess(self.database, _server_name(settings.state), keeps_text=settings.keep_text)
                opened.callback(keyed.close)
                self.access = keyed
            self.engine = _engine(settings)
            self.store = AdapterStore(settings.state / "adapters", settings.base)
            self._opened = opened.pop_all()
        self.base_alias = settings.base_alias
        self._seen = -1
        self._try_again_at = math.inf
        self._idle: list[str] = []
        """Loaded adapters that no alias stands for, in the order in which they were left."""
        self._load_embedder()
        self._library = self._documents()
        self.server: BoundedServer | None = None

    def _load_embedder(self) -> None:
        if self.settings.embedder is not None:
            from confide_server.serving.engines.embedding import LocalEmbedder

            self.catalogue.embedders[self.settings.embedder_name] = LocalEmbedder(self.settings.embedder)

    def _documents(self) -> Documents | None:
        settings = self.settings
        if settings.library is None or settings.library_embedder is None:
            return None
        from confide_server.serving.cited_answers import LibraryDocuments, ModelWriter, ProseWriter

        chooser, teller = settings.library_model, settings.library_prose
        if teller is None:
            teller = chooser if self.engine.parameters >= WRITES_WELL else ""
        return LibraryDocuments(
            settings.library,
            settings.library_embedder,
            ModelWriter(lambda: self.catalogue.find(chooser)) if chooser else None,
            settings.library_reranker,
            ProseWriter(lambda: self.catalogue.find(teller)) if teller else None,
        )

    async def refresh(self) -> None:
        """Make the catalogue what the database says. An adapter that does not load leaves its alias as it was."""
        newest, standings = await asyncio.to_thread(serving_aliases.current, self.database)
        if newest == self._seen and time.monotonic() < self._try_again_at:
            return
        if self.base_alias not in {standing.alias for standing in standings}:
            self.catalogue.point(Target(self.base_alias, self.engine, BASE))
        pointed = [await self._point(standing) for standing in standings]
        self._try_again_at = math.inf if all(pointed) else time.monotonic() + RETRY_S
        known = {standing.alias for standing in standings} | {self.base_alias}
        for alias in {target.alias for target in self.catalogue.targets()} - known:
            self.catalogue.forget(alias)
        self._seen = newest
        await self._retire()

    async def _retire(self) -> None:
        """Let go of adapters that no alias stands for, but for the newest few: a rollback finds them loaded."""
        self._idle = [one for one in self._idle if not self.catalogue.uses(one)]
        loaded = self.engine.load().adapters
        self._idle += [one for one in loaded if one not in self._idle and not self.catalogue.uses(one)]
        for adapter in self._idle[:-KEPT_LOADED]:
            try:
                await self.engine.remove_adapter(adapter)
            except ConfideError as error:
                log.info("%s", error)
                continue
            self._idle.remove(adapter)

    async def _point(self, standing: Standing) -> bool:
        """False where it is worth another try: what is unfit stays so, and its owner reads in the log why."""
        target = self.catalogue.find(standing.alias)
        if target is not None and target.adapter == standing.adapter_sha256:
            return True
        try:
            await self._ready(standing)
        except Exception as error:  # one unfit adapter keeps no other alias from being followed
            known = isinstance(error, ConfideError)
            log.error("alias %s: %s", standing.alias, error, exc_info=None if known else error)
            return isinstance(error, ModelError)
        self.catalogue.point(Target(standing.alias, self.engine, standing.adapter_sha256))
        log.info("alias %s stands for %s", standing.alias, standing.adapter_sha256[:12] or "the base")
        return True

    async def _ready(self, standing: Standing) -> None:
        """Load what an alias stands for, everything checked again. Raises ConfideError."""
        base = self.engine.base_sha256
        if standing.base_sha256 != base:
            raise ModelError(f"it is for the base model {standing.base_sha256[:12]}; {base[:12]} is served here")
        if standing.adapter_sha256 == BASE or standing.adapter_sha256 in self.engine.load().adapters:
            return
        root = bytes.fromhex(standing.root) if standing.root else None
        folder = await asyncio.to_thread(self.store.verify, standing.adapter_sha256, root)
        await self.engine.add_adapter(standing.adapter_sha256, str(folder))

    async def run(self, ready: Callable[[int], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT. ready: called with the port once requests are taken."""
        settings = self.settings
        listener = listening(settings.bind, settings.port, "serving", "choose another port with --port")
        try:
            await self.engine.check()
            await self.refresh()
            server = self.server = self._http()
            with _until_signal(server):
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                polling = asyncio.create_task(self._poll())
                while not server.started and not serving.done():
                    await asyncio.sleep(0.02)
                if ready is not None and not serving.done():
                    ready(listener.getsockname()[1])
                await serving
                polling.cancel()
                await asyncio.gather(polling, return_exceptions=True)
        finally:
            await self._close(listener)

    async def _close(self, listener: socket.socket) -> None:
        await self.engine.close()
        for embedder in self.catalogue.embedders.values():
            await embedder.close()
        listener.close()
        self._opened.close()

    def _http(self) -> BoundedServer:
        settings = self.settings
        limits = settings.limits
        app = build_app(
            Parts(
                self.catalogue,
                self.access,
                Limits(limits.body_bytes, limits.tokens, limits.seconds, settings.allowed_hosts),
                self._library,
            )
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=16384,
            ws="none",
            lifespan="off",
        )
        room = room_for(settings.connections)
        server = BoundedServer(config, Quota(most=room, of_one_address=room if self._local else max(16, room // 2)))
        config.load()
        config.ssl = self._tls
        return server

    @property
    def _local(self) -> bool:
        return self.settings.bind in LOOPBACK

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
            except ConfideError as error:
                log.error("the aliases cannot be read: %s", error)
            except Exception:  # a task that ends would leave every alias as it is, for ever and unsaid
                log.exception("the aliases could not be followed")


def _engine(settings: Settings) -> Engine:
    if settings.upstream:
        from confide_server.serving.engines.upstream import UpstreamEngine

        return UpstreamEngine(settings.base, settings.upstream, _upstream_key(settings.upstream_key_file))
    from confide_server.serving.engines.adapted_model import AdaptedModel
    from confide_server.serving.engines.local import LocalEngine, Room

    room = Room(rows=settings.rows, tokens=settings.cache_tokens, waiting=settings.waiting)
    return LocalEngine(AdaptedModel(settings.base), room).start()


def _upstream_key(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"the upstream's key {path} cannot be read: {error}") from error


def _server_name(state: Path) -> str:
    """Drawn once for a folder."""
    path = state / "name"
    if not path.exists():
        write_atomic(path, secrets.token_hex(16).encode())
    return path.read_text().strip()[:32]


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.certificate is None or settings.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (ssl.SSLError, OSError) as error:
        raise StateError(
            f"{settings.certificate} and {settings.key} do not serve TLS: {error}; give a PEM certificate with its "
            "chain, and its key without a passphrase"
        ) from error
    return context


@contextlib.contextmanager
def _until_signal(server: uvicorn.Server) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        server.should_exit = True

    for number in numbers:
        with contextlib.suppress(ValueError, RuntimeError):  # a test's thread takes no signals
            loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in numbers:
            with contextlib.suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(number)
