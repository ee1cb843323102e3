"""Ledger receipts that nodes sent: what each says it spent, signed by it, kept in an append-only journal."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import LedgerError
from confide.identity.keys import verify
from confide.identity.roster import Member
from confide.journal import Journal

DOMAIN = "receipt"
MAX_RECEIPT_BYTES = 8 * 1024
MAX_PER_NODE_AND_RUN = 10_000


class ReceiptStore:
    """All receipts, by run. Several processes of one coordinator must not open it at once."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._seen = {entry["sha256"] for entry in self._journal}
        self._counts = Counter((entry["run_id"], entry["node"]) for entry in self._journal)

    def put(self, node: Member, run_id: str, receipt: bytes, signature: bytes) -> None:
        """Verify and keep a receipt; the same one again changes nothing. Raises LedgerError or IdentityError."""
        if len(receipt) > MAX_RECEIPT_BYTES:
            raise LedgerError(f"a receipt of {len(receipt)} bytes came; at most {MAX_RECEIPT_BYTES} are kept")
        verify(bytes.fromhex(node.identity_key), DOMAIN, receipt, signature)
        document = _parsed(receipt)
        if document.get("run_id", run_id) != run_id:
            raise LedgerError(f"the receipt is for run {document['run_id']!r}, and was sent for {run_id!r}")
        entry = {
            "run_id": run_id,
            "node": node.name,
            "receipt": document,
            "signature": signature.hex(),
            "sha256": hashlib.sha256(run_id.encode() + node.name.encode() + b"\0" + receipt).hexdigest(),
        }
        with self._lock:
            if entry["sha256"] in self._seen:
                return
            if self._counts[run_id, node.name] >= MAX_PER_NODE_AND_RUN:
                raise LedgerError(f"{node.name} sent {MAX_PER_NODE_AND_RUN} receipts for run {run_id} already")
            self._journal.append(entry)
            self._seen.add(entry["sha256"])
            self._counts[run_id, node.name] += 1

    def of_run(self, run_id: str) -> Sequence[dict[str, Any]]:
        """[{"node", "receipt" (document), "signature" (hex, over the canonical bytes)}], in order of arrival."""
        fields = ("node", "receipt", "signature")
        return [{key: entry[key] for key in fields} for entry in self._journal if entry["run_id"] == run_id]

    def page(
        self, *, run_id: str = "", organization: str = "", after: int = 0, limit: int = 100
    ) -> tuple[Sequence[tuple[int, dict[str, Any]]], bool]:
        """((number, entry) with a number above `after`, in order of arrival; whether there are more)."""
        found: list[tuple[int, dict[str, Any]]] = []
        for number, entry in enumerate(self._journal, start=1):
            if number <= after or run_id not in ("", entry["run_id"]) or organization not in ("", entry["node"]):
                continue
            if len(found) == limit:
                return found, True
            found.append((number, entry))
        return found, False

    def newest(self, run_id: str = "", organization: str = "") -> Sequence[dict[str, Any]]:
        """Of each organization, run and group of data: the entry whose receipt says that most slots were spent."""
        best: dict[tuple[str, str, str], dict[str, Any]] = {}
        for entry in self._journal:
            if run_id not in ("", entry["run_id"]) or organization not in ("", entry["node"]):
                continue
            key = (entry["node"], str(entry["receipt"].get("group", "")), entry["run_id"])
            if key not in best or _spent(entry) >= _spent(best[key]):
                best[key] = entry
        return [best[key] for key in sorted(best)]

    def close(self) -> None:
        """Release the file."""
        self._journal.close()


def _spent(entry: dict[str, Any]) -> int:
    spent = entry["receipt"].get("spent_slots", 0)
    return spent if isinstance(spent, int) else 0


def _parsed(receipt: bytes) -> dict[str, Any]:
    try:
        document = json.loads(receipt)
        sound = isinstance(document, dict) and canonical.encode(document) == receipt
    except (ValueError, RecursionError) as error:
        raise LedgerError("a receipt is not JSON; send what `confide ledger receipt` printed") from error
    if not sound:
        raise LedgerError("a receipt is not a canonical JSON object; its signature would not name one document")
    found: dict[str, Any] = document
    return found
