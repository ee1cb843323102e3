"""A lying coordinator with one signed submission in its hands: it can begin one run with it, once, and end it once."""

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confide.codec.tensors import model_digest
from confide.identity.keys import SigningKey
from confide.identity.submission import (
    MAX_VALID_S,
    STOPPED,
    SignedEnd,
    SignedSubmission,
    sign_end,
    sign_stop,
    sign_submission,
)
from confide.privacy.ledger import LEDGER_NAME
from confide.proto import fleet_pb2
from confide_client.runs.records import Record

from tests.node_bench import MODEL, Bench, allow, make_store, open_bench
from tests.node_worlds import Instructions

PRIVATE = {"unit": "record", "epsilon": 1.0, "delta": 1e-3, "clip": 0.5}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_store(tmp_path_factory.mktemp("submission-models"))


@pytest.fixture
def bench(tmp_path: Path, store: tuple[Path, str]) -> Iterator[Bench]:
    with open_bench(tmp_path, store) as bench:
        yield bench


def other_run(bench: Bench) -> str:
    bench.run = Instructions()
    return bench.run.run_id


# --- the same submission again


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_submission_begins_one_run_however_often_it_is_offered(bench: Bench, rewritten: bool) -> None:
    """It was accepted under 22 run ids, and the base loaded each time. rewritten: the offer names the new run id."""
    offer = bench.signed()
    assert bench.offer(offer).accepted
    loaded = threading.active_count()
    for _ in range(22):
        run_id = other_run(bench)
        if rewritten:
            offer.run_id = run_id
        answer = bench.offer(offer)
        assert not answer.accepted and not answer.waiting
        assert ("does not verify" if rewritten else "SUBMISSION_REPLAYED") in answer.reason
        assert not bench.node.state.run(run_id).exists()
    assert bench.runtime.open_runs == 1 and threading.active_count() <= loaded


def test_replays_set_no_budget_aside(tmp_path: Path, store: tuple[Path, str]) -> None:
    """55 replays took all of a private run's budget."""
    with open_bench(tmp_path, store, clip_norm=1.0, privacy=PRIVATE) as bench:
        allow(bench)
        offer = bench.signed()
        assert bench.offer(offer).accepted
        length = len(bench.node.spending.ledger)
        for _ in range(55):
            other_run(bench)
            assert "SUBMISSION_REPLAYED" in bench.offer(offer).reason
        assert len(bench.node.spending.ledger) == length


def test_the_same_run_is_offered_again_after_a_reconnect_and_a_restart(bench: Bench) -> None:
    offer = bench.signed()
    assert bench.offer(offer).accepted and bench.offer(offer).accepted
    bench = bench.again()
    assert bench.offer(offer).accepted
    assert bench.train()[1]


def test_a_nonce_is_good_for_one_run_also_under_a_new_signature(bench: Bench) -> None:
    first = bench.signed()
    assert bench.offer(first).accepted
    key, run_id = bench.world.members["admin"].identity, other_run(bench)
    unsigned = SignedSubmission(
        run_id=run_id,
        nonce=first.nonce,
        expires_at=first.expires_at,
        specification=first.specification,
        initial_model_sha256=first.initial_model_sha256,
        administrator="admin",
        signature=b"",
    )
    again = dataclasses.replace(unsigned, signature=key.sign("submission", unsigned.statement))
    for bench in (bench, bench.again()):  # noqa: B020 - the same node, restarted
        answer = bench.offer(bench.world.offered(again))
        assert not answer.accepted and "SUBMISSION_REPLAYED" in answer.reason


def test_an_ended_run_never_comes_back_even_when_its_folder_is_gone(bench: Bench) -> None:
    offer = bench.signed()
    assert bench.offer(offer).accepted
    bench.end()
    shutil.rmtree(bench.node.state.run(bench.run.run_id))
    bench = bench.again()
    answer = bench.offer(offer)
    assert not answer.accepted and "SUBMISSION_REPLAYED" in answer.reason
    assert not bench.node.state.run(bench.run.run_id).exists()


def test_a_crash_between_the_end_and_its_record_does_not_bring_the_run_back(bench: Bench) -> None:
    assert bench.offer().accepted
    record = Record.load(bench.node.state.run(bench.run.run_id))
    assert record is not None
    bench.end()
    record.save(bench.node.state.run(bench.run.run_id))  # as it was before: "accepted"
    bench = bench.again()
    assert "SUBMISSION_REPLAYED" in bench.offer().reason
    assert bench.end().WhichOneof("outcome") == "body", "its end is said again and finished"
    ended = Record.load(bench.node.state.run(bench.run.run_id))
    assert ended is not None and ended.status == "ended"


def test_a_submission_of_an_earlier_release_is_not_accepted(bench: Bench) -> None:
    key, document = bench.world.members["admin"].identity, bench.spec.canonical_bytes()
    signed = SignedSubmission(
        run_id=bench.run.run_id,
        nonce=b"",
        expires_at=0,
        specification=document,
        initial_model_sha256=model_digest(MODEL),
        administrator="admin",
        signature=b"",
    )
    old = dataclasses.replace(signed, signature=key.sign("submission", signed.statement))
    for run_id in (bench.run.run_id, ""):
        answer = bench.offer(bench.world.offered(dataclasses.replace(old, run_id=run_id)))
        assert not answer.accepted and ("submit it anew" in answer.reason or "SUBMISSION_REPLAYED" in answer.reason)


# --- time


def at(bench: Bench, seconds: float) -> None:
    object.__setattr__(bench.node, "clock", lambda: time.time() + seconds)


@pytest.mark.parametrize(("late_s", "accepted"), [(0.0, True), (250.0, True), (320.0, False)])
def test_an_expired_submission_is_refused_by_name(bench: Bench, late_s: float, accepted: bool) -> None:
    offer = bench.signed(valid_s=0)
    object.__setattr__(bench.node, "clock", lambda: offer.expires_at + late_s)
    answer = bench.offer(offer)
    assert answer.accepted is accepted
    assert accepted or "SUBMISSION_EXPIRED" in answer.reason


def test_a_submission_that_would_never_expire_is_refused(bench: Bench) -> None:
    assert "at most 90 days" in bench.offer(bench.signed(valid_s=MAX_VALID_S + 400)).reason


def test_what_was_accepted_does_not_expire(bench: Bench) -> None:
    offer = bench.signed(valid_s=1)
    assert bench.offer(offer).accepted
    at(bench, 3600)
    assert bench.again().offer(offer).accepted


def test_what_waits_for_a_person_does_expire(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    offer = bench.signed(valid_s=1)
    assert bench.offer(offer).waiting
    at(bench, 3600)
    answer = bench.offer(offer)
    assert not answer.waiting and "SUBMISSION_EXPIRED" in answer.reason
    record = Record.load(bench.node.state.run(bench.run.run_id))
    assert record is not None and record.status == "refused" and "SUBMISSION_EXPIRED" in record.reason


# --- the end of a run


def said(bench: Bench, end: SignedEnd, **changes: object) -> bytes:
    fields = {key: value for key, value in vars(end).items() if key != "run_id"}
    return fleet_pb2.End(**(fields | {"run_ended": True} | changes)).SerializeToString()  # type: ignore[arg-type]


def key_of(bench: Bench, name: str) -> SigningKey:
    return bench.world.members[name].identity


def by_coordinator(bench: Bench, *end: object) -> SignedEnd:
    return sign_end(key_of(bench, "coordinator"), "coordinator", SignedEnd(bench.run.run_id, *end))  # type: ignore[arg-type]


LIES: dict[str, tuple[Callable[[Bench], bytes], str]] = {
    "nobody signed it": (lambda b: said(b, SignedEnd(b.run.run_id, "")), "is not in version"),
    "another member signed it": (
        lambda b: said(b, sign_end(key_of(b, "node-b"), "node-b", SignedEnd(b.run.run_id, ""))),
        "only the coordinator",
    ),
    "somebody signed it as the coordinator": (
        lambda b: said(b, sign_end(key_of(b, "node-b"), "coordinator", SignedEnd(b.run.run_id, ""))),
        "does not verify",
    ),
    "the end of another run": (
        lambda b: said(b, sign_end(key_of(b, "coordinator"), "coordinator", SignedEnd("0" * 32, ""))),
        "does not verify",
    ),
    "another reason": (lambda b: said(b, by_coordinator(b, "ATTEMPTS_USED_UP"), failure=""), "does not verify"),
    "stopped by nobody": (lambda b: said(b, by_coordinator(b, STOPPED)), "stopped by nobody"),
    "stopped by a name alone": (lambda b: said(b, by_coordinator(b, STOPPED, "admin")), "does not verify"),
    "stopped by the coordinator itself": (
        lambda b: said(b, by_coordinator(b, STOPPED, "coordinator", sign_stop(key_of(b, "coordinator"), b.run.run_id))),
        "only an administrator",
    ),
    "stopped by an order for another run": (
        lambda b: said(b, by_coordinator(b, STOPPED, "admin", sign_stop(key_of(b, "admin"), "0" * 32))),
        "does not verify",
    ),
    "an order to stop, called a failure": (
        lambda b: said(b, by_coordinator(b, "FAILED", "admin", sign_stop(key_of(b, "admin"), b.run.run_id))),
        "stopped by nobody",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_run_ends_only_by_who_may_say_it(bench: Bench, lie: str) -> None:
    make, words = LIES[lie]
    assert bench.offer().accepted
    assert bench.train()[1]
    replies = bench.node.state.run(bench.run.run_id) / "replies"
    kept = sorted(replies.iterdir())
    failure = bench.failure(bench.run.make(fleet_pb2.END, make(bench)))
    assert failure.code == "IdentityError" and words in failure.message
    assert sorted(replies.iterdir()) == kept, "nothing is erased"
    assert bench.offer().accepted and bench.train(slot=2)[1], "the run goes on"


@pytest.mark.parametrize(("failure", "stopped_by"), [("", ""), ("ATTEMPTS_USED_UP", ""), (STOPPED, "admin")])
def test_an_end_that_holds_is_recorded_with_who_said_it(bench: Bench, failure: str, stopped_by: str) -> None:
    assert bench.offer().accepted
    assert bench.end(failure, stopped_by).WhichOneof("outcome") == "body"
    assert bench.runtime.open_runs == 0
    noted = next(entry for entry in bench.events() if entry["event"] == "run ended")
    assert (noted["said_by"], noted.get("stopped_by", "")) == ("coordinator", stopped_by)


def test_an_end_that_lies_can_only_end(tmp_path: Path, store: tuple[Path, str]) -> None:
    """It frees what was set aside and not drawn, and what was spent stays spent; nothing of the run goes on after."""
    with open_bench(tmp_path, store, clip_norm=1.0, privacy=PRIVATE) as bench:
        allow(bench)
        assert bench.offer().accepted
        assert bench.train()[1]
        spent = bench.node.spending.ledger.state.run(bench.run.run_id).spent_slots
        bench.end("FAILED")
        state = bench.node.spending.ledger.state.run(bench.run.run_id)
        assert spent == 1 and state.spent_slots == 1 and state.ended
        assert bench.failure(*bench.run.slot(MODEL, slot=2)).code == "StateError"
        assert "SUBMISSION_REPLAYED" in bench.offer().reason
        assert (bench.node.state.root / LEDGER_NAME).exists()


def test_the_end_of_an_unknown_run_leaves_no_trace(bench: Bench) -> None:
    bench.end("FAILED")
    assert [entry["event"] for entry in bench.events()] == ["sent"]
    assert bench.offer().accepted, "it was never offered before"


# --- one base at a time


def test_accepted_runs_load_one_base_at_a_time(bench: Bench) -> None:
    """Each accepted run began to load at once."""
    at_once, most, gate = 0, 0, threading.Lock()
    make = bench.node.make_trainer

    def slow(*given: object, **named: object) -> object:
        nonlocal at_once, most
        with gate:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.2)
        with gate:
            at_once -= 1
        return make(*given, **named)  # type: ignore[arg-type]

    bench.node = dataclasses.replace(bench.node, make_trainer=slow)
    bench.runtime._node = bench.node
    runs = []
    for _ in range(4):
        bench.offer()
        runs.append(bench.run)
        other_run(bench)
    for run in runs:
        bench.run = run
        assert bench.train()[1], "every one of them can still be trained"
    held = [run for run in bench.runtime._runs.values() if run._loading is not None]
    assert most == 1 and len(held) == 1


def test_what_is_not_accepted_is_not_loaded(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    made = []
    bench.runtime._node = dataclasses.replace(bench.node, schema=lambda *_: made.append(1))
    for _ in range(5):
        assert bench.offer().waiting
        other_run(bench)
    assert not made and bench.runtime.open_runs == 0


def test_a_signed_run_is_its_administrators_alone(bench: Bench) -> None:
    """No field of what was signed can be changed on its way."""
    offer = bench.signed()
    for name, value in {
        "nonce": bytes(32),
        "expires_at": offer.expires_at + 1,
        "initial_model_sha256": bytes(32),
        "administrator": "node-b",
        "signature": sign_submission(SigningKey.generate(), "admin", offer.specification, bytes(32)).signature,
    }.items():
        changed = fleet_pb2.Offer.FromString(offer.SerializeToString())
        setattr(changed, name, value)
        answer = bench.offer(changed)
        assert not answer.accepted and answer.reason.startswith("IdentityError"), name
    assert bench.offer(offer).accepted
