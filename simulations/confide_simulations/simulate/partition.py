"""Who gets which records: the shards of virtual nodes, drawn from a seed.

>>> records = [{"text": str(i), "kind": "ab"[i % 2]} for i in range(8)]
>>> shards = split(records, parse_scheme("by-key"), names=("x", "y"), key="kind", seed=1)
>>> {name: [records[i]["kind"] for i in rows] for name, rows in shards.items()}
{'x': ['a', 'a', 'a', 'a'], 'y': ['b', 'b', 'b', 'b']}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from confide.errors import DataError, SpecificationError
from confide.models.seeds import derive

Record = Mapping[str, Any]
Shards = dict[str, list[int]]
"""Record numbers by node, ascending; every record goes to exactly one node."""

LEAST = 2
"""Records of a node: one to train on and one to evaluate on."""
_DRAWS = 100


@dataclass(frozen=True)
class Scheme:
    """How records are dealt.

    iid: at random, in equal parts. by-key: all records of one value of a field go to the same node. dirichlet: each
    value's records are cut in proportions drawn from a symmetric Dirichlet distribution (Li et al. 2022, section 3.2);
    alpha > 0, small means that a node sees few values, large means nearly iid.
    """

    kind: Literal["iid", "by-key", "dirichlet"]
    alpha: float = 0.0

    def __str__(self) -> str:
        return f"dirichlet:{self.alpha:g}" if self.kind == "dirichlet" else self.kind


def parse_scheme(text: str) -> Scheme:
    """`iid`, `by-key` or `dirichlet:ALPHA`. Raises SpecificationError for anything else."""
    kind, _, rest = text.partition(":")
    if kind == "iid" and not rest:
        return Scheme("iid")
    if kind == "by-key" and not rest:
        return Scheme("by-key")
    if kind == "dirichlet":
        try:
            alpha = float(rest)
        except ValueError:
            alpha = math.nan
        if 0 < alpha <= 1e6:
            return Scheme("dirichlet", alpha)
        raise SpecificationError(
            f"--partition is {text!r}; ALPHA of dirichlet:ALPHA is a number above 0, for example dirichlet:0.5"
        )
    raise SpecificationError(f"--partition is {text!r}; it is one of iid, by-key, dirichlet:ALPHA")


def hold_out(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(kept, held out) record numbers of `count`, each ascending. fraction in [0, 1)."""
    held = min(count, math.ceil(count * fraction))
    order = _generator(seed, "held-out").permutation(count)
    return sorted(int(i) for i in order[held:]), sorted(int(i) for i in order[:held])


def split(records: Sequence[Record], scheme: Scheme, *, names: Sequence[str], key: str | None, seed: int) -> Shards:
    """Deal the records to the named nodes. Raises DataError or SpecificationError naming what does not suffice."""
    if len(records) < LEAST * len(names):
        raise DataError(
            f"{len(records)} records are too few for {len(names)} nodes, which need {LEAST} each; "
            f"use at most {len(records) // LEAST} nodes, or more data"
        )
    if scheme.kind == "iid":
        order = _generator(seed, "partition").permutation(len(records))
        return {name: sorted(int(i) for i in order[place :: len(names)]) for place, name in enumerate(names)}
    groups = _groups(records, scheme, key)
    if scheme.kind == "by-key":
        return _by_key(groups, names, str(key))
    return _dirichlet(groups, scheme.alpha, names, seed)


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, purpose))


def _groups(records: Sequence[Record], scheme: Scheme, key: str | None) -> dict[str, list[int]]:
    """Record numbers by the key's value."""
    if key is None:
        raise SpecificationError(f"--partition {scheme} deals by the values of a field; name it with --key FIELD")
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        if record.get(key) is None:
            present = ", ".join(sorted(record)) or "none"
            raise DataError(
                f"record {number + 1} has no field {key!r} (it has: {present}); name a field that every record has "
                "with --key, or use --partition iid"
            )
        groups.setdefault(str(record[key]), []).append(number)
    return dict(sorted(groups.items()))


def _by_key(groups: dict[str, list[int]], names: Sequence[str], key: str) -> Shards:
    if len(groups) < len(names):
        raise DataError(
            f"field {key!r} has {len(groups)} values, fewer than the {len(names)} nodes; use at most {len(groups)} "
            "nodes, another --key, or --partition dirichlet:ALPHA"
        )
    shards: Shards = {name: [] for name in names}
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shards.values(), key=len).extend(group)
    small = [name for name, rows in shards.items() if len(rows) < LEAST]
    if small:
        raise DataError(
            f"by field {key!r}, {small[0]} would hold fewer than {LEAST} records; use fewer nodes or another --key"
        )
    return {name: sorted(rows) for name, rows in shards.items()}


def _dirichlet(groups: dict[str, list[int]], alpha: float, names: Sequence[str], seed: int) -> Shards:
    generator = _generator(seed, "partition")
    for _ in range(_DRAWS):
        parts: list[list[int]] = [[] for _ in names]
        for rows in groups.values():
            shuffled = generator.permutation(rows)
            shares = generator.dirichlet(np.full(len(names), alpha))
            if not np.isfinite(shares).all():  # a very small alpha underflows: everything goes to one node
                shares = np.eye(len(names))[generator.integers(len(names))]
            cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(shuffled, cuts), strict=True):
                part.extend(int(i) for i in piece)
        if min(map(len, parts)) >= LEAST:
            return {name: sorted(part) for name, part in zip(names, parts, strict=True)}
    raise DataError(
        f"in {_DRAWS} draws of dirichlet:{alpha:g} some of the {len(names)} nodes always got fewer than {LEAST} "
        "records; raise ALPHA, use fewer nodes, or more data"
    )
