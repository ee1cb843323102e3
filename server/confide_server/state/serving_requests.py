"""Who asked which model when: written before the answer begins, completed when it ends.

Guarantee: what a key may spend is reserved on disk before the first token is computed, so that a process that is killed
forgets nothing: its open requests stay charged with all that they could have taken.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from confide.errors import StateError
from sqlalchemy import delete, select, update
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


def begin(session: Session, request: Request) -> str:
    """Reserve and write down; the request's id. Raises serving_keys.KeyRefused."""
    serving_keys.reserve(session, request.key_id, request.reserved)
    request_id = secrets.token_hex(16)
    row = ServingRequest(
        request_id=request_id,
        server=request.server,
        key_id=request.key_id,
        route=request.route,
        model=request.model,
        base_sha256=request.base_sha256,
        adapter_sha256=request.adapter_sha256,
        began_at=time.time(),
        ended_at=None,
        reserved_tokens=request.reserved,
        prompt_tokens=0,
        completion_tokens=0,
        outcome="open",
        asked_text=request.text,
        answer_text=None,
    )
    session.add(row)
    session.flush()
    return request_id


def end(
    session: Session, request_id: str, *, prompt_tokens: int, completion_tokens: int, outcome: str, text: str | None
) -> None:
    """Charge what it took. A request that has ended already stays as it is."""
    row = session.get(ServingRequest, request_id)
    if row is None or row.outcome != "open":
        return
    row.ended_at, row.outcome, row.answer_text = time.time(), outcome, text
    row.prompt_tokens, row.completion_tokens = prompt_tokens, completion_tokens
    serving_keys.settle(session, row.key_id, row.reserved_tokens, prompt_tokens + completion_tokens, row.began_at)


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
