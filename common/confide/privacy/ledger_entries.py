"""The lines of the privacy ledger. Docs: docs/privacy.md, "The ledger, line by line".

Every line is one of five kinds; an unknown kind, field or value stops the reader (LedgerError).

>>> parse_entry({"kind": "spent", "run": "0" * 32, "slot": 3, "time_ms": 0}).slot
3
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import LedgerError
from confide.privacy.events import AnyEvent, Event, to_documents
from confide.runs.budget import Delta, Epsilon
from confide.runs.sections import Name, Sha256

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Slot = Annotated[int, Field(ge=1, lt=2**63)]
Unit = Literal["record", "user", "organization"]
Basis = Literal["filter", "alone"]


class RunCost(StoredDocument):
    """What a run may cost at most: `slot` is charged for every slot that the node takes part in, `slots` times."""

    slot: tuple[AnyEvent, ...] = Field(min_length=1, max_length=16)
    slots: int = Field(ge=1, le=10**6)

    def of_slots(self, slots: int) -> tuple[Event, ...]:
        """The events of that many slots; none for 0."""
        return tuple(event.times(slots) for event in self.slot) if slots else ()

    @property
    def whole(self) -> tuple[Event, ...]:
        """The events of the whole run."""
        return self.of_slots(self.slots)


class Approved(StoredDocument):
    """The run's whole cost is set aside, its parameters frozen."""

    kind: Literal["approved"] = "approved"
    time_ms: int = Field(ge=0)
    run: RunId
    group: Name
    data: Name
    unit: Unit
    specification: Sha256
    cost: RunCost
    basis: Basis
    """Why it fitted: "filter" beside other runs, "alone" because it is the group's only one (tighter accounting)."""
    budget_epsilon: Epsilon
    """The policy's budget at that moment."""
    budget_delta: Delta
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Random. Hashes of ledger lines leave the node; without it the number of records could be guessed from them."""
    user_key: str | None = Field(default=None, min_length=1)
    """unit "user": the field that names a record's user. Missing in lines from before it was kept."""

    @model_validator(mode="after")
    def _key_of_users(self) -> Self:
        if self.user_key is not None and self.unit != "user":
            raise ValueError(f"user_key goes with unit user, not with {self.unit}")
        return self

    @property
    def protects(self) -> str:
        """What one unit is, in words: equal for approvals whose costs may be added up."""
        return self.unit if self.unit != "user" else f"user (by {self.user_key or 'a field that was not kept'})"


class Reserved(StoredDocument):
    """One slot's cost is drawn, before any work on private data."""

    kind: Literal["reserved"] = "reserved"
    time_ms: int = Field(ge=0)
    run: RunId
    slot: Slot


class Moved(StoredDocument):
    """The draw of a slot whose work never left the node goes to a later slot; the earlier one can never be spent."""

    kind: Literal["moved"] = "moved"
    time_ms: int = Field(ge=0)
    run: RunId
    from_slot: Slot
    slot: Slot


class Spent(StoredDocument):
    """The draw is used up: written before the first byte leaves."""

    kind: Literal["spent"] = "spent"
    time_ms: int = Field(ge=0)
    run: RunId
    slot: Slot


class Released(StoredDocument):
    """The run is over on this node; what it did not spend is free again."""

    kind: Literal["released"] = "released"
    time_ms: int = Field(ge=0)
    run: RunId
    slots: int = Field(ge=0)
    """Slots that were set aside and not spent."""


Entry = Approved | Reserved | Moved | Spent | Released
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


def parse_entry(body: Any) -> Entry:
    """One journal body. Raises LedgerError for anything but what `to_body` makes."""
    try:
        # JSON mode accepts lists for tuples and stays strict otherwise.
        entry = _ENTRY.validate_json(canonical.encode(body))
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise LedgerError(
            f"a ledger line is of an unknown kind or malformed, and nothing is guessed: {error}. "
            "Was it written by a newer release?"
        ) from error
    if to_body(entry) != body:
        raise LedgerError("a ledger line is not in canonical form; it was not written by this program")
    return entry


def to_body(entry: Entry) -> dict[str, Any]:
    """The JSON object that is appended to the journal."""
    return entry.model_dump(mode="json")


def events_digest(approved: Approved) -> str:
    """Salted SHA-256, hex, of what one slot costs: an auditor who sees the ledger can check it, nobody can guess it."""
    return canonical.hash_fields(
        "confide/v1/ledger-events", bytes.fromhex(approved.salt), canonical.encode(to_documents(approved.cost.slot))
    ).hex()
