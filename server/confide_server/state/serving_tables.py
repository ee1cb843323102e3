"""Tables of a serving endpoint: keys, aliases, requests. Their queries are in serving_keys, serving_aliases and
serving_requests."""

from sqlalchemy import BigInteger, Boolean, Float, Integer, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from confide_server.state.database import Base


class ServingKey(Base):
    """An API key; of the key itself only a hash. 0 stands for no limit."""

    __tablename__ = "serving_keys"
    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    """SHA-256 of the whole key, which has 256 random bits: nothing slower is needed."""
    models: Mapped[list[str]]
    collections: Mapped[list[str]]
    metrics: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)
    requests_per_minute: Mapped[int] = mapped_column(Integer)
    tokens_per_minute: Mapped[int] = mapped_column(Integer)
    at_once: Mapped[int] = mapped_column(Integer)
    budget_tokens: Mapped[int] = mapped_column(BigInteger)
    budget_days: Mapped[float] = mapped_column(Float)
    """After so long the budget begins anew; 0: never."""
    spent_tokens: Mapped[int] = mapped_column(BigInteger)
    """Of this period, what requests under way have reserved included."""
    period_began: Mapped[float] = mapped_column(Float)


class ServingAlias(Base):
    """One line of an alias's history; the newest holds."""

    __tablename__ = "serving_aliases"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), index=True)
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    """"" for the base model itself."""
    base_sha256: Mapped[str] = mapped_column(String(64))
    root: Mapped[str] = mapped_column(String(64))
    """The consortium's public key under which its manifest was verified; "" where the operator waived that."""
    run_id: Mapped[str] = mapped_column(String(64))
    removed: Mapped[bool] = mapped_column(Boolean)
    set_at: Mapped[float] = mapped_column(Float)


class ServingRequest(Base):
    """Who asked which model when, and what it took."""

    __tablename__ = "serving_requests"
    request_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    server: Mapped[str] = mapped_column(String(32))
    """Which serving folder: a restarted server closes its own open requests only."""
    key_id: Mapped[str] = mapped_column(String(16))
    route: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(64))
    base_sha256: Mapped[str] = mapped_column(String(64))
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    began_at: Mapped[float] = mapped_column(Float, index=True)
    ended_at: Mapped[float | None] = mapped_column(Float)
    reserved_tokens: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    outcome: Mapped[str] = mapped_column(String(16))
    """open | done | cancelled | failed | interrupted (by the end of the process: its reservation stays charged)"""
    asked_text: Mapped[str | None] = mapped_column(Text)
    answer_text: Mapped[str | None] = mapped_column(Text)
