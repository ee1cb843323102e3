"""Who gets which records: nobody twice, nothing lost, the same every time, and refusals that say what to do."""

from typing import Any

import numpy as np
import pytest
from confide.errors import DataError, SpecificationError
from confide_simulations.simulate.partition import LEAST, Scheme, hold_out, parse_scheme, split
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("a", "b", "c")


def records(count: int, kinds: int = 6) -> list[dict[str, Any]]:
    return [{"text": f"t{i}", "kind": f"k{i % kinds}"} for i in range(count)]


@pytest.mark.parametrize("text", ["iid", "by-key", "dirichlet:0.1", "dirichlet:1000"])
@given(count=st.integers(60, 120), seed=st.integers(0, 2**62))
def test_every_record_goes_to_exactly_one_node(text: str, count: int, seed: int) -> None:
    rows = records(count)
    try:
        shards = split(rows, parse_scheme(text), names=NAMES, key="kind", seed=seed)
    except DataError as error:
        assert "raise ALPHA" in str(error)
        return
    assert sorted(i for shard in shards.values() for i in shard) == list(range(count))
    assert tuple(shards) == NAMES
    assert min(map(len, shards.values())) >= LEAST
    assert all(shard == sorted(shard) for shard in shards.values())
    assert shards == split(rows, parse_scheme(text), names=NAMES, key="kind", seed=seed)


def test_the_seed_decides() -> None:
    for text in ("iid", "dirichlet:1"):
        one, other = (split(records(90), parse_scheme(text), names=NAMES, key="kind", seed=s) for s in (1, 2))
        assert one != other


def test_by_key_keeps_a_value_together() -> None:
    rows = records(60)
    shards = split(rows, parse_scheme("by-key"), names=NAMES, key="kind", seed=0)
    held = [{rows[i]["kind"] for i in shard} for shard in shards.values()]
    assert sum(map(len, held)) == 6 == len(set.union(*held))


def spread(alpha: float) -> float:
    """Mean over draws of the largest share that one node has of a value's records."""
    rows, largest = records(600, kinds=4), []
    for seed in range(20):
        shards = split(rows, Scheme("dirichlet", alpha), names=NAMES, key="kind", seed=seed)
        for kind in {row["kind"] for row in rows}:
            counts = [sum(rows[i]["kind"] == kind for i in shard) for shard in shards.values()]
            largest.append(max(counts) / sum(counts))
    return float(np.mean(largest))


def test_a_small_alpha_is_heterogeneous_and_a_large_one_is_not() -> None:
    # The largest of three shares under Dir(1, 1, 1) is 11/18 in expectation: a stick broken twice.
    assert spread(1.0) == pytest.approx(11 / 18, abs=0.05)
    assert spread(1000.0) == pytest.approx(1 / 3, abs=0.05)
    assert spread(0.2) > 0.75


def test_held_out_records_are_apart() -> None:
    kept, held = hold_out(25, 0.1, 3)
    assert len(held) == 3 and sorted(kept + held) == list(range(25))
    assert hold_out(25, 0.0, 3) == (list(range(25)), [])
    assert hold_out(25, 0.1, 4)[1] != held


@pytest.mark.parametrize(
    "text", ["", "random", "iid:1", "by-key:x", "dirichlet", "dirichlet:0", "dirichlet:nan", "dirichlet:x"]
)
def test_unknown_schemes_are_refused(text: str) -> None:
    with pytest.raises(SpecificationError, match="--partition is"):
        parse_scheme(text)


def test_what_does_not_suffice_is_named() -> None:
    with pytest.raises(DataError, match=r"5 records are too few for 3 nodes.*at most 2 nodes"):
        split(records(5), parse_scheme("iid"), names=NAMES, key=None, seed=0)
    with pytest.raises(SpecificationError, match="--key FIELD"):
        split(records(60), parse_scheme("by-key"), names=NAMES, key=None, seed=0)
    with pytest.raises(DataError, match=r"record 1 has no field 'ward' \(it has: kind, text\)"):
        split(records(60), parse_scheme("dirichlet:1"), names=NAMES, key="ward", seed=0)
    with pytest.raises(DataError, match="'kind' has 2 values, fewer than the 3 nodes"):
        split(records(60, kinds=2), parse_scheme("by-key"), names=NAMES, key="kind", seed=0)
    with pytest.raises(DataError, match="raise ALPHA"):
        split(records(60, kinds=1), parse_scheme("dirichlet:0.000001"), names=NAMES, key="kind", seed=0)
