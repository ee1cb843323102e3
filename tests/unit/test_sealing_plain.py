"""Sealing off: sums in node order, checked uploads, and a coordinator that goes on after a crash."""

from pathlib import Path

import numpy as np
import pytest
from confide.codec.digest import DigestedFile, upload_digest
from confide.codec.tensors import TensorSchema
from confide.errors import ConfideError, ProtocolFailure, UpdateError
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from confide.sealing.factory import make_collector, make_member
from confide.sealing.primitives import wire
from confide.sealing.roles import Abandoned, Collector, Opened, SlotPlan

from tests.sealing_rosters import make_roster

SIZE = 1000
SCHEMA = TensorSchema.unnamed(SIZE)
NODES = ("hospital-a", "hospital-b", "hospital-c")


def specification(**federation: object) -> Specification:
    text = EXAMPLE + "\n[sealing]\nkind = 'none'\n"
    for name, value in ({"weights": '"examples"'} | federation).items():
        text = text.replace("rounds = 3", f"rounds = 3\n{name} = {value}")
    return parse_toml(text)


def roster() -> Roster:
    return make_roster({name: SigningKey.generate() for name in NODES})


def collector(folder: Path, **federation: object) -> Collector:
    return make_collector(specification(**federation), roster(), folder, "0" * 32, SCHEMA)


def contribution(number: int, scale: float = 1e-3) -> Contribution:
    update = np.random.default_rng(number).normal(size=SIZE, scale=scale).astype(np.float32)
    return Contribution(update, weight=0.5 + 0.1 * number, metrics={Metric.TRAIN_LOSS: 1.5 + number})


def answer(
    folder: Path, name: str, number: int, body: bytes, given: Contribution | None = None
) -> tuple[bytes, DigestedFile]:
    member = make_member(
        specification(), roster(), name, SigningKey.generate(), folder / name, "0" * 32, SCHEMA,
        initial_model_sha256=b"",
    )  # fmt: skip
    made = member.handle(fleet_pb2.TRAIN, body, lambda _: given or contribution(number))
    assert made.payload is not None
    return made.body, DigestedFile.read(made.payload)


def plan(slot: int = 1) -> SlotPlan:
    return SlotPlan(slot=slot, round=slot, attempt=1, model_sha256=b"m" * 32, parent_model_sha256=b"")


def test_sum_is_in_node_order_whatever_the_order_of_answers(tmp_path: Path) -> None:
    results = []
    for order in (NODES, NODES[::-1]):
        folder = tmp_path / order[0]
        one = collector(folder)
        one.begin_epoch(NODES)
        assert one.exchange() is None
        one.open_slot(plan())
        exchange = one.exchange()
        assert exchange is not None and exchange.with_model
        for name in order:
            one.receive(name, *answer(folder, name, NODES.index(name), exchange.bodies[name]))
        one.close_exchange()
        assert one.exchange() is None
        assert isinstance(one.outcome, Opened)
        results.append(one.outcome)
    expected = sum((0.5 + 0.1 * i) * contribution(i).update.astype(np.float64) for i in range(3))
    assert np.array_equal(results[0].update_sum, results[1].update_sum)
    np.testing.assert_allclose(results[0].update_sum, expected, rtol=1e-12)
    assert results[0].weight_sum == pytest.approx(1.8)
    assert results[0].metrics == {Metric.TRAIN_LOSS: (7.5, 3)}


def test_too_few_are_abandoned_and_named(tmp_path: Path) -> None:
    one = collector(tmp_path)
    one.begin_epoch(NODES)
    one.open_slot(plan())
    exchange = one.exchange()
    assert exchange is not None
    one.receive(NODES[0], *answer(tmp_path, NODES[0], 0, exchange.bodies[NODES[0]]))
    one.lost(NODES[1], "TrainingError", "loss is NaN")
    one.close_exchange()
    assert isinstance(one.outcome, Abandoned)
    assert one.outcome.code == "LIST_TOO_SMALL"
    assert one.outcome.dropped == {
        NODES[1]: "TrainingError: loss is NaN",
        NODES[2]: "TransportError: no answer before the deadline",
    }
    end = one.end_message(b"")
    assert not end.committed and end.failure == "LIST_TOO_SMALL" and not end.contributors


def test_a_restarted_coordinator_keeps_what_it_had(tmp_path: Path) -> None:
    one = collector(tmp_path)
    one.begin_epoch(NODES)
    one.open_slot(plan())
    exchange = one.exchange()
    assert exchange is not None
    for number, name in enumerate(NODES[:2]):
        one.receive(name, *answer(tmp_path, name, number, exchange.bodies[name]))
    one._journal.close()  # type: ignore[attr-defined]  # as the end of its process would
    two = collector(tmp_path)
    assert two.resumable == plan()
    two.open_slot(plan())
    again = two.exchange()
    assert again is not None and set(again.bodies) == {NODES[2]} and again.bodies[NODES[2]] == exchange.bodies[NODES[2]]
    two.receive(NODES[2], *answer(tmp_path, NODES[2], 2, again.bodies[NODES[2]]))
    two.close_exchange()
    assert isinstance(two.outcome, Opened) and two.outcome.contributors == NODES
    assert list(two.end_message(b"n" * 32).contributors) == list(NODES)
    assert two.resumable is None


def test_the_same_instruction_gets_the_same_bytes_and_an_old_slot_none(tmp_path: Path) -> None:
    member = make_member(
        specification(), roster(), NODES[0], SigningKey.generate(), tmp_path, "0" * 32, SCHEMA, initial_model_sha256=b""
    )
    calls: list[int] = []

    def train(_: fleet_pb2.SlotOpen) -> Contribution:
        calls.append(1)
        return contribution(len(calls))

    body = wire.encode(plan(2).to_message())
    assert member.handle(fleet_pb2.TRAIN, body, train) == member.handle(fleet_pb2.TRAIN, body, train)
    assert len(calls) == 1
    with pytest.raises(ProtocolFailure, match="SLOT_REUSED"):
        member.handle(fleet_pb2.TRAIN, wire.encode(plan(1).to_message()), train)


def _altered(body: bytes, **changes: object) -> bytes:
    message = sealing_pb2.PlainUpload.FromString(body)
    for field, value in changes.items():
        if field == "metrics":
            del message.metrics[:]
            message.metrics.extend(value)  # type: ignore[arg-type]
        else:
            setattr(message, field, value)
    return wire.encode(message)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weight": 1.5}, "SUM_OUT_OF_RANGE"),
        ({"weight": float("nan")}, "SUM_OUT_OF_RANGE"),
        ({"slot": 7}, "LATE_UPLOAD"),
        ({"upload_digest": b"x" * 32}, "does not have the stated hash"),
        ({"upload_digest": b"x"}, "MALFORMED"),
        ({"version": 2}, "MALFORMED"),
        ({"metrics": [sealing_pb2.MetricValue(name="patient_count", value=1.0)]}, "METRIC_NOT_ALLOWED"),
        ({"metrics": [sealing_pb2.MetricValue(name="eval_accuracy", value=1.5)]}, "METRIC_NOT_ALLOWED"),
        ({"metrics": [sealing_pb2.MetricValue(name="eval_accuracy", value=0.5)] * 2}, "MALFORMED"),
    ],
)
def test_bad_uploads_are_refused_and_dropped(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    one = collector(tmp_path)
    one.begin_epoch(NODES)
    one.open_slot(plan())
    exchange = one.exchange()
    assert exchange is not None
    body, payload = answer(tmp_path, NODES[0], 0, exchange.bodies[NODES[0]])
    with pytest.raises(ConfideError, match=expected):
        one.receive(NODES[0], _altered(body, **changes), payload)
    one.close_exchange()
    assert isinstance(one.outcome, Abandoned) and expected in one.outcome.dropped[NODES[0]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0" * (4 * SIZE - 4), "3996 bytes"),
        (b"\0" * (4 * SIZE + 4), "4004 bytes"),
        (np.full(SIZE, np.nan, "<f4").tobytes(), "NaN"),
    ],
)
def test_truncated_long_and_nan_payloads_are_refused(tmp_path: Path, data: bytes, expected: str) -> None:
    one = collector(tmp_path)
    one.begin_epoch(NODES)
    one.open_slot(plan())
    exchange = one.exchange()
    assert exchange is not None
    body, payload = answer(tmp_path, NODES[0], 0, exchange.bodies[NODES[0]])
    payload.path.write_bytes(data)
    with pytest.raises(UpdateError, match=expected):
        one.receive(NODES[0], _altered(body, upload_digest=upload_digest(data)), DigestedFile.read(payload.path))


def test_updates_are_clipped_and_checked_on_the_node(tmp_path: Path) -> None:
    body = wire.encode(plan().to_message())
    _, payload = answer(tmp_path, NODES[0], 0, body, contribution(0, scale=10.0))
    assert np.linalg.norm(np.fromfile(payload.path, "<f4")) == pytest.approx(12.0, rel=1e-5)
    with pytest.raises(UpdateError, match="NaN"):
        answer(tmp_path, NODES[0], 0, body, Contribution(np.full(SIZE, np.inf, np.float32)))
    with pytest.raises(UpdateError, match="shape"):
        answer(tmp_path, NODES[0], 0, body, Contribution(np.zeros(3, np.float32)))


def test_without_sealing_too_the_clip_follows_the_learning_rate(tmp_path: Path) -> None:
    following = specification(clip_schedule="'learning_rate'", warm_start_rounds=1, warm_start_steps=1)
    member = make_member(
        following, roster(), NODES[0], SigningKey.generate(), tmp_path, "0" * 32, SCHEMA, initial_model_sha256=b""
    )
    body = wire.encode(plan().to_message())
    made = member.handle(fleet_pb2.TRAIN, body, lambda _: contribution(0, scale=10.0))
    assert made.payload is not None
    share = np.sqrt(1 / following.training.local_steps)
    assert np.linalg.norm(np.fromfile(made.payload, "<f4")) == pytest.approx(12.0 * share, rel=1e-3)
