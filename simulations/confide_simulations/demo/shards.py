"""Who holds what in the demo: held-out questions over all categories, and one private shard an organization.

>>> records = [{"category": c, "question": str(i), "answer": "a"} for c in "abc" for i in range(10)]
>>> split = split_by_category(records, nodes=2, held_out=4)
>>> len(split.held_out), [len(shard) for shard in split.shards.values()]
(4, [17, 9])
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.errors import DataError

NAMES = ("hospital-a", "hospital-b", "bank-c", "law-firm-d")
Record = Mapping[str, str]


@dataclass(frozen=True)
class Split:
    """held_out is seen by nobody but the demo's scoring; shards are by node name."""

    held_out: tuple[Record, ...]
    shards: Mapping[str, tuple[Record, ...]]


def node_names(count: int) -> tuple[str, ...]:
    """Invented organizations, as many as asked."""
    return NAMES[:count] + tuple(f"organization-{number}" for number in range(len(NAMES) + 1, count + 1))


def _by_category(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.get("category", ""), []).append(record)
    return groups


def split_by_category(records: Sequence[Record], *, nodes: int, held_out: int = 40) -> Split:
    """Hold out the last records of every category in turn; deal whole categories to the nodes, largest first.

    Without categories (or with fewer than nodes) single records are dealt in turn.
    Raises DataError when there are too few records.
    """
    if len(records) < held_out + nodes:
        raise DataError(f"{len(records)} records are too few for {held_out} held out and {nodes} nodes; add records")
    groups = _by_category(records)
    apart: list[Record] = []
    while len(apart) < held_out:
        for name in sorted(groups, key=lambda key: (-len(groups[key]), key)):
            if len(apart) < held_out and len(groups[name]) > 1:
                apart.append(groups[name].pop())
    rest = list(groups.values())
    if len(rest) < nodes:
        rest = [[record] for group in rest for record in group]
    shards: dict[str, list[Record]] = {name: [] for name in node_names(nodes)}
    for group in sorted(rest, key=len, reverse=True):
        min(shards.values(), key=len).extend(group)
    return Split(tuple(apart), {name: tuple(shard) for name, shard in shards.items()})


def write_jsonl(path: Path, records: Sequence[Record]) -> None:
    """One JSON object a line; mode 0600, as an organization would keep it."""
    path.touch(mode=0o600)
    path.write_text("".join(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records), "utf-8")


def read_records(path: Path) -> list[Record]:
    """The user's own questions for `confide demo --data`: jsonl with question and answer (category is optional)."""
    records: list[Record] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}. Give a UTF-8 file of JSON lines.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records.append({key: str(record[key]) for key in ("question", "answer")})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path} line {number} is not an object with "question" and "answer" ({error!r}); correct that line'
            ) from error
        if "category" in record:
            records[-1] = {**records[-1], "category": str(record["category"])}
    return records
