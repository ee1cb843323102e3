"""When each member called the control service last, with which release, and until when its certificate holds."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confide.text import line
from sqlalchemy import Float, String, select
from sqlalchemy.orm import Mapped, mapped_column

from confide_server.state.database import Base, Database

WRITE_EVERY_S = 60.0
"""A member that calls often, and says nothing new, is written down so often."""


class Sighting(Base):
    """The newest call of one member."""

    __tablename__ = "sightings"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    release: Mapped[str] = mapped_column(String(40))
    certificate_expires_at: Mapped[float] = mapped_column(Float)


@dataclass(frozen=True)
class Seen:
    """What a member's newest call said."""

    at: float
    release: str
    certificate_expires_at: float


class Sightings:
    """Shared by the control port's threads."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._written: dict[str, Seen] = {}

    def note(self, name: str, release: str, certificate_expires_at: float) -> None:
        """A member called. release: as it says; the name is its certificate's, held against the roster."""
        now, said = self._clock(), line(release, 40)
        with self._lock:
            last = self._written.get(name)
            same = last is not None and (last.release, last.certificate_expires_at) == (said, certificate_expires_at)
            if same and last is not None and now - last.at < WRITE_EVERY_S:
                return
            self._written[name] = Seen(now, said, certificate_expires_at)
        with self._database.transaction() as session:
            row = Sighting(name=name, at=now, release=said, certificate_expires_at=certificate_expires_at)
            session.merge(row)

    def all(self) -> Mapping[str, Seen]:
        """By name."""
        with self._database.reading() as session:
            rows = session.scalars(select(Sighting)).all()
        return {row.name: Seen(row.at, row.release, row.certificate_expires_at) for row in rows}
