"""Releases and administrators' signatures over them, as the database keeps them."""

import json
from typing import Any

from sqlalchemy import Float, ForeignKey, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from confide_server.state.database import Base


class ReleaseRow(Base):
    """One release."""

    __tablename__ = "releases"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    """created | signed | published | superseded | withdrawn"""
    document: Mapped[bytes] = mapped_column(LargeBinary)
    sha256: Mapped[str] = mapped_column(String(64))
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.run_id"), index=True)
    """None: of a model that no run made (release_subject)."""
    round: Mapped[int] = mapped_column(Integer)
    created_by: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)
    published_by: Mapped[str] = mapped_column(String(64), default="")
    published_at: Mapped[float | None] = mapped_column(Float)


class ReleaseSignatureRow(Base):
    """One administrator's signature over one release's document."""

    __tablename__ = "release_signatures"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    administrator: Mapped[str] = mapped_column(String(64), primary_key=True)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[float] = mapped_column(Float)


def said_by(row: ReleaseRow) -> dict[str, Any]:
    """A release's document."""
    document: dict[str, Any] = json.loads(row.document)
    return document
