"""API keys of a serving endpoint: made, listed, revoked, and charged.

A key reads `confide-<id>-<secret>`: 8 hex digits and 256 random bits. It is shown once, when it is made; the database
holds its SHA-256. Guarantee: who reads the database learns no key, and cannot make one that it accepts without
writing to it.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from confide.errors import StateError
from sqlalchemy import BigInteger, Float, bindparam, select, update
from sqlalchemy.orm import Session

from confide_server.state.database import Database, append_audit
from confide_server.state.serving_tables import ServingKey

_KEY = re.compile(r"confide-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][\w.@ -]{0,63}", re.ASCII)
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).digest()
_DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class KeyTerms:
    """What a key allows; 0 stands for no limit. models, collections: names, or "*" for all.

    at_once: requests under way. budget_tokens: read and written, in each period of budget_days (0: for ever).
    """

    name: str
    models: tuple[str, ...] = ("*",)
    collections: tuple[str, ...] = ()
    metrics: bool = False
    days: float = 365.0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    at_once: int = 64
    budget_tokens: int = 0
    budget_days: float = 0.0


class KeyRefused(StateError):
    """A key that is unknown, expired, revoked, or whose budget is used up. `kind` says which; `budget` carries days."""

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


def add_key(database: Database, terms: KeyTerms) -> str:
    """Make a key and return it, for the only time. Raises StateError for terms that make no sense."""
    if not _NAME.fullmatch(terms.name):
        raise StateError(f"a key's name is 1 to 64 letters, digits and . _ @ - or spaces; got {terms.name!r}")
    counts = (terms.requests_per_minute, terms.tokens_per_minute, terms.at_once, terms.budget_tokens)
    if min(*counts, terms.budget_days) < 0 or not terms.days > 0:
        raise StateError("limits and budgets are 0 (none) or more, and a key is good for more than 0 days")
    key_id, secret, now = secrets.token_hex(4), secrets.token_urlsafe(32), time.time()
    key = f"confide-{key_id}-{secret}"
    row = ServingKey(
        key_id=key_id,
        name=terms.name,
        digest=_digest(key),
        models=list(terms.models),
        collections=list(terms.collections),
        metrics=terms.metrics,
        created_at=now,
        expires_at=now + terms.days * _DAY_S,
        revoked_at=None,
        requests_per_minute=terms.requests_per_minute,
        tokens_per_minute=terms.tokens_per_minute,
        at_once=terms.at_once,
        budget_tokens=terms.budget_tokens,
        budget_days=terms.budget_days,
        spent_tokens=0,
        period_began=now,
    )
    with database.transaction() as session:
        session.add(row)
        append_audit(session, {"event": "serving_key_added", "key_id": key_id, "name": terms.name})
    return key


def revoke_key(database: Database, key_id: str) -> None:
    """From the next request on, the key is refused. Raises StateError for one that is not there."""
    with database.transaction() as session:
        row = session.get(ServingKey, key_id, with_for_update=True)
        if row is None:
            raise StateError(f"there is no key {key_id!r}; `confide serve keys list` shows those there are")
        if row.revoked_at is None:
            row.revoked_at = time.time()
            append_audit(session, {"event": "serving_key_revoked", "key_id": key_id, "name": row.name})


def list_keys(database: Database) -> Sequence[ServingKey]:
    """All of them, oldest first."""
    with database.reading() as session:
        return list(session.scalars(select(ServingKey).order_by(ServingKey.created_at)))


def key_of(database: Database, key: str, now: float | None = None) -> ServingKey:
    """The row of a key that is good. Raises KeyRefused("unknown" | "expired" | "revoked").

    An unknown id takes as long as a wrong secret, and both look the same.
    """
    found = _KEY.fullmatch(key)
    row = None
    if found is not None:
        with database.reading() as session:
            row = session.get(ServingKey, found[1])
    known = hmac.compare_digest(_digest(key), _NOBODY if row is None else row.digest)
    if row is None or not known:
        raise KeyRefused("unknown", "this key is not known here; ask the operator of this server for one")
    check_good(row, now)
    return row


def check_good(row: ServingKey, now: float | None = None) -> None:
    """Raises KeyRefused for a key that is revoked or expired."""
    if row.revoked_at is not None:
        raise KeyRefused("revoked", f"the key {row.key_id} was revoked; ask the operator of this server for another")
    if row.expires_at <= (time.time() if now is None else now):
        raise KeyRefused("expired", f"the key {row.key_id} has expired; ask the operator of this server for another")


def reserve(session: Session, key_id: str, tokens: int, now: float | None = None) -> None:
    """Count what a request may cost as spent, in the caller's transaction, which holds the key's row until it ends.

    Raises KeyRefused("unknown" | "expired" | "revoked" | "budget"); nothing is counted then.
    """
    now = time.time() if now is None else now
    parameters = {"of": key_id, "tokens": tokens, "now": now, "day_s": _DAY_S}
    if _changed(session.execute(_RESERVE, parameters)):
        return
    # Refused, or of a new period: what follows is seldom, and says which.
    row = session.get(ServingKey, key_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise KeyRefused("unknown", f"the key {key_id} is not known here any more")
    check_good(row, now)
    period_s = row.budget_days * _DAY_S
    if period_s and now >= row.period_began + period_s:
        row.period_began, row.spent_tokens = now, 0
    if row.budget_tokens and row.spent_tokens + tokens > row.budget_tokens:
        left = max(0, row.budget_tokens - row.spent_tokens)
        anew = row.period_began + period_s - now if period_s else None
        raise KeyRefused(
            "budget",
            f"the request may take {tokens} tokens and {left} of the key's budget of {row.budget_tokens} are left; ask "
            "for fewer, or ask the operator of this server for more",
            anew,
        )
    row.spent_tokens += tokens
    session.flush()


def settle(session: Session, key_id: str, reserved: int, spent: int, began_at: float) -> None:
    """Count what a request took in place of what was reserved; of a period that is over nothing is given back."""
    session.execute(_SETTLE, {"of": key_id, "less": reserved - spent, "began": began_at})


_RESERVE = (
    update(ServingKey)
    .where(
        ServingKey.key_id == bindparam("of"),
        ServingKey.revoked_at.is_(None),
        ServingKey.expires_at > bindparam("now"),
        (ServingKey.budget_tokens == 0)
        | (ServingKey.spent_tokens + bindparam("tokens", type_=BigInteger) <= ServingKey.budget_tokens),
        (ServingKey.budget_days == 0)
        | (ServingKey.period_began + ServingKey.budget_days * bindparam("day_s", type_=Float) > bindparam("now")),
    )
    .values(spent_tokens=ServingKey.spent_tokens + bindparam("tokens", type_=BigInteger))
    .execution_options(synchronize_session=False)
)
_SETTLE = (
    update(ServingKey)
    .where(ServingKey.key_id == bindparam("of"), ServingKey.period_began <= bindparam("began"))
    .values(spent_tokens=ServingKey.spent_tokens - bindparam("less", type_=BigInteger))
    .execution_options(synchronize_session=False)
)


def _changed(result: object) -> bool:
    return int(getattr(result, "rowcount", 0)) == 1


def _digest(key: str) -> bytes:
    return hashlib.sha256(b"confide/v1/serving-key\0" + key.encode("utf-8", "surrogatepass")).digest()
