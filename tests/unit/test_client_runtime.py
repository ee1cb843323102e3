"""The node's answers: offers, trainings, refusals, replays. Only the trainer is a small one of the test's own."""

import dataclasses
import errno
import getpass
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide.codec.tensors import TensorSchema
from confide.errors import ModelError, RetryableError, StateError, TrainingError, TransportError
from confide.identity.consortium import Consortium
from confide.identity.keys import SigningKey
from confide.identity.submission import sign_submission
from confide.journal import Journal
from confide.journal import read as read_journal
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.specification import Specification
from confide_client.agent.agent import Agent
from confide_client.agent.app import QUERY, TRAIN, make_app
from confide_client.agent.envelope import pack, unpack
from confide_client.agent.notifying import filled, notify, parse_command
from confide_client.audit.log import MOST_OWED, Audit
from confide_client.data.fitness import Fitness
from confide_client.runs import approvals
from confide_client.runs.hardware import vector_units
from confide_client.runs.offers import VerifiedOffer, load_offer
from confide_client.runs.records import Record
from confide_client.state import StateFolder
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.node_bench import MODEL, SIZE, Bench, make_store, open_bench
from tests.node_worlds import Instructions, faq, opened, wait_for
from tests.node_worlds import World as NodeWorld
from tests.training_specs import specification


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_store(tmp_path_factory.mktemp("runtime-models"))


@pytest.fixture
def bench(tmp_path: Path, store: tuple[Path, str]) -> Iterator[Bench]:
    with open_bench(tmp_path, store) as bench:
        yield bench


# --- offers


def test_an_allowed_offer_is_accepted_and_trained_on(bench: Bench) -> None:
    answer = bench.offer()
    assert answer.accepted
    assert answer.precision == "float32"
    reply, files = bench.train()
    upload = sealing_pb2.PlainUpload.FromString(reply.body)
    assert np.frombuffer(files["upload"], "<f4").tolist() == [6.0] * SIZE  # 8 records, a quarter for evaluation
    assert (upload.weight, upload.slot, reply.node) == (1.0, 1, "node-a")


def test_a_node_tells_of_its_machine_what_its_policy_names_and_else_nothing(bench: Bench) -> None:
    assert bench.offer().hardware == fleet_pb2.Hardware()
    bench.policy('approval = "auto"', 'approval = "auto"\nhardware = ["cores", "memory"]')
    some = bench.offer().hardware
    assert 0 < some.cores <= (os.cpu_count() or 1) and some.memory_gib > 0
    assert (list(some.vector_units), some.accelerator) == ([], "")
    bench.policy('"cores", "memory"', '"vector_units", "accelerator"')
    rest = bench.offer().hardware
    assert (rest.cores, rest.memory_gib) == (0, 0) and rest.vector_units and rest.accelerator


def test_vector_units_are_those_that_the_processor_names(tmp_path: Path) -> None:
    for line, found in (
        ("flags\t\t: fpu sse2 avx2 avx512f amx_bf16", ["avx2", "avx512f", "amx_bf16"]),
        ("Features\t: fp asimd sve", ["asimd", "sve"]),
        ("model name : nothing known", []),
    ):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
        assert vector_units(tmp_path / "cpuinfo") == found
    assert vector_units(tmp_path / "absent") == []


def test_a_person_is_asked_and_answers(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    first = bench.offer()
    assert (first.accepted, first.waiting) == (False, True)
    assert bench.failure(*bench.run.slot(MODEL)).code == "StateError"
    folder = bench.node.state.run(bench.run.run_id)
    approvals.decide(folder, load_offer(folder, bench.node.member).sha256, "approved")
    assert bench.offer().accepted
    assert bench.train()[1]
    events = [entry["event"] for entry in bench.events()]
    assert events.count("offer waits for approval") == 1


def test_a_person_refuses(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    bench.offer()
    folder = bench.node.state.run(bench.run.run_id)
    approvals.decide(folder, load_offer(folder, bench.node.member).sha256, "refused", "not before the holidays")
    answer = bench.offer()
    assert (answer.accepted, answer.waiting) == (False, False)
    assert "holidays" not in answer.reason
    assert not bench.trainer.trained


def test_an_approval_of_something_else_counts_for_nothing(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    bench.offer()
    approvals.decide(bench.node.state.run(bench.run.run_id), "0" * 64, "approved")
    assert bench.offer().waiting


def test_a_node_says_that_it_takes_part_when_it_can_answer_in_time(bench: Bench) -> None:
    loaded = threading.Event()

    def slow(_: Specification, __: Path) -> TensorSchema:
        assert loaded.wait(60)
        return TensorSchema.unnamed(SIZE)

    bench.node = dataclasses.replace(bench.node, schema=slow)
    federation = bench.spec.federation.model_copy(update={"exchange_deadline_s": 0.3})
    bench.spec = bench.spec.model_copy(update={"federation": federation})
    for runtime in (bench.runtime, bench.again().runtime):
        bench.runtime, runtime._node = runtime, bench.node
        answer = bench.offer()
        assert (answer.accepted, answer.waiting, answer.preparing) == (False, True, True)
        record = Record.load(bench.node.state.run(bench.run.run_id))
        assert record is not None and record.status == "preparing"
    loaded.set()
    assert bench.runtime._preparing[bench.run.run_id].timed(60)
    assert bench.offer().accepted
    assert not bench.trainer.trained
    assert [entry["event"] for entry in bench.events()].count("offer accepted") == 1


def test_a_node_that_cannot_load_the_model_says_so_when_it_is_needed(bench: Bench) -> None:
    def damaged(_: Specification, __: Path) -> TensorSchema:
        raise ModelError("config.json is damaged; add the model again")

    bench.runtime._node = dataclasses.replace(bench.node, schema=damaged)
    assert bench.offer().accepted
    assert bench.failure(*bench.run.slot(MODEL)).code == "ModelError"


def test_a_first_model_comes_alone_and_to_sealed_runs_only(bench: Bench) -> None:
    assert bench.offer().accepted
    for payload in ({}, {"first": MODEL}, {"model": MODEL, "other": b""}):
        failure = bench.failure(bench.run.make(fleet_pb2.ANCHOR, b"", payload), payload)
        assert "needs exactly 'model'" in failure.message
    failure = bench.failure(bench.run.make(fleet_pb2.ANCHOR, b"", {"model": MODEL}), {"model": MODEL})
    assert failure.code == "MALFORMED" and "without sealing" in failure.message


def _changed(bench: Bench, **changes: Any) -> fleet_pb2.Offer:
    offer = bench.signed()
    for name, value in changes.items():
        setattr(offer, name, value)
    return offer


def _foreign_roster(bench: Bench) -> fleet_pb2.Offer:
    other = Consortium.create(bench.world.root / "other-root", "trial", demo=True)
    return _changed(bench, roster=other.roster.signed)


def _old_roster(bench: Bench) -> fleet_pb2.Offer:
    old = bench.world.consortium.roster.signed
    bench.world.consortium.refresh()
    bench.node.member.roster.accept(bench.world.consortium.roster.signed)
    return _changed(bench, roster=old)


def _revoked_administrator(bench: Bench) -> fleet_pb2.Offer:
    bench.world.consortium.revoke("admin")
    return bench.signed()


def _signed_by(bench: Bench, key: SigningKey, document: bytes) -> fleet_pb2.Offer:
    return bench.world.offered(
        sign_submission(key, "admin", document, bench.signed().initial_model_sha256, run_id=bench.run.run_id)
    )


def _not_canonical(bench: Bench) -> fleet_pb2.Offer:
    return _signed_by(bench, bench.world.members["admin"].identity, bench.spec.canonical_bytes() + b" ")


OFFERS: dict[str, tuple[Callable[[Bench], fleet_pb2.Offer], str]] = {
    "tampered specification": (
        lambda b: _changed(b, specification=b.spec.canonical_bytes().replace(b'"rounds":2', b'"rounds":3')),
        "does not verify",
    ),
    "another first model": (lambda b: _changed(b, initial_model_sha256=bytes(32)), "does not verify"),
    "short first model": (lambda b: _changed(b, initial_model_sha256=b"x"), "SHA-256 has 32"),
    "signed by nobody known": (
        lambda b: _signed_by(b, SigningKey.generate(), b.spec.canonical_bytes()),
        "does not verify",
    ),
    "unknown administrator": (lambda b: _changed(b, administrator="mallory"), "is not in version"),
    "a node signs": (lambda b: b.signed(administrator="node-b"), "only an administrator"),
    "revoked administrator": (_revoked_administrator, "REVOKED"),
    "foreign root": (_foreign_roster, "does not verify"),
    "older roster": (_old_roster, "ROSTER_STALE"),
    "garbage roster": (lambda b: _changed(b, roster=b"x"), "IdentityError"),
    "not canonical": (_not_canonical, "canonical"),
    "another cohort": (
        lambda b: b.signed(
            specification(
                model={"sha256": b.spec.model.sha256},
                federation={"data": "faq", "min_cohort": 2, "nodes": ["node-b", "node-c"]},
            )
        ),
        "not among the nodes",
    ),
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_offer_that_does_not_hold_is_refused(bench: Bench, name: str) -> None:
    make, said = OFFERS[name]
    answer = bench.offer(make(bench))
    assert (answer.accepted, answer.waiting) == (False, False)
    assert said in answer.reason
    assert not bench.node.state.run(bench.run.run_id).exists(), "nothing of it is kept"
    assert bench.events()[-2]["event"] == "offer refused"
    assert bench.failure(*bench.run.slot(MODEL)).code == "StateError"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('methods = ["sft"]', "methods = []", "PolicyRefusal: method"),
        ("allow_demo_root = true", "allow_demo_root = false", "demo"),
        ('sealing = "optional"', 'sealing = "required"', "sealing.kind is none"),
        ("consortium_root", 'consortium_root = ""\n# ', "obeys none"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused(bench: Bench, old: str, new: str, said: str) -> None:
    bench.policy(old, new)
    answer = bench.offer()
    assert not answer.accepted and not answer.waiting
    assert said in answer.reason
    assert not bench.trainer.trained


def test_an_offer_that_comes_while_the_policy_is_edited_waits_for_the_policy(bench: Bench) -> None:
    whole = bench.node.state.policy.read_text()
    bench.policy('data_sets = ["faq"]', 'data_sets = ["faq", "other"]\nmin_cohrot = 3')
    for _ in range(2):
        answer = bench.offer()
        assert (answer.accepted, answer.waiting) == (False, True) and "nothing is allowed" in answer.reason
    assert [one["event"] for one in bench.events()].count("offer waits for approval") == 1
    assert bench.failure(*bench.run.slot(MODEL)).code == "StateError"
    bench.node.state.policy.write_text(whole)
    assert bench.offer().accepted


def test_a_node_out_of_its_hours_or_with_an_unclear_policy_says_when_to_ask_again(bench: Bench) -> None:
    whole = bench.node.state.policy.read_text()
    assert bench.offer().accepted
    for slot, old, new, said in (
        (1, 'training_hours = ["00:00-24:00"]', "training_hours = []", "trains none"),
        (2, 'methods = ["sft"]', "methods = [[[", "nothing is allowed"),
    ):
        bench.policy(old, new)
        failure, answer = bench.failure(*bench.run.slot(MODEL, slot=slot)), bench.offer()
        assert (failure.code, answer.accepted) == ("NotNow", True)
        assert failure.busy_s and answer.busy_s and said in failure.message and said in answer.reason
        bench.node.state.policy.write_text(whole)
    assert not bench.trainer.trained
    assert not bench.offer().busy_s and bench.train(slot=3)[1]


def test_missing_model_and_data_are_refused_without_paths(bench: Bench, tmp_path: Path) -> None:
    bench.node.data_sets.remove("faq")
    assert "no data set 'faq'" in bench.offer().reason
    bench.node.data_sets.add("faq", faq(tmp_path / "b.jsonl", 3))
    bench.run = Instructions()
    assert bench.offer().accepted
    other = specification(model={"sha256": "f" * 64}, federation={"data": "faq", "min_cohort": 2})
    bench.policy(f'models = ["{bench.spec.model.sha256}"]', f'models = ["{"f" * 64}"]')
    accepted = bench.run
    bench.run = Instructions()
    reason = bench.offer(bench.signed(other)).reason
    assert reason.startswith("ModelError: base model ffffffffffff is not on this machine; add it with")
    assert str(tmp_path) not in reason and "tiny" not in reason, "which models are here is the node's own"
    bench.policy(f'models = ["{"f" * 64}"]', f'models = ["{bench.spec.model.sha256}"]')
    bench.run = accepted
    assert bench.train()[1], "a run that was accepted before goes on"


def test_a_run_never_changes_its_specification(bench: Bench) -> None:
    assert bench.offer().accepted
    other = bench.spec.model_copy(update={"seed": 6})
    assert "SPEC_CHANGED" in bench.offer(bench.signed(other)).reason
    assert bench.train()[1], "the run that was accepted goes on"


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


def test_the_end_of_a_run_that_was_never_offered_leaves_nothing(bench: Bench) -> None:
    before = bench.events()
    end = fleet_pb2.End(run_ended=True, failure="\x1b[2J[red]nonsense")
    bench.ask(bench.run.make(fleet_pb2.END, end.SerializeToString()))
    assert [entry for entry in bench.events()[len(before) :] if entry["event"] == "run ended"] == []
    assert bench.node.state.run_ids() == []


def test_the_words_of_an_end_are_kept_clean_and_short(bench: Bench) -> None:
    bench.offer()
    bench.end("\x1b[2J" + "x" * 40_000)
    record = Record.load(bench.node.state.run(bench.run.run_id))
    assert record is not None and record.reason.isprintable() and len(record.reason) == 500
    reasons = [entry["reason"] for entry in bench.events() if entry["event"] == "run ended"]
    assert len(reasons) == 1 and reasons[0].isprintable() and len(reasons[0]) == 500


def test_an_end_of_fifty_megabytes_is_refused(bench: Bench) -> None:
    bench.offer()
    end = fleet_pb2.End(run_ended=True, failure="x" * (50 << 20))
    reply, _ = bench.ask(bench.run.make(fleet_pb2.END, end.SerializeToString()))
    assert "at most 65536 are read" in reply.failure.message


# --- ends that were missed


def told(bench: Bench, *ends: fleet_pb2.RunEnd, unknown: tuple[str, ...] = ()) -> list[list[str]]:
    """Reconcile with a coordinator that answers so; returns what it was asked."""
    asked: list[list[str]] = []

    def answer(run_ids: list[str]) -> fleet_pb2.RunEnds:
        asked.append(run_ids)
        return fleet_pb2.RunEnds(ends=ends, unknown=unknown)

    bench.runtime.reconcile(answer)
    return asked


def with_work(bench: Bench) -> list[Path]:
    """Files as training leaves them in the run's folder."""
    folder = bench.node.state.run(bench.run.run_id)
    names = ("training/tokens-train.bin", "training/optimizer-000001.safetensors", "training/slot.safetensors")
    files = [folder / name for name in (*names, "member/upload-1", "replies/9.reply")]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"made of private text")
    (folder / "replies" / "9.json").write_text('{"slot": 1}')
    return files


def ended(bench: Bench, **changes: Any) -> fleet_pb2.RunEnd:
    end = bench.world.end(bench.run.run_id, **{k: v for k, v in changes.items() if k in ("failure", "stopped_by")})
    for name in set(changes) - {"failure", "stopped_by"}:
        setattr(end, name, changes[name])
    return fleet_pb2.RunEnd(run_id=bench.run.run_id, end=end)


def standing(bench: Bench) -> str:
    record = Record.load(bench.node.state.run(bench.run.run_id))
    assert record is not None
    return record.status


def test_a_run_whose_end_was_missed_is_ended_and_erased_at_the_next_connection(bench: Bench) -> None:
    bench.offer()
    bench.train()
    files = with_work(bench)
    bench = bench.again()  # killed, and started again: the run is not in memory
    assert told(bench, ended(bench, failure="STOPPED", stopped_by="admin")) == [[bench.run.run_id]]
    assert standing(bench) == "ended"
    assert [path for path in files if path.exists()] == []
    assert [entry["stopped_by"] for entry in bench.events() if entry["event"] == "run ended"] == ["admin"]
    assert told(bench) == []
    assert "SUBMISSION_REPLAYED" in bench.offer().reason


def test_a_missed_end_needs_neither_the_administrator_nor_the_base_model(bench: Bench) -> None:
    bench.offer()
    files = with_work(bench)
    end = ended(bench)
    bench.world.consortium.revoke("admin")
    bench.node.member.roster.accept(bench.world.consortium.roster.signed)
    bench = bench.again()
    told(bench, end)
    assert (standing(bench), [path for path in files if path.exists()]) == ("ended", [])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"signature": bytes(64)}, "a signature that is none"),
        ({"failure": "STOPPED"}, "stopped by nobody"),
        ({"coordinator": "node-b"}, "said by a node"),
        ({"run_ended": False}, "the end of a slot"),
        ({"stop_signature": bytes(64)}, "changed behind the signature"),
    ],
)
def test_a_missed_end_that_nobody_signed_ends_nothing(bench: Bench, changes: dict[str, Any], name: str) -> None:
    bench.offer()
    files = with_work(bench)
    told(bench, ended(bench, **changes))
    assert standing(bench) == "accepted" and all(path.exists() for path in files), name
    assert [entry["step"] for entry in bench.events() if entry["event"] == "step failed"] == ["END"]


def test_the_end_of_another_run_ends_nothing(bench: Bench) -> None:
    bench.offer()
    other = bench.world.end("ab" * 16)
    told(bench, fleet_pb2.RunEnd(run_id=bench.run.run_id, end=other), fleet_pb2.RunEnd(run_id="ab" * 16, end=other))
    assert standing(bench) == "accepted"


def test_of_a_run_that_the_coordinator_does_not_know_only_the_text_goes(bench: Bench) -> None:
    bench.offer()
    files = with_work(bench)
    told(bench, unknown=(bench.run.run_id, "cd" * 16))
    assert standing(bench) == "accepted"
    assert [path.name for path in files if not path.exists()] == ["tokens-train.bin"]
    assert bench.train()[1]


def test_an_offer_that_nobody_accepted_in_time_ends_by_itself(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    assert bench.offer().waiting
    later = bench.runtime._node = dataclasses.replace(bench.node, clock=lambda: time.time() + 8 * 86400)
    assert told(bench) == []
    assert standing(bench) == "ended"
    bench.runtime._node, _ = bench.node, later


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_ends_end_nothing(bench: Bench, data: bytes, ended_flag: bool) -> None:
    bench.offer()
    try:
        end = fleet_pb2.End.FromString(data)
    except Exception:
        return
    end.run_ended = ended_flag
    told(bench, fleet_pb2.RunEnd(run_id=bench.run.run_id, end=end))
    assert standing(bench) == "accepted"


# --- what the log says


def test_the_log_tells_a_night_in_a_line_each(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.policy('approval = "auto"', 'approval = "ask"')
    bench.offer()
    folder = bench.node.state.run(bench.run.run_id)
    approvals.decide(folder, load_offer(folder, bench.node.member).sha256, "approved")
    bench.offer()
    bench.train()
    slot_end = fleet_pb2.End(slot=1, committed=True, contributors=["node-a"])
    for _ in range(2):
        bench.ask(bench.run.make(fleet_pb2.END, slot_end.SerializeToString()))
    bench.end("STOPPED", "admin")
    run = f"run {bench.run.run_id[:8]}: "
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith(run)]
    by = getpass.getuser()
    name = bench.spec.name
    assert [text.removeprefix(run) for text in said] == [
        f"offer {name} of admin: waits for a person; see `confide node plan`, then `confide node approve` or `refuse`",
        f"offer {name} of admin: accepted by {by}",
        "round 1 begins (slot 1, attempt 1)",
        f"update sent, {4 * SIZE} bytes",
        "round 1 is committed, with this node's update",
        "ended: STOPPED by admin; its training files, replies and uploads here are erased",
    ]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A disk that is full while something is in the list."""
    honest, full = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return full


def test_a_full_disk_refuses_by_name_and_is_over_when_there_is_room(bench: Bench, disk: list[str]) -> None:
    disk.append("full")
    answer = bench.offer()
    assert (answer.accepted, answer.waiting, answer.preparing) == (False, True, True), "it is offered again"
    assert answer.reason.startswith("RetryableError: ") and "No space left" in answer.reason
    assert str(bench.node.state.root) not in answer.reason
    assert bench.events() == []
    disk.clear()
    assert bench.offer().accepted, "nobody refused it"
    disk.append("full")
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == "RetryableError" and "No space left" in failure.message
    disk.clear()
    reply, files = bench.train(slot=2, attempt=2)
    assert files["upload"] and reply.node == "node-a"
    events = [entry["event"] for entry in bench.events()]
    assert events[0] == "step failed" and "No space left" in bench.events()[0]["reason"]
    assert events.index("offer accepted") < events.index("step failed", 1) < events.index("sent", 3)


def test_what_goes_on_also_on_a_full_disk_is_written_later_with_its_time(tmp_path: Path, disk: list[str]) -> None:
    moments = itertools.count()
    audit = Audit(Journal(tmp_path / "audit.log"), clock=lambda: float(next(moments)))
    disk.append("full")
    for number in range(MOST_OWED + 3):
        audit.note_when_there_is_room("busy", number=number)
    with pytest.raises(RetryableError, match="No space left"):
        audit.note("sent")
    disk.clear()
    audit.note("connected")
    audit.close()
    left_out, *kept, last = read_journal(tmp_path / "audit.log")[0]
    assert (left_out["event"], left_out["entries"], last["event"]) == ("entries left out", 3, "connected")
    assert [one["number"] for one in kept] == list(range(3, MOST_OWED + 3))
    assert kept[0]["at"] == "1970-01-01T00:00:03+00:00"


def test_an_agent_stays_up_on_a_full_disk(tmp_path: Path, store: tuple[Path, str], disk: list[str]) -> None:
    world = NodeWorld.make(tmp_path, ("node-a",))
    world.equip("node-a", store[1], store[0], faq(tmp_path / "faq.jsonl", 12, "node-a"))
    agent = Agent(StateFolder.at(tmp_path / "node-a"))
    disk.append("full")
    agent._connected("127.0.0.1:1")
    agent._disconnected(TransportError("away"))
    assert not (tmp_path / "node-a" / "agent.json").exists()
    disk.clear()
    agent._connected("127.0.0.1:1")
    agent._runtime.close()
    agent._audit.close()
    assert [one["event"] for one in read_journal(tmp_path / "node-a" / "audit.log")[0]] == ["connected"] * 2


def test_a_person_is_told_by_the_command_of_the_node(bench: Bench, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    script = "import json, sys; json.dump([sys.argv[2:], sys.stdin.read()], open(sys.argv[1], 'w'))"
    command = (sys.executable, "-c", script, str(told), "{text}", "$(id) {run}")
    bench.node.state.save_settings(bench.node.state.settings.model_copy(update={"notify": command}))
    bench.policy('approval = "auto"', 'approval = "ask"')
    assert bench.offer().waiting
    wait_for(lambda: told.exists() and told.read_text().endswith("]"), 60)
    (text, literal), given = json.loads(told.read_text())
    run = bench.run.run_id
    assert text == f"confide: run {run[:8]}, {bench.spec.name} of admin, waits for approval at node node-a"
    assert (literal, given) == (f"$(id) {run}", text + "\n")
    told.unlink()
    assert bench.offer().waiting  # nobody is told twice
    time.sleep(0.3)
    assert not told.exists()


@settings(max_examples=80)
@given(st.text(max_size=400), st.lists(st.text(max_size=20), max_size=4))
def test_text_from_elsewhere_stays_one_clean_argument(text: str, arguments: list[str]) -> None:
    command = filled(["program", "{text}", *arguments], "ab" * 16, text)
    assert len(command) == 2 + len(arguments)
    assert command[1].isprintable() and len(command[1]) <= 300
    assert [one for one in command if "\x00" in one and one not in arguments] == []


def test_a_notification_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for command in (["/nowhere/program"], [sys.executable, "-c", "import sys; sys.exit('\\x1b[2Jno mail today')"]):
        thread = notify(command, "ab" * 16, "a run waits")
        assert thread is not None
        thread.join(60)
    said = [record.getMessage() for record in caplog.records]
    assert "did not run" in said[0] and "no mail today" in said[1] and "\x1b" not in said[1]
    assert notify([], "ab" * 16, "nothing") is None
    with pytest.raises(StateError, match="'nowhere-program' is not there"):
        parse_command("nowhere-program --loud")
    with pytest.raises(StateError, match="close its quotes"):
        parse_command("mail 'ops")


# --- approval = "auto" looks at the records first


def fitness(unfit: int, records: int = 8) -> Fitness:
    return Fitness(records, unfit, {"the label is not among the run's": (unfit, "line 3")} if unfit else {})


def tried(bench: Bench, found: Fitness | Exception) -> Bench:
    """The bench's node, whose records are found to be so."""

    def tries(_: StateFolder, __: Specification) -> Fitness:
        if isinstance(found, Exception):
            raise found
        return found

    bench.runtime._node = dataclasses.replace(bench.node, tries=tries)
    return bench


def test_a_run_that_could_learn_nothing_here_waits_for_a_person_though_the_policy_says_auto(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    answer = tried(bench, fitness(8)).offer()
    assert (answer.accepted, answer.waiting) == (False, True)
    assert answer.reason == "the node's operator has not approved this run yet"
    assert "nothing can be learned from any of the 8 training records" in reason(bench)
    for _ in range(2):
        assert bench.offer().waiting
    assert len([r for r in caplog.records if "first line 3: the label is not" in r.getMessage()]) == 1
    approvals.decide(bench.node.state.run(bench.run.run_id), load_offer_of(bench).sha256, "approved")
    assert bench.offer().accepted


def test_some_unfit_records_are_left_out_or_asked_about_as_the_policy_says(bench: Bench) -> None:
    with bench.node.state.policy.open("a") as file:
        file.write('unfit_records = "ask"\n')
    assert tried(bench, fitness(2)).offer().waiting
    bench.policy('unfit_records = "ask"', 'unfit_records = "skip"')
    assert bench.offer().accepted
    assert reason(bench) == "nothing can be learned from 2 of 8 training records"


def test_records_that_fit_need_no_person(bench: Bench) -> None:
    assert tried(bench, fitness(0)).offer().accepted
    assert reason(bench) == ""


def test_a_trial_that_fails_by_name_refuses(bench: Bench) -> None:
    answer = tried(bench, ModelError("the base has no head for labels; choose another")).offer()
    assert not answer.waiting and "no head for labels" in answer.reason


def test_a_trial_that_fails_for_no_known_reason_asks_a_person(bench: Bench) -> None:
    assert tried(bench, RuntimeError("secret")).offer().waiting
    assert "RuntimeError" in reason(bench) and "secret" not in reason(bench)


def test_an_offer_is_answered_while_the_records_are_tried(bench: Bench) -> None:
    go = threading.Event()

    def slow(_: StateFolder, __: Specification) -> Fitness:
        assert go.wait(60)
        return fitness(0)

    federation = bench.spec.federation.model_copy(update={"exchange_deadline_s": 0.3})
    bench.spec = bench.spec.model_copy(update={"federation": federation})
    bench.runtime._node = dataclasses.replace(bench.node, tries=slow)
    answer = bench.offer()
    assert (answer.accepted, answer.waiting, answer.preparing) == (False, True, True)
    go.set()
    assert bench.runtime._trials[bench.run.run_id].ended(60)
    assert bench.offer().accepted


def reason(bench: Bench) -> str:
    record = Record.load(bench.node.state.run(bench.run.run_id))
    assert record is not None
    return record.reason


def load_offer_of(bench: Bench) -> VerifiedOffer:
    return load_offer(bench.node.state.run(bench.run.run_id), bench.node.member)
