"""How many connections a port takes: in all, and from one address, so that one machine cannot keep members out.

What is over the limit is closed before a byte of it is read, and descriptors for files, the database and the other port
stay free whatever arrives (`room_for`).

>>> quota = Quota(most=2, of_one_address=1)
>>> first = quota.admit("10.0.0.1")
>>> quota.admit("10.0.0.1") is None, quota.admit("10.0.0.2") is None, quota.admit("10.0.0.3") is None
(True, False, True)
>>> first.release(); quota.admit("10.0.0.1") is None
False
"""

import errno
import ipaddress
import logging
import resource
import socket
import threading
import time
from collections import Counter

from confide.errors import StateError

log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 256
"""For files, the database, checkpoints and what the process has open at its start."""
HANDSHAKE_TIMEOUT_S = 10.0
"""From the connection to the end of TLS's handshake."""
WRITE_TIMEOUT_S = 120.0
"""How long a peer may leave what was sent to it unread: 8 MiB at 70 kB/s."""
SAYING_EVERY_S = 60.0
"""Refused connections are logged no more often, whoever asks however often."""


class Quota:
    """Counts the open connections of one port. Used from several threads."""

    def __init__(self, *, most: int, of_one_address: int) -> None:
        self.most = most
        self.of_one_address = of_one_address
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._refused = 0
        self._say_at = time.monotonic()

    def admit(self, address: str) -> "Ticket | None":
        """A ticket for one more connection from this address; None when it is one too many."""
        source = source_of(address)
        with self._lock:
            if self._open.total() >= self.most or self._open[source] >= self.of_one_address:
                self._refuse(source)
                return None
            self._open[source] += 1
        return Ticket(self, source)

    def _refuse(self, source: str) -> None:
        self._refused += 1
        now = time.monotonic()
        if now < self._say_at:
            return
        log.warning(
            "%d connections refused, last %s: %d of at most %d of one address are open, %d of at most %d in all",
            *(self._refused, source, self._open[source], self.of_one_address, self._open.total(), self.most),
        )
        self._refused, self._say_at = 0, now + SAYING_EVERY_S

    def release(self, source: str) -> None:
        """One connection fewer from there."""
        with self._lock:
            self._open[source] -= 1
            if not self._open[source]:
                del self._open[source]

    def __len__(self) -> int:
        with self._lock:
            return self._open.total()


class Ticket:
    """One open connection's place."""

    def __init__(self, quota: Quota, source: str) -> None:
        self._quota: Quota | None = quota
        self._source = source

    def release(self) -> None:
        """Give the place back; again is fine."""
        quota, self._quota = self._quota, None
        if quota is not None:
            quota.release(self._source)


def source_of(address: str) -> str:
    """Who counts as one: an IPv4 address, and of IPv6 a /64, which one machine can fill with addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def room_for(wanted: int) -> int:
    """How many descriptors for connections there may be, at most `wanted`: the process's limit is raised if it can be.

    Raises StateError where fewer than 16 would be left.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else wanted + RESERVED_DESCRIPTORS
    needed = min(most, wanted + RESERVED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    room = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - RESERVED_DESCRIPTORS)
    if room < 16:
        raise StateError(
            f"this process may open {soft} files, and {RESERVED_DESCRIPTORS} are kept for its own; raise the limit "
            "(`ulimit -n`, LimitNOFILE) to 2048"
        )
    return room


def listening(bind: str, port: int, what: str, remedy: str) -> socket.socket:
    """A listening socket. Raises StateError naming `what` it was for and the remedy."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bind, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        cause = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise StateError(
            f"cannot listen on {bind}:{port} for {what}: {cause}. Stop the other process, or {remedy}."
        ) from error
    return listener
