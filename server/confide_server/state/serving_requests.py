"""Who asked which model when: written before the answer begins, completed when it ends.

Guarantee: what a key may spend is reserved on disk before the first token is computed, so that a process that is killed
forgets nothing: its open requests stay charged with all that they could have taken.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from confide.errors import StateError
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from confide_server.state import serving_keys
from confide_server.state.database import Database
from confide_server.state.serving_tables import ServingRequest


@dataclass(frozen=True)
class Request:
    """What is written at the beginning."""

    server: str
    key_id: str
    route: str
    model: str
    base_sha256: str
    adapter_sha256: str
    reserved: int
    text: str | None = None


@dataclass(frozen=True)
class Begun:
    """A request under way, as far as its end needs to know."""

    request_id: str
    key_id: str
    reserved: int
    began_at: float


def begin(session: Session, request: Request) -> Begun:
    """Reserve and write down. Raises serving_keys.KeyRefused."""
    serving_keys.reserve(session, request.key_id, request.reserved)
    begun = Begun(secrets.token_hex(16), request.key_id, request.reserved, time.time())
    values = {
        "request_id": begun.request_id,
        "server": request.server,
        "key_id": request.key_id,
        "route": request.route,
        "model": request.model,
        "base_sha256": request.base_sha256,
        "adapter_sha256": request.adapter_sha256,
        "began_at": begun.began_at,
        "ended_at": None,
        "reserved_tokens": request.reserved,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "outcome": "open",
        "asked_text": _kept(request.text),
        "answer_text": None,
    }
    session.execute(_INSERT, values)
    return begun


def end(
    session: Session, begun: Begun, *, prompt_tokens: int, completion_tokens: int, outcome: str, text: str | None
) -> None:
    """Charge what it took. A request that has ended already stays as it is."""
    values = {
        "of": begun.request_id,
        "at": time.time(),
        "read": prompt_tokens,
        "written": completion_tokens,
        "how": outcome,
        "text": _kept(text),
    }
    if int(getattr(session.execute(_END, values), "rowcount", 0)) == 1:
        spent = prompt_tokens + completion_tokens
        serving_keys.settle(session, begun.key_id, begun.reserved, spent, begun.began_at)


def _kept(text: str | None) -> str | None:
    """PostgreSQL's texts hold no zero byte, which questions and answers may."""
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")


_INSERT = insert(ServingRequest)
_END = (
    update(ServingRequest)
    .where(ServingRequest.request_id == bindparam("of"), ServingRequest.outcome == "open")
    .values(
        ended_at=bindparam("at"),
        prompt_tokens=bindparam("read"),
        completion_tokens=bindparam("written"),
        outcome=bindparam("how"),
        answer_text=bindparam("text"),
    )
    .execution_options(synchronize_session=False)
)


def close_interrupted(database: Database, server: str) -> int:
    """At a start: requests that the last process of this server left open. They stay charged as reserved."""
    open_ = (ServingRequest.server == server) & (ServingRequest.outcome == "open")
    with database.transaction() as session:
        result = session.execute(update(ServingRequest).where(open_).values(outcome="interrupted"))
        return int(getattr(result, "rowcount", 0))


def newest(database: Database, limit: int = 50, key_id: str | None = None) -> Sequence[ServingRequest]:
    """Requests, newest first."""
    query = select(ServingRequest).order_by(ServingRequest.began_at.desc()).limit(limit)
    if key_id is not None:
        query = query.where(ServingRequest.key_id == key_id)
    with database.reading() as session:
        return list(session.scalars(query))


def forget_before(database: Database, days: float) -> int:
    """Delete requests older than so many days, texts included; how many. What they cost stays counted."""
    if not days >= 0:
        raise StateError(f"give 0 or more days; got {days}")
    old = (ServingRequest.began_at < time.time() - days * 86400.0) & (ServingRequest.outcome != "open")
    with database.transaction() as session:
        return int(getattr(session.execute(delete(ServingRequest).where(old)), "rowcount", 0))
