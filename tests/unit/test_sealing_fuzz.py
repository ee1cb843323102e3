"""Bytes from an adversary: decoders raise the named errors and nothing else."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.errors import ConfideError, ProtocolFailure
from confide.proto import fleet_pb2, sealing_pb2
from confide.sealing.primitives import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sealing_harness import STEPS, Federation

KINDS = [
    kind for kind in vars(sealing_pb2).values() if isinstance(kind, type) and hasattr(kind, "SerializeToString")
]  # fmt: skip


@pytest.fixture(scope="module")
def recorded() -> Iterator[tuple[Federation, list[tuple[fleet_pb2.Step, str, bytes, bytes]]]]:
    """A federation with a finished slot and every message of it."""
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), 3, size=16)
        federation.slot()
        yield federation, list(federation.seen)


@given(data=st.binary(max_size=300), kind=st.sampled_from(KINDS))
@settings(max_examples=400)
def test_decoders_raise_malformed_or_return_the_one_encoding(data: bytes, kind: type) -> None:
    try:
        message = wire.decode(kind, data)
    except ProtocolFailure as error:
        assert error.code == "MALFORMED"
    else:
        assert wire.encode(message) == data


CHANGES = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "repeat"]), st.integers(0, 2**16), st.binary(min_size=1, max_size=8)
)


def mutated(data: bytes, change: tuple[str, int, bytes]) -> bytes:
    how, place, extra = change
    at = place % max(1, len(data))
    match how:
        case "flip":
            return data[:at] + bytes([data[at] ^ max(1, extra[0])]) + data[at + 1 :] if data else extra
        case "cut":
            return data[:at]
        case "insert":
            return data[:at] + extra + data[at:]
        case _:
            return data + data[at:]


@given(which=st.integers(0, 2**16), step=st.sampled_from([None, None, *STEPS, fleet_pb2.END, 99]), change=CHANGES)
@settings(max_examples=250)
def test_a_node_answers_or_refuses_by_name(recorded, which, step, change) -> None:  # type: ignore[no-untyped-def]
    federation, messages = recorded
    own, node, body, _ = messages[which % len(messages)]
    try:
        federation.ask(own if step is None else step, node, mutated(body, change))
    except ConfideError as error:
        assert error.code and str(error)


@given(which=st.integers(0, 2**16), fresh=st.booleans(), change=CHANGES)
@settings(max_examples=250)
def test_a_coordinator_takes_or_refuses_by_name(recorded, which, fresh, change) -> None:  # type: ignore[no-untyped-def]
    federation, messages = recorded
    collector = federation.collector
    if collector.resumable is None and fresh:
        collector._attendance.renew = True
        federation.epoch()
        collector.open_slot(federation.plan(slot=collector._state.last_slot + 1))
    _, node, _, reply = messages[which % len(messages)]
    try:
        collector.receive(node, mutated(reply, change), None)
    except ConfideError as error:
        assert error.code and str(error)
