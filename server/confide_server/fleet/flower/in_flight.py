"""Which node may do what right now: instructions that are out, their objects, and the replies that come in.

Flower's handlers let every registered node read any object by its hash, answer in another's name, and confirm or
delete another's messages. The routes ask here first. Everything is in memory: after a restart no old message is out.
"""

import asyncio
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from flwr.proto.message_pb2 import Message, ObjectTree

from confide_server.fleet.flower.nodes import KnownNodes, Node

SHORTEST_HOLD_S, LONGEST_HOLD_S = 2.0, 20.0
"""How long a poll of a node without mail is held: instructions arrive at once, and idle nodes cost little. An agent
waits for an answer for 30 s."""
EMPTY_POLLS_A_SECOND = 50
"""As many as are answered with nothing, however many nodes there are: of more than a hundred each is held longer."""


@dataclass
class _Open:
    """One instruction that is out."""

    node_id: int
    objects: frozenset[str]
    reply_limit_bytes: int
    letter: tuple[Message, ObjectTree] | None
    """What a poll takes, once; then None."""
    reply_id: str | None = None
    session_id: str = ""
    missing: set[str] = field(default_factory=set)
    received_bytes: int = 0


class InFlight:
    """Shared by the routes (event loop and threads) and the run driver (a thread)."""

    def __init__(self, nodes: KnownNodes) -> None:
        self.nodes = nodes
        self._changed = threading.Condition()
        self._open: dict[str, _Open] = {}
        self._of_node: dict[int, set[str]] = {}
        """Which of them are out to each node."""
        self._unread: dict[int, dict[str, None]] = {}
        """Which of those no poll has taken yet, in order."""
        self._complete: dict[str, str] = {}
        """Reply's object id by message id, of those that are answered completely, in order."""
        self._sessions: dict[str, str] = {}
        self._waiting: dict[int, asyncio.Event] = {}
        self._held = 0
        self._mail: set[int] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Replace the known nodes. What a node that left still has open is closed."""
        with self._changed:
            self.nodes.replace(nodes)
            for message_id in [one for one, entry in self._open.items() if self.nodes.name_of(entry.node_id) is None]:
                self._close(message_id)
            self._changed.notify_all()

    # --- instructions that are out

    def post(
        self,
        message: Message,
        tree: ObjectTree,
        node_id: int,
        objects: Collection[str],
        reply_limit_bytes: int,
    ) -> None:
        """An instruction goes out: its node may take it once, read its objects and answer it once."""
        message_id = tree.object_id
        with self._changed:
            self._open[message_id] = _Open(node_id, frozenset(objects), reply_limit_bytes, (message, tree))
            self._of_node.setdefault(node_id, set()).add(message_id)
            self._unread.setdefault(node_id, {})[message_id] = None

    def take(self, node_id: int) -> tuple[Message, ObjectTree] | None:
        """The oldest instruction that is out to the node and that no poll has taken; None without one."""
        with self._changed:
            unread = self._unread.get(node_id)
            if not unread:
                return None
            entry = self._open[next(iter(unread))]
            letter, entry.letter = entry.letter, None
            self._read(node_id, next(iter(unread)))
            if node_id in self._unread:
                self._mail.add(node_id)
            return letter

    def _read(self, node_id: int, message_id: str) -> None:
        unread = self._unread.get(node_id, {})
        unread.pop(message_id, None)
        if not unread:
            self._unread.pop(node_id, None)

    def close(self, message_id: str) -> str | None:
        """Nothing more is expected for this instruction; returns its reply's object id if one had begun."""
        with self._changed:
            return self._close(message_id)

    def _close(self, message_id: str) -> str | None:
        entry = self._open.pop(message_id, None)
        if entry is None:
            return None
        self._sessions.pop(entry.session_id, None)
        self._complete.pop(message_id, None)
        self._read(entry.node_id, message_id)
        theirs = self._of_node[entry.node_id]
        theirs.discard(message_id)
        if not theirs:
            del self._of_node[entry.node_id]
        return entry.reply_id

    def _note_complete(self, message_id: str, entry: _Open) -> None:
        if entry.reply_id is not None and not entry.missing:
            self._complete[message_id] = entry.reply_id
        else:
            self._complete.pop(message_id, None)  # it was announced anew
        self._changed.notify_all()

    def may_read(self, node_id: int, object_id: str) -> bool:
        """Whether the object belongs to an instruction that is out to this node."""
        with self._changed:
            return any(object_id in self._open[message_id].objects for message_id in self._of_node.get(node_id, ()))

    def is_to(self, node_id: int, message_id: str) -> bool:
        """Whether this instruction is out to this node."""
        with self._changed:
            entry = self._open.get(message_id)
            return entry is not None and entry.node_id == node_id

    # --- replies that come in

    def begin_reply(self, message_id: str, reply_id: str, session_id: str, missing: Collection[str]) -> None:
        """A reply was announced; `missing` are the objects that have yet to come."""
        with self._changed:
            entry = self._open.get(message_id)
            if entry is None:
                return
            self._sessions.pop(entry.session_id, None)
            entry.reply_id, entry.session_id, entry.missing = reply_id, session_id, set(missing)
            self._sessions[session_id] = message_id
            self._note_complete(message_id, entry)

    def may_push(self, node_id: int, session_id: str, object_id: str, size: int) -> bool:
        """Whether this node may push this object in this session, within the reply's limit; counts its bytes."""
        with self._changed:
            entry = self._open.get(self._sessions.get(session_id, ""))
            if entry is None or entry.node_id != node_id or object_id not in entry.missing:
                return False
            entry.received_bytes += size
            return entry.received_bytes <= entry.reply_limit_bytes

    def pushed(self, session_id: str, object_id: str) -> None:
        """An object of a reply is stored."""
        with self._changed:
            message_id = self._sessions.get(session_id, "")
            entry = self._open.get(message_id)
            if entry is not None:
                entry.missing.discard(object_id)
                self._note_complete(message_id, entry)

    def wait_answer(self, message_ids: Collection[str], timeout_s: float) -> tuple[str, str] | None:
        """(message id, reply's object id) of one that is answered completely; None at the timeout."""
        end, wanted = time.monotonic() + timeout_s, frozenset(message_ids)
        with self._changed:
            while True:
                for message_id, reply_id in self._complete.items():
                    if message_id in wanted:
                        return message_id, reply_id
                left = end - time.monotonic()
                if left <= 0 or self._closing:
                    return None
                self._changed.wait(left)

    # --- polls that wait for mail

    def serve_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop on which polls wait."""
        self._loop = loop

    def mail(self, node_id: int) -> None:
        """Something is there for the node: end its waiting poll."""
        self._mail.add(node_id)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, node_id)

    def _wake(self, node_id: int) -> None:
        event = self._waiting.get(node_id)
        if event is not None:
            event.set()

    @property
    def hold_s(self) -> float:
        """How long a poll without mail is held at this moment."""
        return min(LONGEST_HOLD_S, max(SHORTEST_HOLD_S, self._held / EMPTY_POLLS_A_SECOND))

    async def wait_mail(self, node_id: int, hold_s: float | None = None) -> bool:
        """Whether something is there for the node, waiting up to `hold_s` for it. Runs on the event loop.

        A poll that was held for an earlier connection of the node finds nothing: what it took would be lost.
        """
        connection = self.nodes.activations(node_id)
        event = self._waiting.setdefault(node_id, asyncio.Event())
        event.clear()
        if node_id not in self._mail and not self._closing:
            self._held += 1
            try:
                async with asyncio.timeout(self.hold_s if hold_s is None else hold_s):
                    await event.wait()
            except TimeoutError:
                return False
            finally:
                self._held -= 1
        if self.nodes.activations(node_id) != connection:
            return False
        found = node_id in self._mail
        self._mail.discard(node_id)
        return found

    def stop(self) -> None:
        """End all waiting: the process is going down."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._loop is not None and not self._loop.is_closed():
            for node_id in list(self._waiting):
                self._loop.call_soon_threadsafe(self._wake, node_id)
