"""What is told of runs: columns that are asked for, page by page, and never a specification or a model on the way.

A list of runs costs one query however many there are; what is long (specification, offers, rounds) is asked for by run.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confide.errors import StateError, TransportError
from confide.identity.roster import utc
from sqlalchemy import ColumnElement, case, func, select, text
from sqlalchemy.orm import Session

from confide_server.state.database import Answer, Checkpoint, Database, Event, Round, Run, SignedRoster
from confide_server.state.events import OfferAnswered
from confide_server.state.release_tables import ReleaseRow
from confide_server.state.runs.status import OPEN, RunStatus

MAX_PAGE = 200
_MOST_NAMED = 500
"""Runs that a query names one by one; more are looked for among all."""
RunRow = Any
"""A row with the columns that were asked for, by name: SQLAlchemy's, which types no names."""
_CURSOR = re.compile(r"[0-9]{1,18}")
_OPEN = Run.status.in_(OPEN)
SHOWN: ColumnElement[str] = case(
    (Run.deleted_at.is_not(None), RunStatus.DELETED.value),
    (_OPEN & Run.paused_at.is_not(None), RunStatus.PAUSED.value),
    (_OPEN & Run.waiting_since.is_not(None), RunStatus.WAITING.value),
    ((Run.status == RunStatus.FINISHED) & (Run.short_rounds > 0), RunStatus.FINISHED_WITH_FEWER.value),
    else_=Run.status,
)
_OFFERS = text(f"events.kind = '{OfferAnswered.kind}'")
"""The words of the indices' own condition: of a parameter the database could not know that they serve."""
_COLUMNS = (
    Run.run_id,
    Run.number,
    Run.name,
    SHOWN.label("status"),
    Run.round,
    Run.rounds,
    Run.sealing,
    Run.detail,
    Run.submitted_at,
    Run.started_at,
    Run.ended_at,
    Run.administrator,
    Run.method,
    Run.data,
    Run.privacy_unit,
    Run.privacy_epsilon,
    Run.cohort,
    Run.waits_for,
    Run.waits_reason,
    Run.waiting_since,
    Run.paused_by,
    Run.paused_at,
    Run.pause_reason,
    Run.parent_run_id,
    Run.parent_round,
    Run.priority,
    Run.short_rounds,
    Run.last_event,
    Run.deleted_by,
    Run.deleted_at,
)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which runs; empty: all."""

    statuses: Sequence[str] = ()
    name_contains: str = ""
    organization: str = ""
    administrator: str = ""
    method: str = ""
    parent_run_id: str = ""
    run_id_prefix: str = ""
    run_ids: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """One page of runs: rows with the columns of a line, and how to go on."""

    rows: Sequence[RunRow]
    next_cursor: str
    total: int


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What is told of one run beside its line."""

    row: RunRow
    specification: bytes
    initial_model_sha256: bytes
    model_sha256: bytes
    expires_at: int
    stop_requested_by: str
    nonce: bytes
    signature: bytes
    signed_by: Sequence[str]
    answers: Mapping[str, str]
    offers: Mapping[str, tuple[float, Mapping[str, Any]]]
    """Newest "offer_answered" of each node: (when, data)."""
    children: Sequence[str]


@dataclass(frozen=True)
class PrivacyClaim:
    """What a run promises; epsilon 0: nothing. at: when it ended, or was submitted while it has not."""

    name: str = ""
    unit: str = ""
    epsilon: float = 0.0
    delta: float = 0.0
    at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where models come from. nodes: {id: (kind, label, status)}; edges: (from, to, round)."""

    nodes: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    edges: list[tuple[str, str, int]] = field(default_factory=list)


class Views:
    """Read-only queries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- runs

    def runs(self, filters: Filters, *, limit: int, cursor: str = "") -> Page:
        """Newest first, at most `limit`. Raises TransportError for a cursor or status that cannot be."""
        query = _filtered(select(*_COLUMNS), filters, self._database.dialect)
        counted = _filtered(select(func.count()).select_from(Run), filters, self._database.dialect)
        if cursor:
            if not _CURSOR.fullmatch(cursor):
                raise TransportError(f"{cursor[:40]!r} is no cursor of a page of runs; begin again without one")
            query = query.where(Run.number < int(cursor))
        with self._database.reading() as session:
            rows = session.execute(query.order_by(Run.number.desc()).limit(limit + 1)).all()
            shown = rows[:limit]
            total = session.scalar(counted) or 0
        return Page(shown, str(shown[-1].number) if len(rows) > limit else "", total)

    def counts(self) -> Mapping[str, int]:
        """How many runs by shown status."""
        query = select(SHOWN, func.count()).where(Run.deleted_at.is_(None)).group_by(SHOWN)
        with self._database.reading() as session:
            return {str(status): count for status, count in session.execute(query)}

    def line(self, run_id: str) -> RunRow:
        """One run's columns. Raises StateError when there is no such run."""
        with self._database.reading() as session:
            return _line(session, run_id)

    def last_event(self) -> int:
        """Number of the newest event."""
        query = select(func.max(Event.number))
        with self._database.reading() as session:
            return session.scalar(query) or 0

    def in_cohort(self, run_id: str, organization: str) -> bool:
        """Whether the organization is asked to take part in the run, or took part."""
        return organization in self.line(run_id).cohort

    def detail(self, run_id: str) -> Detail:
        """Everything about one run but its rounds and events."""
        with self._database.reading() as session:
            row = _line(session, run_id)
            columns = (
                Run.specification,
                Run.initial_model_sha256,
                Run.expires_at,
                Run.stop_requested_by,
                Run.nonce,
                Run.signature,
                Run.cosigned,
            )
            extra = session.execute(select(*columns).where(Run.run_id == run_id)).one()
            model = session.scalar(
                select(Checkpoint.model_sha256).where(Checkpoint.run_id == run_id, Checkpoint.round == row.round)
            )
            answers = {one.node: one.answer for one in session.scalars(select(Answer).where(Answer.run_id == run_id))}
            children = session.scalars(
                select(Run.run_id).where(Run.parent_run_id == run_id, Run.deleted_at.is_(None)).order_by(Run.number)
            ).all()
            return Detail(
                row=row,
                specification=extra.specification,
                initial_model_sha256=extra.initial_model_sha256,
                model_sha256=model or b"",
                expires_at=extra.expires_at,
                stop_requested_by=extra.stop_requested_by or "",
                nonce=extra.nonce,
                signature=extra.signature,
                signed_by=(row.administrator, *(name for name, _ in extra.cosigned)),
                answers=dict.fromkeys(row.cohort, "") | answers,
                offers=_offers(session, run_id),
                children=children,
            )

    def rounds(self, run_id: str, *, after: int, limit: int) -> tuple[Sequence[RunRow], bool]:
        """Committed rounds after round `after`, and whether there are more."""
        columns = (
            Round.round,
            Round.attempts,
            Round.committed_at,
            Round.seconds,
            Round.phases,
            Round.received,
            Round.update_norm,
            Round.metrics,
            Round.contributors,
            Round.dropped,
            Round.promise,
            Checkpoint.model_sha256,
        )
        same = (Checkpoint.run_id == Round.run_id) & (Checkpoint.round == Round.round)
        query = select(*columns).join(Checkpoint, same).where(Round.run_id == run_id, Round.round > after)
        with self._database.reading() as session:
            _line(session, run_id)
            rows = session.execute(query.order_by(Round.round).limit(limit + 1)).all()
        return rows[:limit], len(rows) > limit

    def events_after(self, number: int, run_id: str = "", limit: int = 500) -> Sequence[Event]:
        """Events with a larger number, of one run or of all, in order."""
        query = select(Event).where(Event.number > number)
        if run_id:
            query = query.where(Event.run_id == run_id)
        with self._database.reading() as session:
            return session.scalars(query.order_by(Event.number).limit(limit)).all()

    # --- models

    def checkpoints(
        self, run_id: str, *, after: int, limit: int
    ) -> tuple[Sequence[RunRow], bool, dict[int, list[str]]]:
        """(rows after round `after`, whether there are more, releases by round)."""
        same = (Round.run_id == Checkpoint.run_id) & (Round.round == Checkpoint.round)
        columns = (Checkpoint.round, Checkpoint.model_sha256, Checkpoint.size, Round.committed_at)
        query = select(*columns).outerjoin(Round, same).where(Checkpoint.run_id == run_id, Checkpoint.round > after)
        released: dict[int, list[str]] = {}
        with self._database.reading() as session:
            _line(session, run_id)
            rows = session.execute(query.order_by(Checkpoint.round).limit(limit + 1)).all()
            of_run = select(ReleaseRow.round, ReleaseRow.name, ReleaseRow.number).where(ReleaseRow.run_id == run_id)
            for round, name, number in session.execute(of_run):
                released.setdefault(round, []).append(f"{name}/{number}")
        return rows[:limit], len(rows) > limit, released

    def lineage(self, run_id: str = "") -> Lineage:
        """Base models, runs and releases; of one run: what it stands on and what stands on it."""
        columns = (Run.run_id, Run.name, SHOWN.label("status"), Run.parent_run_id, Run.parent_round, Run.base_sha256,
                   Run.base_name)  # fmt: skip
        with self._database.reading() as session:
            runs = {row.run_id: row for row in session.execute(select(*columns).where(Run.deleted_at.is_(None)))}
            releases = session.execute(
                select(ReleaseRow.name, ReleaseRow.number, ReleaseRow.status, ReleaseRow.run_id, ReleaseRow.round)
            ).all()
        if run_id and run_id not in runs:
            raise StateError(f"there is no run {run_id}; `confide run list` shows which there are")
        wanted = _related(runs, run_id) if run_id else set(runs)
        return _lineage({name: runs[name] for name in wanted}, [one for one in releases if one.run_id in wanted])

    # --- members and privacy

    def newest_offers(self) -> Mapping[str, Mapping[str, Any]]:
        """What each node said last when it accepted a run, of the newest answers."""
        query = select(Event.data).where(_OFFERS).order_by(Event.number.desc()).limit(1000)
        found: dict[str, Mapping[str, Any]] = {}
        with self._database.reading() as session:
            for data in session.scalars(query):
                if data["accepted"]:
                    found.setdefault(data["node"], data)
        return found

    def privacy_claims(self, run_ids: Collection[str]) -> Mapping[str, PrivacyClaim]:
        """What runs claim, as specified; a run that is not known has none."""
        columns = (Run.run_id, Run.name, Run.privacy_unit, Run.privacy_epsilon, Run.privacy_delta, Run.submitted_at,
                   Run.ended_at)  # fmt: skip
        query = select(*columns)
        if len(run_ids) <= _MOST_NAMED:
            query = query.where(Run.run_id.in_(list(run_ids)))
        with self._database.reading() as session:
            return {
                row.run_id: PrivacyClaim(
                    row.name, row.privacy_unit, row.privacy_epsilon, row.privacy_delta, row.ended_at or row.submitted_at
                )
                for row in session.execute(query)
            }

    # --- rosters

    def rosters(self, *, before: int = 0, limit: int = 50) -> Sequence[tuple[int, str, bytes]]:
        """(version, digest, signed) of the rosters that were taken, newest first."""
        query = select(SignedRoster.version, SignedRoster.sha256, SignedRoster.signed)
        if before:
            query = query.where(SignedRoster.version < before)
        with self._database.reading() as session:
            rows = session.execute(query.order_by(SignedRoster.version.desc()).limit(limit)).all()
        return [(row.version, row.sha256, row.signed) for row in rows]


def _line(session: Session, run_id: str) -> RunRow:
    row = session.execute(select(*_COLUMNS).where(Run.run_id == run_id)).first()
    if row is None:
        raise StateError(f"there is no run {run_id}; `confide run list` shows which there are")
    if row.deleted_at is not None:
        by = f" by {row.deleted_by}" if row.deleted_by else ""
        raise StateError(f"run {run_id} was deleted{by} on {utc(row.deleted_at)}; nothing else is kept of it")
    return row


def _filtered(query: Any, filters: Filters, dialect: str) -> Any:
    if RunStatus.DELETED not in filters.statuses:
        query = query.where(Run.deleted_at.is_(None))
    if filters.statuses:
        unknown = sorted(set(filters.statuses) - set(RunStatus))
        if unknown:
            raise TransportError(f"{unknown[0][:40]!r} is no status of a run; there are {', '.join(RunStatus)}")
        query = query.where(SHOWN.in_(list(filters.statuses)))
    if filters.name_contains:
        query = query.where(Run.name.contains(filters.name_contains, autoescape=True))
    if filters.run_ids:
        query = query.where(Run.run_id.in_(list(filters.run_ids)))
    if filters.run_id_prefix:
        query = query.where(Run.run_id.startswith(filters.run_id_prefix, autoescape=True))
    for column, wanted in (
        (Run.administrator, filters.administrator),
        (Run.method, filters.method),
        (Run.parent_run_id, filters.parent_run_id),
    ):
        if wanted:
            query = query.where(column == wanted)
    if filters.organization:
        query = query.where(_names(dialect, filters.organization))
    return query


def _names(dialect: str, organization: str) -> ColumnElement[bool]:
    """Whether the cohort, a JSON list, holds this name."""
    each = func.json_each if dialect == "sqlite" else func.json_array_elements_text
    listed = (
        each(Run.cohort).table_valued("value").render_derived()
        if dialect != "sqlite"
        else each(Run.cohort).table_valued("value")
    )
    return select(1).select_from(listed).where(listed.c.value == organization).exists()


def _offers(session: Session, run_id: str) -> dict[str, tuple[float, Mapping[str, Any]]]:
    query = select(Event.time, Event.data).where(Event.run_id == run_id, _OFFERS)
    return {data["node"]: (time, data) for time, data in session.execute(query.order_by(Event.sequence))}


def _related(runs: Mapping[str, RunRow], run_id: str) -> set[str]:
    related, look = set[str](), [run_id]
    while look:  # downwards: what goes on from it
        related.add(one := look.pop())
        look += [child for child, row in runs.items() if row.parent_run_id == one and child not in related]
    above = runs[run_id].parent_run_id
    while above in runs and above not in related:
        related.add(above)
        above = runs[above].parent_run_id
    return related


def _lineage(runs: Mapping[str, RunRow], releases: Sequence[RunRow]) -> Lineage:
    found = Lineage()
    for run_id, row in runs.items():
        found.nodes[f"run:{run_id}"] = ("run", row.name, row.status)
        if row.parent_run_id:
            found.nodes.setdefault(f"run:{row.parent_run_id}", ("run", row.parent_run_id[:8], "unknown"))
            found.edges.append((f"run:{row.parent_run_id}", f"run:{run_id}", row.parent_round))
            continue
        found.nodes[f"base:{row.base_sha256}"] = ("base", row.base_name or row.base_sha256[:16], "")
        found.edges.append((f"base:{row.base_sha256}", f"run:{run_id}", 0))
    for one in releases:
        found.nodes[f"release:{one.name}/{one.number}"] = ("release", f"{one.name}/{one.number}", one.status)
        found.edges.append((f"run:{one.run_id}", f"release:{one.name}/{one.number}", one.round))
    return found
