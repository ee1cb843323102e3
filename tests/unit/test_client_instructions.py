"""What a node does on an instruction: trains, refuses, and gives the same answer again."""

# ruff: noqa: F811 - bench and store are fixtures

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.errors import TrainingError
from confide.proto import fleet_pb2
from confide_client.agent.app import QUERY, TRAIN, make_app
from confide_client.agent.envelope import pack, unpack
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.node_bench import MODEL, SIZE, Bench, bench, store  # noqa: F401
from tests.node_worlds import faq, opened

# --- instructions


def test_versions_that_differ_say_which_side_to_upgrade(bench: Bench) -> None:
    newer = bench.failure(bench.run.make(fleet_pb2.CONFIRM, b"", version=2, release="9.9"))
    older = bench.failure(bench.run.make(fleet_pb2.CONFIRM, b"", version=0))
    assert "Upgrade the node" in newer.message and "9.9" in newer.message
    assert "Upgrade the coordinator" in older.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_id": "../../etc"}, "not a run id"),
        ({"run_id": "A" * 32}, "not a run id"),
        ({"step": 0}, "step 0 is unknown"),
        ({"step": 99}, "upgrade the node"),
        ({"payload_digest": bytes(32)}, "payload does not have the stated digest"),
    ],
)
def test_malformed_instructions_are_answered_and_not_acted_on(bench: Bench, changes: dict[str, Any], said: str) -> None:
    failure = bench.failure(bench.run.make(fleet_pb2.CONFIRM, b"", **changes))
    assert (failure.code, said in failure.message) == ("TransportError", True)
    assert not bench.node.state.runs.exists()


def test_a_payload_that_was_exchanged_is_refused(bench: Bench) -> None:
    bench.offer()
    instruction, _ = bench.run.slot(MODEL)
    assert "payload does not have the stated" in bench.failure(instruction, {"model": MODEL[::-1]}).message
    assert not bench.trainer.trained


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_arbitrary_bytes_get_a_signed_failure(bench: Bench, body: bytes) -> None:
    assert bench.failure(body).code in {"TransportError", "StateError"}


def test_a_record_that_is_not_ours_gets_a_signed_failure(bench: Bench) -> None:
    body, _ = unpack(bench.runtime.answer(RecordDict()))
    assert opened(body, bench.node.member).failure.code == "TransportError"


# --- training


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 3}, "PolicyRefusal"),
        ({"round": 0}, "PolicyRefusal"),
        ({"attempt": 3}, "MODEL_REPEATED"),
        ({"attempt": 0}, "MODEL_REPEATED"),
        ({"model_sha256": bytes(32)}, "TransportError"),
    ],
)
def test_a_slot_outside_the_specification_is_refused(bench: Bench, changes: dict[str, Any], code: str) -> None:
    bench.offer()
    slot = {"round": changes.get("round", 1), **changes}
    assert bench.failure(*bench.run.slot(MODEL, **slot)).code == code
    assert not bench.trainer.trained


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (MODEL[:-4], "UpdateError"),
        (MODEL[:-1], "UpdateError"),
        (MODEL + b"1234", "UpdateError"),
        (b"", "UpdateError"),
        (np.full(SIZE, np.nan, dtype="<f4").tobytes(), "UpdateError"),
        (np.full(SIZE, np.inf, dtype="<f4").tobytes(), "UpdateError"),
    ],
)
def test_a_first_model_of_wrong_size_or_value_is_refused(bench: Bench, model: bytes, code: str) -> None:
    assert bench.offer(bench.signed(model=model)).accepted
    assert bench.failure(*bench.run.slot(model)).code == code
    assert not bench.trainer.trained


def test_the_model_chain_holds_over_rounds(bench: Bench) -> None:
    bench.offer()
    other = np.ones(SIZE, dtype="<f4").tobytes()
    assert bench.failure(*bench.run.slot(other)).code == "MODEL_CHAIN_BROKEN"
    assert bench.train()[1]
    orphan = bench.run.slot(other, round=2, parent_model_sha256=bytes(32))
    assert bench.failure(*orphan).code == "MODEL_CHAIN_BROKEN"
    parent = fleet_pb2.SlotOpen.FromString(_instruction(bench.run.slot(MODEL)[0]).body).model_sha256
    assert bench.ask(*bench.run.slot(other, round=2, parent_model_sha256=parent))[1]
    assert bench.failure(*bench.run.slot(MODEL, slot=3)).code == "MODEL_CHAIN_BROKEN"
    assert bench.trainer.trained == [1, 2]


def test_one_model_is_trained_on_in_no_more_slots_than_allowed(bench: Bench) -> None:
    bench.offer()
    for slot in (1, 2):
        assert bench.train(slot=slot)[1]
    assert bench.failure(*bench.run.slot(MODEL, slot=3)).code == "MODEL_REPEATED"
    assert bench.again().failure(*bench.run.slot(MODEL, slot=4)).code == "MODEL_REPEATED"


def _instruction(data: bytes) -> fleet_pb2.Instruction:
    return fleet_pb2.Instruction.FromString(data)


def test_a_policy_made_stricter_holds_at_once(bench: Bench) -> None:
    bench.offer()
    bench.policy('training_hours = ["00:00-24:00"]', "training_hours = []")
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == "NotNow" and "trains none" in failure.message and failure.busy_s
    bench.policy("training_hours = []", 'training_hours = ["00:00-24:00"]')
    assert bench.train(slot=2)[1]


def test_an_expired_roster_stops_everything(bench: Bench) -> None:
    bench.offer()
    object.__setattr__(bench.node, "clock", lambda: 4e9)
    assert bench.failure(*bench.run.slot(MODEL)).code == "ROSTER_STALE"


def test_a_revoked_node_stops(bench: Bench) -> None:
    bench.offer()
    bench.world.consortium.revoke("node-a")
    bench.node.member.roster.accept(bench.world.consortium.roster.signed)
    assert bench.failure(*bench.run.slot(MODEL)).code == "REVOKED"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("the loss is NaN at step 3"), "TrainingError", "NaN at step 3"),
        (MemoryError(), "TrainingError", "micro_batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory"), "TrainingError", "micro_batch_size"),
        (RuntimeError("patient Zoe in /data/zoe.jsonl"), "InternalError", "RuntimeError"),
        (TrainingError("cannot read /data/zoe/file.jsonl: gone"), "TrainingError", "(a path on the node)"),
    ],
)
def test_a_failed_training_is_told_without_private_data(bench: Bench, error: Exception, code: str, said: str) -> None:
    def fail() -> None:
        raise error

    bench.offer()
    bench.trainer.fail = fail
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == code and said in failure.message
    assert "zoe" not in failure.message.lower()
    assert "zoe" not in bench.node.state.audit.read_text().lower()


def test_a_poisoned_update_is_never_sent(bench: Bench) -> None:
    bench.offer()
    bench.trainer.scale = float("nan")
    assert bench.failure(*bench.run.slot(MODEL)).code == "TrainingError"


def test_a_data_set_that_changed_is_told_without_its_path(bench: Bench, tmp_path: Path) -> None:
    bench.offer()
    faq(tmp_path / "secret-name.jsonl", 9)
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == "DataError" and "secret-name" not in failure.message


# --- replies given again


def test_the_same_instruction_gets_the_same_bytes_also_after_a_crash(bench: Bench) -> None:
    bench.offer()
    instruction, payload = bench.run.slot(MODEL)
    first = bench.runtime.answer(pack(instruction, payload))
    again = bench.runtime.answer(pack(instruction, payload))
    later = bench.again().runtime.answer(pack(instruction, payload))
    assert unpack(first) == unpack(again) == unpack(later)
    assert bench.trainer.trained == [1], "it must not be trained again"
    assert [entry["again"] for entry in bench.events() if entry["event"] == "sent"][-3:] == [False, True, True]


def test_a_failure_too_is_given_again(bench: Bench) -> None:
    def fail() -> None:
        raise TrainingError("once")

    bench.offer()
    bench.trainer.fail = fail
    instruction, payload = bench.run.slot(MODEL)
    first = bench.ask(instruction, payload)
    bench.trainer.fail = lambda: None
    assert bench.ask(instruction, payload) == first


def test_a_sequence_number_is_used_once(bench: Bench) -> None:
    bench.offer()
    instruction, payload = bench.run.slot(MODEL)
    bench.ask(instruction, payload)
    other = _instruction(instruction)
    other.body = fleet_pb2.SlotOpen(slot=2, round=1, attempt=2, model_sha256=_slot(instruction)).SerializeToString()
    assert "other content" in bench.failure(other.SerializeToString(), payload).message
    assert bench.trainer.trained == [1]


def _slot(instruction: bytes) -> bytes:
    return fleet_pb2.SlotOpen.FromString(_instruction(instruction).body).model_sha256


def test_the_end_of_a_slot_erases_its_replies_and_no_later_ones(bench: Bench) -> None:
    bench.offer()
    bench.train(slot=1)
    replies = bench.node.state.run(bench.run.run_id) / "replies"
    bench.train(slot=2, attempt=2)
    assert len(list(replies.iterdir())) == 4
    end = fleet_pb2.End(slot=1, committed=False, failure="LIST_TOO_SMALL")
    assert bench.ask(bench.run.make(fleet_pb2.END, end.SerializeToString()))[0].WhichOneof("outcome") == "body"
    assert len(list(replies.iterdir())) == 2
    bench.end()
    assert not list(replies.iterdir())
    bench.end()
    assert bench.runtime.open_runs == 0
    assert bench.failure(*bench.run.slot(MODEL, slot=3)).code == "StateError"
    assert "SUBMISSION_REPLAYED" in bench.offer().reason


def test_the_run_record_tells_the_operator_where_it_stands(bench: Bench) -> None:
    bench.offer()
    bench.train()
    record = json.loads((bench.node.state.run(bench.run.run_id) / "run.json").read_bytes())
    assert (record["status"], record["sealing"], record["links"]["round"], record["uploads"]) == (
        "accepted",
        "none",
        1,
        1,
    )
    assert record["bytes_sent"] > 4 * SIZE
    path = bench.node.state.run(bench.run.run_id) / "run.json"
    written = path.stat().st_mtime_ns
    bench.ask(bench.run.make(fleet_pb2.END, fleet_pb2.End(slot=1, committed=False).SerializeToString()))
    assert path.stat().st_mtime_ns == written  # a small answer is no reason to write it
    bench.end()
    ended = json.loads(path.read_bytes())
    assert ended["status"] == "ended" and ended["bytes_sent"] > record["bytes_sent"] and ended["uploads"] == 1


def test_the_audit_log_says_what_was_asked_allowed_refused_and_sent(bench: Bench, tmp_path: Path) -> None:
    bench.offer()
    _, files = bench.train()
    bench.failure(*bench.run.slot(MODEL, round=2, parent_model_sha256=bytes(32)))
    events = bench.events()
    kinds = [entry["event"] for entry in events]
    assert kinds == ["offer accepted", "sent", "training", "sent", "step failed", "sent"]
    assert events[0]["administrator"] == "admin" and events[0]["specification"] == bench.spec.digest
    assert events[3]["payload"]["upload"]["bytes"] == len(files["upload"])
    assert str(tmp_path) not in bench.node.state.audit.read_text()


# --- the ClientApp


def _message(content: RecordDict, kind: str) -> Message:
    return make_message(
        metadata=Metadata(
            run_id=1,
            message_id="m",
            src_node_id=1,
            dst_node_id=2,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=60.0,
            message_type=kind,
        ),
        content=content,
    )


def test_the_client_app_answers_its_two_message_types_and_no_others(bench: Bench) -> None:
    app = make_app(lambda _: bench.runtime)
    context = Context(1, 2, {}, RecordDict(), {})
    offer = bench.run.make(fleet_pb2.OFFER, bench.signed().SerializeToString())
    reply = app(_message(pack(offer), QUERY), context)
    assert fleet_pb2.OfferAnswer.FromString(opened(unpack(reply.content)[0], bench.node.member).body).accepted
    instruction, payload = bench.run.slot(MODEL)
    trained = app(_message(pack(instruction, payload), TRAIN), context)
    assert unpack(trained.content)[1]["upload"]
    with pytest.raises(ValueError, match="No train function"):
        app(_message(pack(offer), "train"), context)
