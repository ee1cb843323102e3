"""Ledger receipts that nodes sent: what each says it spent, signed by it, kept in an append-only journal."""

import hashlib
import json
import threading
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, order=True)
class Spent:
    """What an organization's receipt of a run says of one group of data; a number that is none counts as 0."""

    organization: str
    group: str
    run_id: str
    spent_slots: int
    approved_slots: int


class ReceiptStore:
    """All receipts, by run. Several processes of one coordinator must not open it at once."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._newest: dict[tuple[str, str, str], Spent] = {}
        self._of_run: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
        self._numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, entry in enumerate(self._journal, start=1):
            self._know(number, entry)

    def _know(self, number: int, entry: dict[str, Any]) -> None:
        self._numbers["run", entry["run_id"]].append(number)
        self._numbers["node", entry["node"]].append(number)
        self._seen.add(entry["sha256"])
        self._counts[entry["run_id"], entry["node"]] += 1
        receipt = entry["receipt"]
        said = Spent(entry["node"], str(receipt.get("group", "")), entry["run_id"],
                     number_of(receipt, "spent_slots"), number_of(receipt, "approved_slots"))  # fmt: skip
        key = said.organization, said.group, said.run_id
        if key not in self._newest or said.spent_slots >= self._newest[key].spent_slots:
            self._newest[key] = said
        self._of_run[said.run_id].add(key)

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
            self._know(len(self._journal), entry)

    def of_run(self, run_id: str) -> Sequence[dict[str, Any]]:
        """[{"node", "receipt" (document), "signature" (hex, over the canonical bytes)}], in order of arrival."""
        fields = ("node", "receipt", "signature")
        with self._lock:
            numbers = list(self._numbers["run", run_id])
        return [{key: entry[key] for key in fields} for entry in map(self._journal.entry, numbers)]

    def page(
        self, *, run_id: str = "", organization: str = "", after: int = 0, limit: int = 100
    ) -> tuple[Sequence[tuple[int, dict[str, Any]]], bool]:
        """((number, entry) with a number above `after`, in order of arrival; whether there are more)."""
        found: list[tuple[int, dict[str, Any]]] = []
        for number in self._listed(run_id, organization, after):
            entry = self._journal.entry(number)
            if run_id not in ("", entry["run_id"]) or organization not in ("", entry["node"]):
                continue
            if len(found) == limit:
                return found, True
            found.append((number, entry))
        return found, False

    def _listed(self, run_id: str, organization: str, after: int) -> Sequence[int]:
        """Numbers above `after` among which the entries are, fewer than all where a run or organization is named."""
        with self._lock:
            if not run_id and not organization:
                return range(after + 1, len(self._journal) + 1)
            numbers = self._numbers["run", run_id] if run_id else self._numbers["node", organization]
            return numbers[bisect_right(numbers, after) :]

    def newest(self, run_ids: Collection[str] = (), organization: str = "") -> Sequence[Spent]:
        """Of each organization, group of data and run: what the receipt says by which most slots were spent.

        run_ids: of these; empty: of all. Sorted by organization, group and run.
        """
        with self._lock:
            if run_ids:
                keys = [key for run_id in set(run_ids) for key in self._of_run.get(run_id, ())]
            else:
                keys = list(self._newest)
            found = [self._newest[key] for key in keys]
        return sorted(one for one in found if organization in ("", one.organization))

    @property
    def count(self) -> int:
        """How many there are; a larger number says that there are new ones."""
        return len(self._journal)

    def close(self) -> None:
        """Release the file."""
        self._journal.close()


def number_of(receipt: dict[str, Any], name: str) -> int:
    """A node's number; what is none, or does not fit, is 0."""
    value = receipt.get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0


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
