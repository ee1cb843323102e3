"""The coordinator's audit log as it is read: page by page, verified, and exported with a signed head.

>>> import tempfile
>>> from confide_server.state.database import append_audit
>>> database = Database(f"sqlite:///{tempfile.mkdtemp()}/coordinator.db")
>>> with database.transaction() as session: append_audit(session, {"event": "example"})
>>> log = AuditLog(database); log.verify()[0], [entry.body["event"] for entry in log.page(limit=10)]
(1, ['example'])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from confide import canonical
from confide.identity.keys import SigningKey, verify
from sqlalchemy import select

from confide_server.state.database import Audit, Database, Head, append_audit

HEAD_DOMAIN = "audit-head"


@dataclass(frozen=True)
class Entry:
    """One line."""

    number: int
    time: float
    body: dict[str, Any]
    previous: str
    hash: str

    @property
    def who(self) -> str:
        """Who caused it, where somebody did."""
        return str(self.body.get("by") or self.body.get("administrator") or "")


class AuditLog:
    """Reads; `note` is the only way to write, beside the transactions of what happened."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, body: dict[str, Any]) -> None:
        """Add an entry of its own."""
        with self._database.transaction() as session:
            append_audit(session, body)

    def page(self, *, limit: int, before: int = 0, run_id: str = "", event: str = "") -> Sequence[Entry]:
        """At most `limit` entries, newest first, with a number below `before`."""
        query = select(Audit).order_by(Audit.number.desc()).limit(limit)
        if before:
            query = query.where(Audit.number < before)
        if run_id:
            query = query.where(Audit.body["run_id"].as_string() == run_id)
        if event:
            query = query.where(Audit.body["event"].as_string() == event)
        with self._database.reading() as session:
            return [_entry(row) for row in session.scalars(query)]

    def verify(self) -> tuple[int, str]:
        """(entries, head), after checking the whole chain. Raises StateError naming the first entry that breaks it."""
        count = self._database.verify_audit()
        with self._database.reading() as session:
            return count, session.get_one(Head, "audit").hash

    def lines(self, after: int = 0) -> Iterator[bytes]:
        """Canonical JSON lines of the entries after number `after`."""
        while True:
            with self._database.reading() as session:
                query = select(Audit).where(Audit.number > after).order_by(Audit.number).limit(500)
                found = [_entry(row) for row in session.scalars(query)]
            if not found:
                return
            after = found[-1].number
            for one in found:
                yield canonical.encode(vars(one)) + b"\n"


def signed_head(coordinator: str, key: SigningKey, entries: int, head: str) -> bytes:
    """The export's last line: the coordinator's word for how long the log is and where it ends."""
    statement = canonical.encode([coordinator, entries, head])
    signature = key.sign(HEAD_DOMAIN, statement).hex()
    said = {"coordinator": coordinator, "entries": entries, "head": head, "signature": signature}
    return canonical.encode(said) + b"\n"


def check_head(said: dict[str, Any], public: bytes) -> None:
    """Raise IdentityError unless the coordinator with this identity key signed the head."""
    statement = canonical.encode([said["coordinator"], said["entries"], said["head"]])
    verify(public, HEAD_DOMAIN, statement, bytes.fromhex(said["signature"]))


def _entry(row: Audit) -> Entry:
    return Entry(row.number, row.time, dict(row.body), row.previous, row.hash)
