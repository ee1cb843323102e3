"""A coordinator that subtracts: every way to two sums that differ by one organization, against the real node code.

`ATTACKS` holds them; each is refused by name, and opens both sums where differences are accepted, so that none is
refused for another reason. The other tests are what honest runs need, and what only the memory sees.
"""

from pathlib import Path

import numpy as np
import pytest
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster, _check_succession
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.specification import Specification
from confide.sealing.differences import Blocks, atoms, check_named, check_split, still_away
from confide.sealing.member.context import NodeRules
from confide.sealing.member.revealed import Revealed
from confide.sealing.roles import Abandoned, Opened
from confide_client.training.draws import Draws
from confide_simulations.benchmarks.differences.attacks import ATTACKS, try_attack

from tests.attacks.liar import A, B, C, D, refused, rewrite, stop_before
from tests.sealing_harness import Federation, names, specify
from tests.sealing_rosters import make_roster

GUARDED = specify(differences="refused", slots=8)
REFUSING = NodeRules(waive_colluding=True)
ROUND_ONE = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)


def guarded(folder: Path, count: int = 4, **fields: object) -> Federation:
    return Federation(folder, count, specification=GUARDED, rules=REFUSING, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_every_attack_is_refused_by_name(tmp_path: Path, attack: str) -> None:
    found = try_attack(attack, tmp_path)
    assert (found["refused"], found["by"]) == (True, [ATTACKS[attack].refusal])


@pytest.mark.parametrize(
    "attack", ["the same submission under a second run id", "two evaluations", "a newcomer between two sums"]
)
def test_where_differences_are_accepted_the_attack_shows_the_member(tmp_path: Path, attack: str) -> None:
    found = try_attack(attack, tmp_path, differences="accepted", reproducible=True)
    assert isinstance(found["cosine"], float) and found["cosine"] > 0.9999


def test_secret_draws_alone_leave_much_to_see(tmp_path: Path) -> None:
    """Why (b) is not enough: fresh draws on the same model still point at the missing member."""
    found = try_attack("the same submission under a second run id", tmp_path, differences="accepted")
    assert isinstance(found["cosine"], float) and 0.3 < found["cosine"] < 0.99


# ------------------------------------------------------------------ lists


def test_a_list_without_a_member_of_the_only_block(tmp_path: Path) -> None:
    """Also in the first sum: the second would have everybody."""
    federation = guarded(tmp_path)
    body = stop_before(federation, fleet_pb2.CONFIRM).bodies[A]

    def without_last(message: sealing_pb2.ConfirmRequest) -> None:
        del message.survivors[-1]

    with refused(FailureName.BLOCK_SPLIT):
        federation.ask(fleet_pb2.CONFIRM, A, rewrite(sealing_pb2.ConfirmRequest, body, without_last))


def test_a_specification_that_accepts_does_not_bind_a_node_whose_policy_does_not(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 4, rules=REFUSING)
    federation.epoch(present=names(4)[:3])
    assert {error.code for error in federation.failures.values()} == {FailureName.BLOCK_SPLIT}


def test_two_runs_side_by_side_sign_first_and_reveal_later(tmp_path: Path) -> None:
    """Both lists are signed before either is revealed for: the second reveal is refused all the same."""
    memories = {name: Revealed(tmp_path / f"{name}.jsonl") for name in names(6)}
    blocks = dict(zip(names(6), "xxxyyy", strict=True))
    one = guarded(tmp_path / "one", 6, blocks=blocks, memories=memories)
    two = guarded(tmp_path / "two", 6, blocks=blocks, memories=memories, keys=one.keys, run="cd" * 16)
    whole = stop_before(one, fleet_pb2.REVEAL).bodies
    two.epoch(present=names(3))
    two.collector.open_slot(two.plan())
    half = _until(two, fleet_pb2.REVEAL)
    one.ask(fleet_pb2.REVEAL, A, whole[A])
    with refused(FailureName.MODEL_REVEALED):
        two.ask(fleet_pb2.REVEAL, A, half[A])
    two.ask(fleet_pb2.REVEAL, B, half[B])
    with refused(FailureName.MODEL_REVEALED):
        one.ask(fleet_pb2.REVEAL, B, whole[B])


def _until(federation: Federation, step: fleet_pb2.Step) -> dict[str, bytes]:
    while (exchange := federation.collector.exchange()) is not None and exchange.step != step:
        for node, body in exchange.bodies.items():
            federation.collector.receive(node, *federation.ask(exchange.step, node, body))
        federation.collector.close_exchange()
    assert exchange is not None
    return dict(exchange.bodies)


def test_an_attempt_is_taken_once_and_in_order(tmp_path: Path) -> None:
    """A node that was away for the first takes the second as its first, and then not the first any more."""
    federation = guarded(tmp_path)
    body = stop_before(federation, fleet_pb2.TRAIN, round=1, attempt=2).bodies[A]
    federation.ask(fleet_pb2.TRAIN, A, body)
    for attempt in (2, 1):
        again = rewrite(sealing_pb2.SealedOpen, body, lambda m, k=attempt: _next_slot(m, k))
        with refused(FailureName.ATTEMPT_WRONG):
            federation.ask(fleet_pb2.TRAIN, A, again)


def _next_slot(message: sealing_pb2.SealedOpen, attempt: int) -> None:
    message.slot, message.attempt = message.slot + 1, attempt


def test_the_memory_survives_the_process(tmp_path: Path) -> None:
    memory = Revealed(tmp_path / "revealed.jsonl")
    memory.on("records").reveal(run="r", slot=1, model="m", names=names(4), fewest=3)
    memory.close()
    again = Revealed(tmp_path / "revealed.jsonl").on("records")
    with refused(FailureName.MODEL_REVEALED):
        again.check(model="m", names=names(3), fewest=3)
    with refused(FailureName.BLOCK_SPLIT):
        again.check(model="another", names=names(3), fewest=3)
    again.check(model="m", names=names(4), fewest=3)
    again.revealed.on("other records").check(model="m", names=names(3), fewest=3)


def test_what_was_accepted_is_remembered_and_need_not_be_accepted_again(tmp_path: Path) -> None:
    memory = Revealed(tmp_path / "revealed.jsonl").on("records")
    memory.reveal(run="r", slot=1, model="m", names=names(4), fewest=None)
    with refused(FailureName.BLOCK_SPLIT):
        memory.check(model="n", names=names(5), fewest=3)
    memory.reveal(run="s", slot=1, model="n", names=names(5), fewest=None)
    memory.check(model="o", names=names(5), fewest=3)


@pytest.mark.parametrize("known", [[], [names(4)], [names(6)], [names(3), names(6)]])
def test_no_list_that_passes_sets_few_members_apart(known: list[tuple[str, ...]]) -> None:
    """Every subset of seven members, by brute force over the sets that the lists generate."""
    everybody = names(7)
    for mask in range(1, 2**7):
        chosen = [name for number, name in enumerate(everybody) if mask >> number & 1]
        try:
            check_split(known, chosen, 3)
        except ProtocolFailure as error:
            assert error.name is FailureName.BLOCK_SPLIT
            continue
        new = atoms([*known, chosen]) - atoms(known)
        assert not known or all(len(part) >= 3 for part in new)


def test_blocks_have_to_be_large_enough_beside_others() -> None:
    pair = Blocks({"old": ("a", "b", "c"), "new": ("d", "e")}, colluding=1)
    assert pair.whole("abcde") == ("a", "b", "c")
    with refused(FailureName.BLOCK_SPLIT):
        pair.check("abcde")
    Blocks({"": ("a", "b")}, colluding=1).check("ab")
    with refused(FailureName.BLOCK_SPLIT):
        still_away(Blocks({"x": ("a", "b"), "y": ("c", "d")}, colluding=1), (), "abcd", {}, 3)


def test_a_member_does_not_change_its_block() -> None:
    keys = {name: SigningKey.generate() for name in names(4)}
    before = make_roster(keys, blocks={A: "x", B: "x"})
    after = make_roster(keys, version=2, blocks={A: "x", C: "x"}).model_copy(update={"previous": before.digest})
    with pytest.raises(IdentityError, match="from block 'x' to ''"):
        _check_succession(before, Roster.model_validate(after.model_dump()))


# ------------------------------------------------------------------ honest runs


def test_an_honest_retry_after_a_failed_opening_is_over_the_very_same_list(tmp_path: Path) -> None:
    federation = guarded(tmp_path)
    failed = federation.slot(round=1, silent={fleet_pb2.REVEAL: {C, D}})
    assert isinstance(failed, Abandoned) and failed.code == FailureName.QUORUM_SHORT
    assert federation.collector._state.bound == names(4)
    federation.restart_collector()
    assert federation.collector.waits_for(names(3), {}) == (D,)
    opened = federation.slot(round=1, attempt=2)
    assert isinstance(opened, Opened) and opened.contributors == names(4)
    np.testing.assert_allclose(opened.update_sum, federation.expected_sum(names(4), 2), atol=1e-3)
    assert federation.collector._state.bound == ()


def test_two_blocks_retry_the_list_that_was_revealed_for_though_the_other_is_back(tmp_path: Path) -> None:
    federation = guarded(tmp_path, 6, blocks=dict(zip(names(6), "xxxyyy", strict=True)))
    failed = federation.slot(round=1, present=names(3), silent={fleet_pb2.REVEAL: {A}})
    assert isinstance(failed, Abandoned)
    opened = federation.slot(round=1, attempt=2)
    assert isinstance(opened, Opened) and opened.contributors == names(3)
    assert isinstance(after := federation.slot(round=2, attempt=1), Opened)
    assert after.contributors == names(6)


def test_a_member_that_is_lost_in_a_slot_is_waited_for(tmp_path: Path) -> None:
    federation = guarded(tmp_path)
    lost = federation.slot(round=1, silent={fleet_pb2.TRAIN: {D}})
    assert isinstance(lost, Abandoned) and lost.code == FailureName.BLOCK_SPLIT and D in lost.reason
    federation.restart_member(D)
    assert federation.collector.waits_for(names(3), {}) == (D,)
    again = federation.slot(round=1, attempt=2)
    assert isinstance(again, Opened) and again.contributors == names(4)


def test_a_block_with_a_missing_member_sits_the_slot_out(tmp_path: Path) -> None:
    federation = guarded(tmp_path, 9, blocks=dict(zip(names(9), "xxxyyyzzz", strict=True)))
    outcome = federation.slot(silent={fleet_pb2.TRAIN: {A}})
    assert isinstance(outcome, Opened) and outcome.contributors == names(9)[3:]
    assert outcome.dropped[B].startswith(FailureName.BLOCK_SPLIT)
    assert outcome.promise["differences"] == "refused"


def test_nobody_waits_for_a_member_that_never_comes(tmp_path: Path) -> None:
    federation = guarded(tmp_path)
    with refused(FailureName.BLOCK_SPLIT):
        federation.collector.waits_for(names(3), {D: "it refused the run"})


# ------------------------------------------------------------------ draws


def test_draws_are_secret_and_kept_unless_the_run_is_reproducible(tmp_path: Path) -> None:
    def local(spec: Specification, folder: str, slot: int = 1) -> int:
        opened = fleet_pb2.SlotOpen(slot=slot, round=1, attempt=1)
        return Draws.of(spec, A, tmp_path / folder).local(opened)

    secret, public = GUARDED, GUARDED.model_copy(update={"reproducible": True})
    assert local(secret, "one") == local(secret, "one") != local(secret, "two")
    assert local(secret, "one") != local(secret, "one", slot=2)
    assert local(public, "three") == local(public, "four")
    assert not (tmp_path / "three").exists()
    assert (tmp_path / "one" / "draws.key").stat().st_mode & 0o777 == 0o600
    one, two = (Draws.of(secret, A, tmp_path / folder).order(0, ROUND_ONE) for folder in ("one", "two"))
    assert one != two


# ------------------------------------------------------------------ named nodes


def test_named_nodes_are_whole_blocks_already_when_a_run_is_submitted() -> None:
    keys = {name: SigningKey.generate() for name in names(6)}
    them = sorted(keys)
    roster = make_roster(keys, blocks=dict.fromkeys(them[3:], "new"))

    def asked(*nodes: str, **sealing: object) -> Specification:
        return GUARDED.model_copy(
            update={
                "federation": GUARDED.federation.model_copy(update={"nodes": nodes}),
                "sealing": GUARDED.sealing.model_copy(update=sealing),
            }
        )

    for whole in ((), tuple(them[:3]), tuple(them[3:]), tuple(them)):
        check_named(asked(*whole), roster)
    check_named(asked(*them[:4], differences="accepted"), roster)
    with pytest.raises(ProtocolFailure, match=f"BLOCK_SPLIT: {them[4]} of block 'new' is not among them"):
        check_named(asked(*them[:4]), roster)
    with pytest.raises(IdentityError, match="nobody"):
        check_named(asked(*them[:3], "nobody"), roster)
