"""Who answers, and what is under way between askers and nodes. Nothing of it can be read here, and little is kept.

Cards lie on disk, so that a restarted coordinator knows them; inquiries and answers are in memory until they were
handed over.

Guarantee: what is held is bounded, whatever members do: inquiries of all and of one asker, what waits for one node, the
size of each, and the time that each may take. An answer goes to the asker of the inquiry only, and comes from the node
that it was addressed to only.
"""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confide.errors import ConfideError, IdentityError, StateError, TransportError
from confide.files import write_atomic
from confide.identity.roster import Role, RosterStore
from confide.inquiries.documents import IndexCard, opened
from confide.text import identifier
from confide.transport.inquiries import MOST_ANSWER_BYTES, MOST_CARD_BYTES, MOST_INQUIRY_BYTES

MOST_OPEN = 32
MOST_OPEN_OF_ASKER = 4
MOST_NODES = 64
MOST_WAITING = 32
"""For one node."""
MOST_LISTENERS = 48
"""Each holds a thread of the control port."""
MOST_DEADLINE_S = 120
POLL_S = 0.5
NOT_LISTENING, BUSY, LATE = "NOT_LISTENING", "BUSY", "LATE"
_NODES = frozenset({Role.NODE})


@dataclass
class _Open:
    """One asker's question to several nodes. replies: (node, sealed answer, failure)."""

    asker: str
    left: set[str]
    replies: "queue.Queue[tuple[str, bytes, str]]" = field(default_factory=queue.Queue)


@dataclass(frozen=True)
class _Delivery:
    """What waits for a node, or was handed to it."""

    node: str
    sealed: bytes
    asked: _Open


class _Listener:
    """One node's open call."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[str] = queue.Queue(MOST_WAITING)
        self.replaced = threading.Event()


class InquiryRelay:
    """Shared by the control port's threads."""

    def __init__(
        self,
        roster: RosterStore,
        folder: Path,
        on_inquiry: Callable[[str, Sequence[str]], None] = lambda asker, nodes: None,
    ) -> None:
        """folder: where cards lie. on_inquiry: told who asks whom, before anybody is asked."""
        self._roster, self._folder, self._on_inquiry = roster, folder, on_inquiry
        self._lock = threading.Lock()
        self._listeners: dict[str, _Listener] = {}
        self._open: list[_Open] = []
        self._deliveries: dict[str, _Delivery] = {}

    def publish(self, node: str, card: bytes) -> None:
        """Keep a node's card. Raises IdentityError or TransportError for another's, or one that is none."""
        if len(card) > MOST_CARD_BYTES:
            raise TransportError(f"a card of {len(card)} bytes came; at most {MOST_CARD_BYTES} are taken")
        found = opened(IndexCard, card, self._roster.current, "node", _NODES)
        if found.node != node:
            raise IdentityError(f"{node} published the card of {found.node}; a node publishes its own")
        write_atomic(self._folder / f"{node}.json", card)

    def cards(self, most_bytes: int) -> list[bytes]:
        """Of members that were not revoked, in order of their names; as many as fit."""
        found, size = [], 0
        for path in sorted(self._folder.glob("*.json")):
            try:
                self._roster.current.member(path.stem)
                card = path.read_bytes()
            except (ConfideError, OSError):
                continue
            size += len(card) + 16
            if size > most_bytes:
                break
            found.append(card)
        return found

    def ask(
        self, asker: str, sealed: Mapping[str, bytes], deadline_s: float, active: Callable[[], bool]
    ) -> Iterator[tuple[str, bytes, str]]:
        """(node, sealed answer, failure) as they come, until all came, the deadline passed, or the asker went away."""
        _check_sizes(sealed, deadline_s)
        asked = _Open(asker, set(sealed))
        self._admit(asked)
        try:
            self._on_inquiry(asker, list(sealed))
            for node, box in sealed.items():
                self._hand_over(_Delivery(node, box, asked))
            yield from self._replies(asked, time.monotonic() + deadline_s, active)
        finally:
            self._forget(asked)

    def listen(self, node: str, active: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
        """(delivery, sealed inquiry) for a node, for as long as it listens and no newer call of it does."""
        own = self._listening(node)
        try:
            while active() and not own.replaced.is_set():
                try:
                    number = own.waiting.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                with self._lock:
                    delivery = self._deliveries.get(number)
                if delivery is not None:  # else its asker went away
                    yield number, delivery.sealed
        finally:
            with self._lock:
                if self._listeners.get(node) is own:
                    del self._listeners[node]

    def answer(self, node: str, number: str, sealed: bytes, failure: str) -> None:
        """A node's answer. One that comes late, or to what it was not sent, is dropped; the node learns nothing of it.

        Raises TransportError for one that is too large.
        """
        if len(sealed) > MOST_ANSWER_BYTES:
            raise TransportError(f"an answer of {len(sealed)} bytes came; at most {MOST_ANSWER_BYTES} are carried")
        with self._lock:
            delivery = self._deliveries.get(number)
            if delivery is None or delivery.node != node:
                return
            del self._deliveries[number]
        delivery.asked.replies.put((node, sealed, identifier(failure) if failure else ""))

    def _admit(self, asked: _Open) -> None:
        with self._lock:
            own = sum(one.asker == asked.asker for one in self._open)
            if own >= MOST_OPEN_OF_ASKER or len(self._open) >= MOST_OPEN:
                raise StateError(
                    f"{own} inquiries of {asked.asker} and {len(self._open)} in all are under way; at most "
                    f"{MOST_OPEN_OF_ASKER} and {MOST_OPEN} may be. Try again when they have ended"
                )
            self._open.append(asked)

    def _hand_over(self, delivery: _Delivery) -> None:
        number = secrets.token_hex(16)
        with self._lock:
            listener = self._listeners.get(delivery.node)
            failure = NOT_LISTENING if listener is None else ""
            if listener is not None:
                self._deliveries[number] = delivery
                try:
                    listener.waiting.put_nowait(number)
                except queue.Full:
                    del self._deliveries[number]
                    failure = BUSY
        if failure:
            delivery.asked.replies.put((delivery.node, b"", failure))

    def _replies(self, asked: _Open, deadline: float, active: Callable[[], bool]) -> Iterator[tuple[str, bytes, str]]:
        while asked.left and active():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                for node in sorted(asked.left):
                    yield node, b"", LATE
                return
            try:
                reply = asked.replies.get(timeout=min(POLL_S, left_s))
            except queue.Empty:
                continue
            asked.left.discard(reply[0])
            yield reply

    def _forget(self, asked: _Open) -> None:
        with self._lock:
            self._open.remove(asked)
            for number in [number for number, one in self._deliveries.items() if one.asked is asked]:
                del self._deliveries[number]

    def _listening(self, node: str) -> _Listener:
        own = _Listener()
        with self._lock:
            earlier = self._listeners.get(node)
            if earlier is not None:
                earlier.replaced.set()
            elif len(self._listeners) >= MOST_LISTENERS:
                raise StateError(f"{MOST_LISTENERS} nodes wait for inquiries already, and no more can")
            self._listeners[node] = own
        return own


def _check_sizes(sealed: Mapping[str, bytes], deadline_s: float) -> None:
    if not 1 <= len(sealed) <= MOST_NODES:
        raise TransportError(f"an inquiry to {len(sealed)} nodes came; 1 to {MOST_NODES} can be asked at once")
    if not 1 <= deadline_s <= MOST_DEADLINE_S:
        raise TransportError(f"an inquiry with a deadline of {deadline_s:g} s came; 1 to {MOST_DEADLINE_S} are allowed")
    longest = max(map(len, sealed.values()))
    if longest > MOST_INQUIRY_BYTES:
        raise TransportError(f"a sealed inquiry of {longest} bytes came; at most {MOST_INQUIRY_BYTES} are carried")
