"""Events and ledger lines: one spelling each, everything else refused by a named error."""

import contextlib
import json

import pytest
from confide import canonical
from confide.errors import LedgerError
from confide.privacy.events import (
    Event,
    GaussianRelease,
    SampledGaussian,
    SkellamRelease,
    parse_events,
    serialize_events,
)
from confide.privacy.ledger_entries import Approved, Reserved, RunCost, events_digest, parse_entry, to_body
from confide.privacy.receipts import parse_receipt, read_receipts
from hypothesis import given, settings
from hypothesis import strategies as st

ALL: tuple[Event, ...] = (
    GaussianRelease(noise_multiplier=1.0, count=2),
    SampledGaussian(noise_multiplier=0.7, sampling_rate=0.05, steps=98),
    SkellamRelease(variance=100.0, l2=3.0, l1=9.0),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def approved(**changes: object) -> Approved:
    fields: dict[str, object] = {
        "time_ms": 1, "run": "a" * 32, "group": "notes", "data": "notes", "unit": "record", "specification": "b" * 64,
        "cost": RunCost(slot=ALL, slots=3), "basis": "filter", "budget_epsilon": 1.0, "budget_delta": 1e-5,
        "salt": "c" * 32,
    }  # fmt: skip
    return Approved(**{**fields, **changes})  # type: ignore[arg-type]


def test_events_survive_the_round_trip_and_have_one_spelling() -> None:
    data = serialize_events(ALL)
    assert parse_events(data) == ALL
    assert serialize_events(ALL[:1]) == b'[{"count":2,"kind":"gaussian","noise_multiplier":1.0}]'
    with pytest.raises(LedgerError, match="canonical"):
        parse_events(data.replace(b",", b", "))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "laplace"}, {"kind": "shuffled_gaussian"}, {"steps": 0}, {"steps": 1.5}, {"steps": 10**10},
        {"sampling_rate": 0.0}, {"sampling_rate": 1.1}, {"noise_multiplier": 0.0}, {"noise_multiplier": -1.0},
        {"noise_multiplier": "1.0"}, {"epsilon": 0.1}, {"sampling_rate": None},
    ],
)  # fmt: skip
def test_unknown_mechanisms_fields_and_values_are_refused(change: dict[str, object]) -> None:
    document = {**ALL[1].model_dump(), **change}
    with pytest.raises(LedgerError, match="nothing is guessed"):
        parse_events(canonical.encode([document]))


def test_a_missing_field_is_not_filled_in() -> None:
    with pytest.raises(LedgerError):
        parse_events(b'[{"kind":"gaussian","noise_multiplier":1.0}]')


def test_not_a_number_is_refused() -> None:
    for word in (b"NaN", b"Infinity", b"1e999"):
        with pytest.raises(LedgerError):
            parse_events(b'[{"count":2,"kind":"gaussian","noise_multiplier":' + word + b"}]")


def test_repetition_is_bounded() -> None:
    with pytest.raises(LedgerError, match="times"):
        ALL[1].times(10**9)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.one_of(st.binary(max_size=200), JSON.map(canonical.encode), st.lists(JSON).map(canonical.encode)))
def test_the_event_parser_raises_only_its_error(data: bytes) -> None:
    with contextlib.suppress(LedgerError):
        assert serialize_events(parse_events(data)) == data


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    body=JSON
    | st.dictionaries(st.sampled_from(["kind", "run", "slot", "time_ms", "cost", "salt", "slots"]), JSON)
    | st.fixed_dictionaries({"kind": st.sampled_from(["approved", "reserved", "moved", "spent", "released"])}),
    field=st.sampled_from(sorted(Approved.model_fields)),
    value=JSON,
)
def test_the_line_parser_raises_only_its_error(body: object, field: str, value: object) -> None:
    for candidate in (body, {**to_body(approved()), field: value}):
        with contextlib.suppress(LedgerError):
            assert to_body(parse_entry(candidate)) == candidate


@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.binary(max_size=200) | JSON.map(canonical.encode))
def test_the_receipt_parsers_raise_only_their_error(data: bytes) -> None:
    with pytest.raises(LedgerError):
        parse_receipt(data)
    text = data.decode("utf-8", errors="replace")
    with contextlib.suppress(LedgerError):
        assert read_receipts(text) == []


def test_lines_survive_the_round_trip() -> None:
    of_users = approved(unit="user", user_key="patient")
    for line in (approved(), of_users, Reserved(time_ms=0, run="a" * 32, slot=1)):
        assert parse_entry(json.loads(canonical.encode(to_body(line)))) == line


def test_the_digest_of_a_cost_is_salted() -> None:
    """Without salt, whoever knows the batch size could try every N until the hash fits."""
    one, other = approved(), approved(salt="d" * 32)
    assert events_digest(one) != events_digest(other)
    assert events_digest(one) != events_digest(approved(cost=RunCost(slot=ALL[:2], slots=3)))
    assert events_digest(one) == events_digest(approved(cost=RunCost(slot=ALL, slots=9)))
