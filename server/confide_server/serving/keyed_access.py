"""Keys, rates and budgets from the database, on every route alike.

A key's rights are read from the database at most KEPT_S before they are used; whether it is still good and what its
budget allows is read in the transaction that reserves. Rates and how many at once are this process's own.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass

from confide_server.quota import source_of
from confide_server.serving.access import Asked, Caller, Charge, Spent
from confide_server.serving.failures import Refused
from confide_server.serving.rates import Rate, Rates
from confide_server.state import serving_requests
from confide_server.state.database import Database
from confide_server.state.group_writer import GroupWriter
from confide_server.state.serving_keys import KeyRefused, key_of
from confide_server.state.serving_requests import Begun
from confide_server.state.serving_tables import ServingKey

log = logging.getLogger(__name__)

KEPT_S = 1.0
MAX_KEPT = 4096
GUESSES_PER_MINUTE = 20
"""Wrong keys of one address that are told so; those beyond it are told to wait."""


@dataclass
class _Known:
    """A key that was good at `read_at`."""

    row: ServingKey
    caller: Caller
    read_at: float
    requests: Rate
    tokens: Rate


class KeyedAccess:
    """Used from one event loop."""

    def __init__(self, database: Database, server: str, *, keeps_text: bool = False) -> None:
        """server: this serving folder's name in the records; requests that it left open are closed now."""
        self.keeps_text = keeps_text
        self._database, self._server = database, server
        self.interrupted = serving_requests.close_interrupted(database, server)
        self._writer = GroupWriter(database)
        self._known: dict[str, _Known] = {}
        self._ids: dict[str, _Known] = {}
        self._under_way: Counter[str] = Counter()
        self._guesses = Rates(GUESSES_PER_MINUTE)

    async def caller(self, authorization: str | None, address: str) -> Caller:
        """Who asks. Raises Refused: 401; 429 for an address that has tried too many keys that are none."""
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise _unauthorized("send a key as `Authorization: Bearer confide-...`; this server's operator makes them")
        try:
            return (await self._find(key.strip())).caller
        except KeyRefused as error:
            if error.kind == "unknown":
                self._count_guess(address)
            raise _unauthorized(str(error)) from None

    def _count_guess(self, address: str) -> None:
        """Raises Refused where there were too many. A good key is never kept waiting by them.

        Behind one address may be a whole organization, or a proxy with everybody, and one machine with an old key.
        """
        guesses = self._guesses.of(source_of(address))
        wait_s = guesses.wait_s(1)
        if wait_s:
            raise Refused(
                429, "too many wrong keys came from your address; wait", kind="rate_limit_error", retry_after_s=wait_s
            )
        guesses.take(1)

    async def _find(self, key: str) -> _Known:
        name, now = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(), time.monotonic()
        known = self._known.get(name)
        if known is not None and now - known.read_at < KEPT_S:
            return known
        try:
            row = await asyncio.to_thread(key_of, self._database, key)
        except KeyRefused:
            self._known.pop(name, None)
            raise
        caller = Caller(row.key_id, row.name, tuple(row.models), tuple(row.collections), metrics=row.metrics)
        earlier = self._ids.get(row.key_id)
        if earlier is None:
            requests, tokens = Rate(row.requests_per_minute), Rate(row.tokens_per_minute)
        else:
            requests, tokens = earlier.requests, earlier.tokens
        if len(self._known) >= MAX_KEPT:
            self._known.clear()
        fresh = _Known(row, caller, now, requests, tokens)
        self._known[name] = self._ids[row.key_id] = fresh
        return fresh

    def arrived(self, caller: Caller) -> None:
        """Count a request, whatever becomes of it. Raises Refused (429)."""
        known = self._ids[caller.key_id]
        wait_s = known.requests.wait_s(1)
        if wait_s:
            raise _slow_down(f"this key may make {known.row.requests_per_minute} requests a minute", wait_s)
        known.requests.take(1)

    async def begin(self, caller: Caller, asked: Asked) -> Charge:
        """Reserve what a request may cost, on disk. Raises Refused (429, 401)."""
        known = self._ids[caller.key_id]
        self._check_rates(known, asked.reserved)
        self._under_way[caller.key_id] += 1
        known.tokens.take(asked.reserved)
        charge = KeyedCharge(self, known, asked.reserved)
        request = serving_requests.Request(
            server=self._server,
            key_id=caller.key_id,
            route=asked.route,
            model=asked.model,
            base_sha256=asked.base_sha256,
            adapter_sha256=asked.adapter_sha256,
            reserved=asked.reserved,
            text=asked.text,
        )
        begun = self._writer.submit(lambda session: serving_requests.begin(session, request))
        try:
            charge.begun = await asyncio.shield(asyncio.wrap_future(begun))
        except KeyRefused as error:
            charge.free()
            raise _refused(error) from None
        except asyncio.CancelledError:
            # Who asked has gone while it was written: what the writer is yet to write is settled behind it.
            begun.add_done_callback(self._settle_behind)
            charge.free()
            raise
        except BaseException:
            charge.free()
            raise
        return charge

    def _settle_behind(self, begun: "Future[Begun]") -> None:
        if begun.exception() is None:
            self.write_end(begun.result(), _NOTHING)

    def _check_rates(self, known: _Known, tokens: int) -> None:
        row = known.row
        if row.at_once and self._under_way[row.key_id] >= row.at_once:
            raise _slow_down(f"{row.at_once} requests of this key are under way, which is as many as may", 1.0)
        wait_s = known.tokens.wait_s(tokens)
        if wait_s:
            said = f"this key may use {row.tokens_per_minute} tokens a minute, and the request may take {tokens}"
            raise _slow_down(said, wait_s)

    def write_end(self, begun: Begun, spent: Spent) -> None:
        """Have the end of a request written; nobody waits for it."""
        written = self._writer.submit(
            lambda session: serving_requests.end(
                session,
                begun,
                prompt_tokens=spent.prompt_tokens,
                completion_tokens=spent.completion_tokens,
                outcome=spent.outcome,
                text=spent.text,
            ),
            patient=True,
        )
        written.add_done_callback(lambda end: _say_if_lost(begun, end))

    def ended(self, key_id: str) -> None:
        """One request of the key fewer is under way."""
        self._under_way[key_id] -= 1
        if not self._under_way[key_id]:
            del self._under_way[key_id]

    def close(self) -> None:
        """Write what is yet to be written."""
        self._writer.close()


def _say_if_lost(begun: Begun, end: "Future[None]") -> None:
    error = end.exception()
    if error is not None:
        said = "the end of request %s of key %s was not written, and it stays charged with %d tokens: %s"
        log.error(said, begun.request_id, begun.key_id, begun.reserved, error)


_NOTHING = Spent(0, 0, "cancelled")


class KeyedCharge:
    """A request whose cost is reserved in the database and in the key's rates."""

    begun: Begun | None = None

    def __init__(self, access: KeyedAccess, known: _Known, reserved: int) -> None:
        self._access, self._known, self._reserved = access, known, reserved
        self._open = True

    def settle(self, spent: Spent) -> None:
        """Charge what it took; again is fine."""
        if self._open and self.begun is not None:
            self._access.write_end(self.begun, spent)
            self._known.tokens.take(spent.prompt_tokens + spent.completion_tokens)
            self.free()

    def free(self) -> None:
        """Give back the place and the tokens that the rate had reserved."""
        if self._open:
            self._open = False
            self._known.tokens.take(-self._reserved)
            self._access.ended(self._known.row.key_id)


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, code="invalid_api_key")


def _slow_down(message: str, wait_s: float) -> Refused:
    return Refused(
        429, f"{message}; try again later", kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=wait_s
    )


def _refused(error: KeyRefused) -> Refused:
    if error.kind == "budget":
        return Refused(
            429, str(error), kind="insufficient_quota", code="insufficient_quota", retry_after_s=error.retry_after_s
        )
    return _unauthorized(str(error))
