"""Receipts: what a node says, over its signature, that its ledger charged for one slot.

A receipt names the run, the slot, the ledger's length and head, and a salted digest of what was charged. It does not
tell how many records the node has. Whoever kept a receipt can later show that a ledger was cut, replaced or altered.
"""

import json
from collections.abc import Callable
from typing import Any

from pydantic import Field, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import LedgerError
from confide.identity.keys import SigningKey, verify
from confide.privacy.ledger import Ledger
from confide.privacy.ledger_entries import RunId, Slot, events_digest
from confide.runs.sections import Name, Sha256

DOMAIN = "receipt"


class Receipt(StoredDocument):
    """What is signed, as canonical JSON."""

    version: int = Field(default=1, ge=1, le=1)
    run_id: RunId
    slot: Slot
    group: Name
    specification: Sha256
    events_sha256: Sha256
    """Salted; checked by somebody who is shown the ledger (events_digest)."""
    spent_slots: int = Field(ge=0)
    approved_slots: int = Field(ge=1)
    ledger_length: int = Field(ge=1)
    ledger_head: Sha256

    def canonical_bytes(self) -> bytes:
        """What is signed and sent."""
        return canonical.encode(self.model_dump(mode="json"))


def make_receipt(ledger: Ledger, run: str, slot: int, key: SigningKey) -> tuple[bytes, bytes]:
    """(canonical bytes, signature) for a slot that was spent. Raises LedgerError for any other slot."""
    state = ledger.state.run(run)
    if state.draws.get(slot) is not True:
        raise LedgerError(f"slot {slot} of run {run} was not spent; there is nothing to give a receipt for")
    receipt = Receipt(
        run_id=run,
        slot=slot,
        group=state.approved.group,
        specification=state.approved.specification,
        events_sha256=events_digest(state.approved),
        spent_slots=state.spent_slots,
        approved_slots=state.approved.cost.slots,
        ledger_length=len(ledger),
        ledger_head=ledger.head,
    )
    body = receipt.canonical_bytes()
    return body, key.sign(DOMAIN, body)


def parse_receipt(data: bytes) -> Receipt:
    """Read canonical bytes, signature not checked. Raises LedgerError."""
    try:
        receipt = Receipt.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        raise LedgerError(f"this is not a ledger receipt: {error}") from error
    if receipt.canonical_bytes() != data:
        raise LedgerError("a ledger receipt is not in canonical form; its signature would not name one document")
    return receipt


def open_receipt(data: bytes, signature: bytes, public: bytes) -> Receipt:
    """The receipt, verified under the node's identity key (32 raw bytes). Raises IdentityError or LedgerError."""
    verify(public, DOMAIN, data, signature)
    return parse_receipt(data)


def check_receipt(receipt: Receipt, approved_digest: str, head_at: Callable[[int], str], length: int) -> None:
    """Compare a receipt with a ledger. Raises LedgerError saying what does not agree.

    approved_digest: events_digest of the run in the ledger. head_at: the ledger's head at a length; length: now.
    """
    if receipt.ledger_length > length or head_at(receipt.ledger_length) != receipt.ledger_head:
        raise LedgerError(
            f"the receipt for slot {receipt.slot} of run {receipt.run_id} was given when the ledger had "
            f"{receipt.ledger_length} lines and another content: the ledger was cut, restored or replaced since"
        )
    if receipt.events_sha256 != approved_digest:
        raise LedgerError(f"the receipt for run {receipt.run_id} names another cost than the ledger")


def read_receipts(text: str, node: str | None = None) -> list[tuple[Receipt, bytes]]:
    """(receipt, signature) from a manifest's list of {"receipt": document, "signature": hex}. Raises LedgerError.

    node: only those whose "node" says this name, where it says one.
    """
    try:
        items: Any = [item for item in json.loads(text) if node in (None, item.get("node", node))]
        return [(parse_receipt(canonical.encode(item["receipt"])), bytes.fromhex(item["signature"])) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(
            f'receipts are a JSON list of {{"receipt", "signature"}}; this is not one: {error}'
        ) from error
