"""Lies inside a slot: reuse, other models, broken chains, late and false uploads, bad shares, sums out of range."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from confide.codec import seal_vector
from confide.codec.digest import DigestedFile
from confide.codec.seal_vector import UploadSum
from confide.codec.tensors import model_digest
from confide.errors import FailureName, IdentityError, UpdateError
from confide.identity.keys import verify
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.sealing.primitives import dealing, keys, scalars, shamir
from confide.sealing.roles import Abandoned, Opened

from tests.attacks.liar import A, B, C, E, finish, refused, rewrite, stop_before
from tests.sealing_harness import Federation, names, specify

Open = sealing_pb2.SealedOpen


def train(federation: Federation, body: bytes, model: bytes | None = None, node: str = A) -> bytes:
    member = federation.members[node]
    data = federation.model.tobytes() if model is None else model
    return member.handle(fleet_pb2.TRAIN, body, lambda plan: federation.contribution(node, plan), data).body


def moved(federation: Federation, distance: float) -> np.ndarray:
    step = np.zeros(federation.size, "<f4")
    step[0] = distance
    return (federation.model + step).astype("<f4")


# ---------------------------------------------------------------- slots


def test_a_slot_is_used_once(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]
    first = train(federation, body)
    assert train(federation, body) == first
    with refused(FailureName.SLOT_REUSED):
        train(federation, rewrite(Open, body, lambda m: setattr(m, "attempt", 2)))
    later = rewrite(Open, body, lambda m: (setattr(m, "slot", 2), setattr(m, "attempt", 2)))
    train(federation, later)
    with refused(FailureName.SLOT_REUSED):
        train(federation, body)
    with refused(FailureName.SLOT_REUSED):
        train(federation, rewrite(Open, body, lambda m: setattr(m, "slot", 5)))


def test_a_slot_stays_used_after_a_restart(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]
    train(federation, body)
    federation.restart_member(A)
    with refused(FailureName.EPOCH_REPLAYED):
        train(federation, body)
    request = sealing_pb2.AdvertiseRequest()
    request.CopyFrom(federation.collector._state.epoch.terms.to_request())  # type: ignore[union-attr]
    request.epoch = 9
    with refused(FailureName.SLOT_REUSED):
        federation.ask(fleet_pb2.ADVERTISE, A, request.SerializeToString(deterministic=True))


def test_training_that_failed_is_not_repeated_with_the_same_keys(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]
    calls: list[int] = []

    def failing(plan: fleet_pb2.SlotOpen) -> Contribution:
        calls.append(plan.slot)
        raise UpdateError("loss is NaN")

    for _ in range(2):
        with pytest.raises(UpdateError, match="loss is NaN"):
            federation.members[A].handle(fleet_pb2.TRAIN, body, failing, federation.model.tobytes())
    assert calls == [1]
    assert federation.members[A].epoch.own.seeds[0] is None  # type: ignore[union-attr]


def test_a_cohort_other_than_the_epoch(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]

    def half(message: sealing_pb2.SealedOpen) -> None:
        del message.cohort[3:]

    with refused(FailureName.COHORT_NOT_EPOCH):
        train(federation, rewrite(Open, body, half))


def test_questions_for_a_slot_that_is_over(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    exchange = stop_before(federation, fleet_pb2.CONFIRM)
    finish(federation)
    with refused(FailureName.SLOT_REUSED):
        federation.ask(fleet_pb2.CONFIRM, A, exchange.bodies[A])


# ---------------------------------------------------------------- models


def test_a_model_is_used_max_attempts_times_across_restarts(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    for attempt in (1, 2):
        body = stop_before(federation, fleet_pb2.TRAIN, round=1, attempt=attempt).bodies[A]
        train(federation, body)
        federation.collector.close_exchange()
        federation.end(federation.collector.outcome)  # type: ignore[arg-type]
        federation.restart_member(A)
        federation.collector._attendance.renew = True
    body = stop_before(federation, fleet_pb2.TRAIN, round=1, attempt=2).bodies[A]
    with refused(FailureName.MODEL_REPEATED):
        train(federation, body)
    with refused(FailureName.MODEL_REPEATED):
        train(federation, rewrite(Open, body, lambda m: setattr(m, "attempt", 3)))


def test_a_first_model_that_nobody_signed(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.model = moved(federation, 1e-3)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]
    with refused(FailureName.MODEL_CHAIN_BROKEN):
        train(federation, body)


def test_models_outside_the_chain(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.slot()
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]

    def refuse(model: np.ndarray, **changes: object) -> None:
        def change(message: sealing_pb2.SealedOpen) -> None:
            message.model_sha256 = model_digest(model.tobytes())
            for name, value in changes.items():
                setattr(message, name, value)

        with refused(FailureName.MODEL_CHAIN_BROKEN):
            train(federation, rewrite(Open, body, change), model.tobytes())

    refuse(moved(federation, 2.5))
    refuse(moved(federation, 1e-3), round=1)
    refuse(moved(federation, 1e-3), parent_model_sha256=bytes(32))
    refuse(moved(federation, np.inf))
    refuse(moved(federation, 50.0), round=102)
    with refused(FailureName.MODEL_CHAIN_BROKEN):
        train(federation, body, moved(federation, 1e-3).tobytes())
    with refused(FailureName.MODEL_CHAIN_BROKEN):
        train(federation, body, b"")
    train(federation, body)


def test_missed_rounds_allow_one_step_each(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    at_first = federation.model  # the newest model that the nodes will have seen
    federation.slot()
    bound = federation.members[A].context.chain.link.bound
    for rounds, distance, holds in ((1, 1.01, False), (3, 2.99, True), (4, 4.02, False)):
        federation.model, federation.parent = at_first, model_digest(at_first.tobytes())
        federation.model = moved(federation, distance * bound)
        body = stop_before(federation, fleet_pb2.TRAIN, round=1 + rounds).bodies[A]
        if holds:
            train(federation, body)
            at_first = federation.model
        else:
            with refused(FailureName.MODEL_CHAIN_BROKEN):
                train(federation, body)
        federation.collector.close_exchange()
        federation.end(federation.collector.outcome)  # type: ignore[arg-type]


def test_a_late_node_reveals_only_beside_members_that_followed_the_chain(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    late = federation.members.pop(E)
    federation.slot()
    federation.members[E] = late
    exchange = stop_before(federation, fleet_pb2.REVEAL)
    for item in sealing_pb2.RevealRequest.FromString(exchange.bodies[E]).confirmations:
        assert item.anchored == (item.node != E)
    finish(federation)
    assert isinstance(federation.collector.outcome, Opened) and late.context.chain.anchored


def test_late_nodes_among_themselves_reveal_nothing(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    federation.model = moved(federation, 1.0)
    outcome = federation.slot(round=2)
    assert isinstance(outcome, Abandoned) and outcome.code == "QUORUM_SHORT"
    assert federation.failures[A, "REVEAL"].code == "MODEL_CHAIN_BROKEN"


def test_different_models_to_different_nodes_yield_no_quorum_and_garbage(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    federation.slot()
    own = {}
    exchange = stop_before(federation, fleet_pb2.TRAIN)
    epoch = federation.collector._state.epoch
    assert epoch is not None
    targeted = moved(federation, 1e-3)
    uploads, contexts = {}, {}
    for node, body in exchange.bodies.items():
        index = 1
        own[node] = federation.members[node].epoch.own.seeds[index]  # type: ignore[union-attr]
        if node in (A, B):
            body = rewrite(Open, body, lambda m: setattr(m, "model_sha256", model_digest(targeted.tobytes())))
        model = (targeted if node in (A, B) else federation.model).tobytes()
        answer = federation.members[node].handle(
            fleet_pb2.TRAIN, body, lambda plan, node=node: federation.contribution(node, plan), model
        )
        upload = sealing_pb2.SealedUpload.FromString(answer.body)
        assert answer.payload is not None
        uploads[node], contexts[node] = (answer.payload, upload.upload_digest), upload.context
        if node in (A, B):
            with refused(FailureName.CONTEXT_MISMATCH):
                federation.collector.receive(node, answer.body, DigestedFile.read(answer.payload))
    assert len(set(contexts.values())) == 2
    # A coordinator that lists all five all the same finds no quorum: three at most sign under one context.
    survivors = [sealing_pb2.Survivor(node=node, upload_digest=uploads[node][1]) for node in sorted(uploads)]
    signed, requests = {}, {}
    for node in uploads:
        requests[node] = sealing_pb2.ConfirmRequest(version=1, slot=2, context=contexts[node], survivors=survivors)
        body = requests[node].SerializeToString(deterministic=True)
        signed[node] = sealing_pb2.Confirmation.FromString(federation.members[node].handle(
            fleet_pb2.CONFIRM, body, lambda plan: federation.contribution(A, plan)).body)  # fmt: skip
    for node in uploads:
        reveal = sealing_pb2.RevealRequest(
            version=1, slot=2, context=contexts[node], survivors=survivors, self_masks=sorted(uploads),
            confirmations=[signed[name] for name in sorted(signed)],
        )  # fmt: skip
        with refused(FailureName.CONTEXT_MISMATCH):
            federation.ask(fleet_pb2.REVEAL, node, reveal.SerializeToString(deterministic=True))
    # Even with every self mask given away, the pairwise masks between the two groups do not cancel.
    layout = federation.collector._state.slot.layout  # type: ignore[union-attr]
    assert layout is not None
    total = UploadSum(layout)
    for node, (path, digest) in uploads.items():
        total.add(path, digest)
        seed = own[node]
        assert seed is not None
        total.remove_mask(*keys.self_mask(seed, contexts[node], node))
    with pytest.raises(UpdateError, match="does not open"):
        total.open(5)


# ---------------------------------------------------------------- uploads and reveals


def test_a_late_upload_is_dropped(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.TRAIN)
    answers = {node: federation.ask(fleet_pb2.TRAIN, node, body) for node, body in exchange.bodies.items()}
    for node in names(4):
        federation.collector.receive(node, *answers[node])
    federation.collector.close_exchange()
    with refused(FailureName.LATE_UPLOAD):
        federation.collector.receive(E, *answers[E])
    finish(federation)
    outcome = federation.collector.outcome
    assert isinstance(outcome, Opened) and outcome.contributors == names(4)
    with refused(FailureName.LATE_UPLOAD):
        federation.collector.receive(E, *answers[E])
    stop_before(federation, fleet_pb2.TRAIN)
    with refused(FailureName.LATE_UPLOAD):
        federation.collector.receive(E, *answers[E])


def test_an_upload_that_is_not_what_it_says(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.TRAIN)
    body, payload = federation.ask(fleet_pb2.TRAIN, A, exchange.bodies[A])
    assert payload is not None
    data = payload.path.read_bytes()
    for changed in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:]):
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(UpdateError):
            federation.collector.receive(A, body, DigestedFile.read(tmp_path / "changed"))
    with pytest.raises(UpdateError, match="no payload"):
        federation.collector.receive(A, body, None)


def altered(message: sealing_pb2.Reveal) -> None:
    message.shares[2].share = bytes(32) + b"\x05"


def test_a_holder_that_sends_no_share(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.REVEAL)
    body, _ = federation.ask(fleet_pb2.REVEAL, A, exchange.bodies[A])

    def outside(message: sealing_pb2.Reveal) -> None:
        message.shares[2].share = b"\xff" * 33

    with refused(FailureName.BAD_SHARE) as caught:
        federation.collector.receive(A, rewrite(sealing_pb2.Reveal, body, outside), None)
    assert caught.value.culprit == A
    for node in names(5)[1:]:
        federation.collector.receive(node, *federation.ask(fleet_pb2.REVEAL, node, exchange.bodies[node]))
    federation.collector.close_exchange()
    assert isinstance(federation.collector.outcome, Opened)
    assert A not in federation.collector._cohort.eligible(names(5))


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("liar", [A, E])
def test_a_holder_that_alters_a_share_is_named_and_the_others_open(tmp_path: Path, liar: str, restarted: bool) -> None:
    # A is among the first t = 4 holders, whose shares make the secrets; E is not.
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.REVEAL)
    for node in names(5):
        body, _ = federation.ask(fleet_pb2.REVEAL, node, exchange.bodies[node])
        said = rewrite(sealing_pb2.Reveal, body, altered) if node == liar else body
        federation.collector.receive(node, said, None)
    if restarted:
        federation.restart_collector()
        assert federation.collector.exchange() is None
    else:
        federation.collector.close_exchange()
    outcome = federation.collector.outcome
    assert isinstance(outcome, Opened) and outcome.contributors == names(5)
    np.testing.assert_allclose(outcome.update_sum, federation.expected_sum(names(5), 1), atol=0.05)
    named = [event for event in federation.collector._recorder.journal if event["event"] == "bad_share"]
    assert [(event["node"], event["dealers"]) for event in named] == [(liar, [names(5)[2]])]
    assert liar not in federation.collector._cohort.eligible(names(5))
    federation.restart_collector()  # it opens again, and holds the liar out still
    federation.collector.open_slot(federation.collector.resumable)  # type: ignore[arg-type]
    again = federation.collector.outcome
    assert isinstance(again, Opened) and again.update_sum.tobytes() == outcome.update_sum.tobytes()
    assert liar not in federation.collector._cohort.eligible(names(5))


def test_too_many_holders_that_alter_a_share(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    liars = names(5)[:2]
    federation.answer = lambda step, node, body: (
        rewrite(sealing_pb2.Reveal, body, altered) if step == fleet_pb2.REVEAL and node in liars else body
    )
    outcome = federation.slot()
    assert isinstance(outcome, Abandoned) and outcome.code == "QUORUM_SHORT"
    assert {node: reason[:9] for node, reason in outcome.dropped.items()} == dict.fromkeys(liars, "BAD_SHARE")


def test_a_bad_dealing_beside_a_bad_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both lie about the same dealer: the holder is dropped first, and the proof holds signed shares only.
    federation = Federation(tmp_path, 5)
    wrong_polynomial(monkeypatch, federation, names(5)[2])
    federation.answer = lambda step, node, body: (
        rewrite(sealing_pb2.Reveal, body, altered) if step == fleet_pb2.REVEAL and node == A else body
    )
    outcome = federation.slot()
    assert isinstance(outcome, Abandoned) and outcome.code == "BAD_DEALING" and names(5)[2] in outcome.reason
    events = {event["event"]: event for event in federation.collector._recorder.journal}
    assert (events["bad_share"]["node"], events["convicted"]["node"]) == (A, names(5)[2])
    assert [item["holder"] for item in events["convicted"]["evidence"]] == list(names(5)[1:])


def test_a_holder_that_reveals_both_kinds(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5)
    exchange = stop_before(federation, fleet_pb2.REVEAL)
    body, _ = federation.ask(fleet_pb2.REVEAL, A, exchange.bodies[A])

    def both(message: sealing_pb2.Reveal) -> None:
        message.shares.add(dealer=E, kind=sealing_pb2.MASK_SECRET, share=bytes(33), signature=bytes(64))

    with refused(FailureName.BOTH_KINDS):
        federation.collector.receive(A, rewrite(sealing_pb2.Reveal, body, both), None)


def wrong_polynomial(monkeypatch: pytest.MonkeyPatch, federation: Federation, liar: str) -> None:
    """`liar` deals signed shares of something else than it advertised."""
    honest = dealing.deal

    def lying(
        epoch: dealing.EpochKey, node: str, own: dealing.OwnSecrets, identity: object
    ) -> Mapping[str, sealing_pb2.DealtShares]:
        if node == liar:
            other = dealing.OwnSecrets.fresh(epoch.terms.slots)
            return honest(epoch, node, other, federation.keys[liar])
        return honest(epoch, node, own, federation.keys[node])

    monkeypatch.setattr(dealing, "deal", lying)


@pytest.mark.parametrize("missing", [False, True])
def test_a_dealer_of_something_else_is_convicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    federation = Federation(tmp_path, 5)
    wrong_polynomial(monkeypatch, federation, E)
    outcome = federation.slot({fleet_pb2.TRAIN: [E]} if missing else None)
    assert isinstance(outcome, Abandoned) and outcome.code == "BAD_DEALING" and E in outcome.reason
    monkeypatch.undo()
    convictions = [event for event in federation.collector._recorder.journal if event["event"] == "convicted"]
    assert [(event["node"], event["name"]) for event in convictions] == [(E, "BAD_DEALING")]
    # The evidence holds for anyone: the dealer's own signatures under shares that make another secret.
    epoch, slot = federation.collector._state.epoch, federation.collector._state.slot
    assert epoch is not None and slot is not None and epoch.key is not None
    kind, shares = dealing.MASK_SECRET if missing else dealing.SELF_MASK, {}
    for item in convictions[0]["evidence"]:
        share = bytes.fromhex(item["share"])
        statement = dealing.statement(epoch.key, 1, kind, E, item["holder"], share)
        verify(federation.keys[E].public, dealing.DOMAIN, statement, bytes.fromhex(item["signature"]))
        shares[epoch.key.number(item["holder"])] = share
    secret = shamir.reconstruct(shares, threshold=4)
    assert keys.public_of(secret) not in epoch.opened[E].mask_keys
    federation.restart_collector()
    retry = federation.slot(round=1, attempt=2)
    assert isinstance(retry, Opened) and retry.contributors == names(4)


def test_a_sum_longer_than_its_contributors_can_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, 5)
    # Nodes that do not clip: integers that stay inside the ring and are far longer than the clipping norm.
    monkeypatch.setattr(seal_vector, "_clipped", lambda update, clip, feedback: (update, 6.0))
    outcome = federation.slot()
    assert isinstance(outcome, Abandoned) and outcome.code == "SUM_OUT_OF_RANGE"


def test_scalars_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, 5)
    monkeypatch.setattr(scalars, "encode", lambda _: [scalars.FULL, *[scalars.FULL, 0] * len(Metric)])
    outcome = federation.slot()
    assert isinstance(outcome, Abandoned) and outcome.code == "SUM_OUT_OF_RANGE"


def test_a_metric_outside_the_enumeration(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]
    bad = Contribution(federation.update(A, 1), metrics={"patients": 3.0})  # type: ignore[dict-item]
    with refused(FailureName.METRIC_NOT_ALLOWED):
        federation.members[A].handle(fleet_pb2.TRAIN, body, lambda _: bad, federation.model.tobytes())
    assert not list((tmp_path / A).glob("upload-*"))


def test_one_node_cannot_answer_for_another(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    made, _ = federation.ask(fleet_pb2.ADVERTISE, B, stop_before(federation, fleet_pb2.ADVERTISE).bodies[B])
    with pytest.raises(IdentityError, match="a bundle of"):
        federation.collector.receive(A, made, None)
    federation.epoch()
    exchange = stop_before(federation, fleet_pb2.CONFIRM)
    confirmation, _ = federation.ask(fleet_pb2.CONFIRM, B, exchange.bodies[B])
    with refused(FailureName.COHORT_NOT_EPOCH):
        federation.collector.receive(C, confirmation, None)


def test_error_feedback_rolls_back_when_the_node_was_not_in_the_sum(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 5, specify("error_feedback = true\nbits = 4"))
    federation.slot()
    kept = federation.members[A].slots._masking._feedback
    assert kept is not None and np.linalg.norm(kept) > 0
    outcome = federation.slot({fleet_pb2.TRAIN: [B], fleet_pb2.REVEAL: [C, E]})
    assert isinstance(outcome, Abandoned)
    assert federation.members[A].slots._masking._feedback is kept
