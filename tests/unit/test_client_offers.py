"""What a node answers to an offer: accepted, waiting for a person, refused by name."""

# ruff: noqa: F811 - bench and store are fixtures

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.codec.tensors import TensorSchema
from confide.errors import ModelError
from confide.identity.consortium import Consortium
from confide.identity.keys import SigningKey
from confide.identity.submission import sign_submission
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.specification import Specification
from confide_client.runs import approvals
from confide_client.runs.hardware import vector_units

from tests.node_bench import MODEL, SIZE, Bench, bench, store  # noqa: F401
from tests.node_worlds import Instructions, faq
from tests.training_specs import specification


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
    bench.decide("approved")
    assert bench.offer().accepted
    assert bench.train()[1]
    events = [entry["event"] for entry in bench.events()]
    assert events.count("offer waits for approval") == 1


def test_a_person_refuses(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    bench.offer()
    bench.decide("refused", "not before the holidays")
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
        record = bench.record()
        assert record.status == "preparing"
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
