"""What each alias of a serving endpoint stands for, and stood for: a line is added, none is changed."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from confide.errors import StateError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from confide_server.state.database import Database, append_audit
from confide_server.state.serving_tables import ServingAlias

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")


@dataclass(frozen=True)
class Standing:
    """What an alias stands for. adapter_sha256 "" is the base itself; root "": the operator waived the signature."""

    alias: str
    adapter_sha256: str
    base_sha256: str
    root: str = ""
    run_id: str = ""


def point(database: Database, standing: Standing) -> None:
    """From now on the alias stands for this. Raises StateError for a name that is none."""
    if not _ALIAS.fullmatch(standing.alias):
        raise StateError(
            f"an alias is 1 to 64 letters, digits and . _ / - and begins with one of the first; got {standing.alias!r}"
        )
    with database.transaction() as session:
        _add(session, standing, "serving_alias_set")


def roll_back(database: Database, alias: str) -> Standing:
    """Point an alias at what it stood for before. Raises StateError where there is nothing before."""
    with database.transaction() as session:
        rows = _history(session, alias)
        if not rows or rows[0].removed:
            raise StateError(f"there is no alias {alias!r}; `confide serve alias list` shows those there are")
        now = _standing(rows[0])
        earlier = next((row for row in rows if not row.removed and _standing(row) != now), None)
        if earlier is None:
            raise StateError(f"the alias {alias!r} has always stood for this; there is nothing to go back to")
        _add(session, _standing(earlier), "serving_alias_rolled_back")
        return _standing(earlier)


def remove(database: Database, alias: str) -> None:
    """The alias stands for nothing; its history stays. Raises StateError where there is none."""
    with database.transaction() as session:
        rows = _history(session, alias)
        if not rows or rows[0].removed:
            raise StateError(f"there is no alias {alias!r}; `confide serve alias list` shows those there are")
        _add(session, _standing(rows[0]), "serving_alias_removed", removed=True)


def current(database: Database) -> tuple[int, list[Standing]]:
    """(number of the newest change, what every alias stands for, by name)."""
    newest = select(func.max(ServingAlias.number)).group_by(ServingAlias.alias)
    query = select(ServingAlias).where(ServingAlias.number.in_(newest)).order_by(ServingAlias.alias)
    with database.reading() as session:
        rows = list(session.scalars(query))
        return max((row.number for row in rows), default=0), [_standing(row) for row in rows if not row.removed]


def history(database: Database, alias: str) -> Sequence[ServingAlias]:
    """Its lines, newest first."""
    with database.reading() as session:
        return _history(session, alias)


def _history(session: Session, alias: str) -> list[ServingAlias]:
    query = select(ServingAlias).where(ServingAlias.alias == alias).order_by(ServingAlias.number.desc())
    return list(session.scalars(query))


def _standing(row: ServingAlias) -> Standing:
    return Standing(row.alias, row.adapter_sha256, row.base_sha256, row.root, row.run_id)


def _add(session: Session, standing: Standing, event: str, *, removed: bool = False) -> None:
    # The audit log's head is held first: two writers never take one number.
    append_audit(
        session,
        {
            "event": event,
            "alias": standing.alias,
            "adapter_sha256": standing.adapter_sha256,
            "base_sha256": standing.base_sha256,
        },
    )
    number = session.scalar(select(func.coalesce(func.max(ServingAlias.number), 0))) or 0
    session.add(
        ServingAlias(
            number=number + 1,
            alias=standing.alias,
            adapter_sha256=standing.adapter_sha256,
            base_sha256=standing.base_sha256,
            root=standing.root,
            run_id=standing.run_id,
            removed=removed,
            set_at=time.time(),
        )
    )
