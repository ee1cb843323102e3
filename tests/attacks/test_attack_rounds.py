"""A coordinator that lies about a run's rounds is found out by `confide node verify-run`, and convicted by two heads.

The run is real: the coordinator, its ports, sealed members. The lies are told between its real answers and the node's
real checks, with the coordinator's own key.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import ConfideError, IdentityError, ProtocolFailure
from confide.identity.keys import SigningKey
from confide.proto import control_pb2 as pb
from confide.rounds import merkle
from confide.rounds.heads import SignedHead, TwoHeads, compare, head_of_message, sign_head
from confide.rounds.record import RoundRecord, parse_record, upload_leaves
from confide.runs.sections import Outer
from confide.transport.control import ControlClient
from confide_client.commands import audit
from confide_client.runs.heads import PROOF, Heads, kept_heads
from confide_client.runs.proving import Verdict, told, verify_run
from confide_client.state import StateFolder
from confide_server.coordinator.process import Coordinator
from typer.testing import CliRunner

from tests.coordinator_world import World, specification
from tests.fleet_node import FleetNode
from tests.integration.test_fleet_run import SIZE, wait_end

ROUNDS = 3
NODE = "hospital-b"
OUTER = Outer(name="sgd", learning_rate=0.7, momentum=0.9, nesterov=True)
Parts = list[pb.RunProofPart]
Lie = Callable[["Made", Parts], Parts]


class Made:
    """A real run, what the coordinator really answers of it, and its key."""

    def __init__(self, world: World, run_id: str, node: FleetNode, answers: dict[int, Parts]) -> None:
        self.world, self.run_id, self.node, self.answers = world, run_id, node, answers
        self.key = SigningKey.load(world.server / "identity.key")
        self.state = StateFolder(world.of(NODE))
        self.folder = self.state.run(run_id)

    def heads(self) -> list[SignedHead]:
        """As they came at the end of each round."""
        return [head_of_message(self.run_id, end.head) for end in self.node.ends if end.HasField("head")]

    def verify(self, lie: Lie | None = None, round: int | None = None) -> Verdict:
        """What the node finds, with what the coordinator makes of its answers."""

        def prove(run_id: str, number: int) -> Iterator[pb.RunProofPart]:
            parts = [pb.RunProofPart.FromString(part.SerializeToString()) for part in self.answers[number]]
            return iter(lie(self, parts) if lie else parts)

        return verify_run(self.state, self.node.local, prove, self.run_id, round)

    def signed(self, parts: Parts) -> Parts:
        """The same answer with a head over the records that are in it now."""
        leaves = [merkle.leaf_hash(part.entry.record) for part in parts if part.HasField("entry")]
        head = sign_head(self.key, "coordinator", self.run_id, leaves).to_message()
        return [pb.RunProofPart(head=head) if part.HasField("head") else part for part in parts]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    world = World.create(tmp_path_factory.mktemp("rounds"), nodes=4)
    coordinator = Coordinator(world.server)
    coordinator.start()
    nodes = {name: FleetNode(world.of(name), coordinator.fleet_port, size=SIZE).start() for name in world.node_names}
    sealed = specification(sealing="sealed", rounds=ROUNDS, min_cohort=3, clip_norm=100.0, exchange_deadline_s=60.0)
    federation = sealed.federation.model_copy(update={"outer": OUTER})
    sealed = sealed.model_copy(update={"federation": federation})
    run_id = coordinator.book.submit(world.submission(sealed, np.zeros(SIZE, dtype="<f4")))
    events = wait_end(coordinator, run_id, 180.0)
    assert events[-1].kind == "run_finished", events
    node = nodes[NODE]
    with ControlClient.of_member(node.local, f"127.0.0.1:{coordinator.control_port}") as client:
        answers = {number: list(client.prove(run_id, number)) for number in range(ROUNDS + 1)}
    for one in nodes.values():
        one.stop()
    coordinator.stop()
    folder = StateFolder(world.of(NODE)).run(run_id)
    folder.mkdir(parents=True)
    (folder / "offer.bin").write_bytes(node._offer_of[run_id].SerializeToString())
    shutil.copytree(world.of(NODE) / "member" / run_id, folder / "member")
    yield Made(world, run_id, node, answers)


@pytest.fixture
def made(run: Made) -> Iterator[Made]:
    """With the heads that came at the end of each round, and nothing that another test left."""
    for head in run.heads():
        Heads(run.folder).take(head, run.node.local.roster)
    yield run
    for path in run.folder.glob("*heads.log"):
        path.unlink()
    (run.folder / PROOF).unlink(missing_ok=True)


# --- nobody lies -----------------------------------------------------------------------------------------------------


def test_an_honest_run_holds_and_every_step_is_followed_exactly(made: Made) -> None:
    for number in range(1, ROUNDS + 1):
        found = made.verify(round=number)
        assert (found.rounds, found.heads, found.summed, found.share) == (
            ROUNDS,
            ROUNDS,
            (1, 2, 3),
            0.0,
        )
        assert found.stepped == number
    assert made.verify(round=0).stepped == 0
    lines = list(told(made.verify()))
    assert lines[2] == "this node's upload is in the sum of rounds 1-3"
    assert "exactly" in lines[3]
    assert "on the coordinator's word" in lines[4]


def test_a_node_gets_one_head_after_each_round_and_they_are_the_same_at_every_node(made: Made) -> None:
    assert [head.size for head in made.heads()] == [1, 2, 3]
    assert [head.size for head in kept_heads(made.folder)] == [1, 2, 3]


def test_what_a_rounding_of_another_processor_makes_is_no_lie(made: Made) -> None:
    def one_ulp(made: Made, parts: Parts) -> Parts:
        return _file(parts, "after", lambda data: _moved(data, 1))

    with pytest.raises(ProtocolFailure, match="MODEL_CHAIN_BROKEN"):  # the file is not the signed one
        made.verify(one_ulp)
    assert 0 < made.verify(_relogged("after", lambda data: _moved(data, 1), fresh=True), ROUNDS).share < 1


# --- lies ------------------------------------------------------------------------------------------------------------


def _file(parts: Parts, name: str, change: Callable[[bytes], bytes]) -> Parts:
    """The proof with another content of one file."""
    result, current = [], ""
    for part in parts:
        if part.HasField("file"):
            current = part.file.name
        elif part.HasField("chunk") and current == name:
            part = pb.RunProofPart(chunk=change(part.chunk))
        result.append(part)
    return result


def _moved(data: bytes, ulps: int) -> bytes:
    bits = np.frombuffer(data, dtype="<i4").copy()
    bits[7] += ulps
    return bits.tobytes()


def _entries(parts: Parts) -> list[pb.RoundEntry]:
    return [part.entry for part in parts if part.HasField("entry")]


def _record(number: int, **changes: Any) -> Lie:
    """One record is another, and the head signs it."""

    def lie(made: Made, parts: Parts) -> Parts:
        entry = _entries(parts)[number - 1]
        record = parse_record(entry.record)
        entry.record = RoundRecord(**(record.model_dump() | changes)).canonical_bytes()
        return made.signed(parts)

    return lie


def _relogged(name: str, change: Callable[[bytes], bytes], *, fresh: bool = False) -> Lie:
    """The newest round has another file, its record says so, and the head signs that."""
    field = {"after": "next_model_sha256", "mean": "mean_sha256", "outer_state": "outer_before_sha256"}[name]

    def lie(made: Made, parts: Parts) -> Parts:
        if fresh:
            for path in made.folder.glob("*heads.log"):
                path.unlink()
        held = next(
            made.answers[ROUNDS][at + 1].chunk
            for at, part in enumerate(made.answers[ROUNDS])
            if part.HasField("file") and part.file.name == name
        )
        digest = (model_digest if name == "after" else lambda data: sha256(data).digest())(change(held)).hex()
        return _record(ROUNDS, **{field: digest})(made, _file(parts, name, change))

    return lie


ZERO = "0" * 64


def _path(made: Made, parts: Parts) -> Parts:
    _entries(parts)[1].path[0] = bytes(32)
    return parts


def _index(made: Made, parts: Parts) -> Parts:
    _entries(parts)[1].index += 1
    return parts


def _left_out(made: Made, parts: Parts) -> Parts:
    entry = _entries(parts)[1]
    entry.included = False
    del entry.path[:]
    return parts


def _other_upload(made: Made, parts: Parts) -> Parts:
    """Another upload stands under this node's name, in a tree that is made for it and signed."""
    leaves = upload_leaves([(name, ZERO) for name in made.world.node_names])
    return _record(2, uploads_root=merkle.root(leaves).hex())(made, parts)


def _shorter(made: Made, parts: Parts) -> Parts:
    kept = [part for part in parts if not part.HasField("entry")] + [part for part in parts if part.HasField("entry")][
        :-1
    ]
    return made.signed(kept)


def _inner_node_as_leaf(made: Made, parts: Parts) -> Parts:
    """A tree of two whose leaves are inner nodes: RFC 9162's prefixes keep it apart."""
    entry = _entries(parts)[1]
    entry.index, entry.path[:] = entry.index // 2, list(entry.path)[1:]
    return parts


def _unsigned(made: Made, parts: Parts) -> Parts:
    return [parts[0], *_record(2, uploads=9)(made, parts)[1:]]


NOT_CONVICTED: dict[str, tuple[Lie, str]] = {
    "another hash beside the way": (_path, "OMITTED_SELF"),
    "another place": (_index, "OMITTED_SELF"),
    "a shorter way": (_inner_node_as_leaf, "OMITTED_SELF"),
    "left out": (_left_out, "OMITTED_SELF"),
    "rounds held back": (_shorter, "MODEL_CHAIN_BROKEN"),
    "records without their head": (lambda made, parts: [p for p in parts if not p.HasField("entry")], "MALFORMED"),
    "a record altered, the head not": (_unsigned, "MALFORMED"),
    "no head": (lambda made, parts: parts[1:], "TransportError"),
    "two heads at once": (lambda made, parts: [parts[0], *parts], "TransportError"),
    "a chunk of nothing": (lambda made, parts: [*parts, pb.RunProofPart(chunk=b"x")], "TransportError"),
    "a model altered": (lambda made, parts: _file(parts, "after", lambda d: _moved(d, 9)), "MODEL_CHAIN_BROKEN"),
    "a mean altered": (lambda made, parts: _file(parts, "mean", lambda d: _moved(d, 9)), "MODEL_CHAIN_BROKEN"),
    "a state altered": (lambda made, parts: _file(parts, "outer_state", lambda d: d[:-1]), "TransportError"),
}
CONVICTED: dict[str, Lie] = {
    "another upload": _other_upload,
    "another slot": _record(2, slot=77),
    "another attempt": _record(1, attempt=2),
    "another model": _record(1, next_model_sha256=ZERO),
    "another step": _relogged("after", lambda data: _moved(data, 1 << 20)),
    "another mean": _relogged("mean", lambda data: _moved(data, 1 << 20)),
}


@pytest.mark.parametrize("lie", NOT_CONVICTED)
def test_a_lie_is_refused_by_name(made: Made, lie: str) -> None:
    change, code = NOT_CONVICTED[lie]
    with pytest.raises(ConfideError) as refused:
        made.verify(change)
    assert refused.value.code == code
    assert not (made.folder / PROOF).exists()


@pytest.mark.parametrize("lie", CONVICTED)
def test_a_log_that_was_written_anew_convicts_the_coordinator(made: Made, lie: str) -> None:
    with pytest.raises(TwoHeads) as refused:
        made.verify(CONVICTED[lie])
    assert (refused.value.code, refused.value.culprit) == ("TWO_HEADS", "coordinator")
    proof = json.loads((made.folder / PROOF).read_bytes())
    assert compare([proof], made.world.consortium.root.public) is not None


FRESH: dict[str, tuple[Lie, str]] = {
    "another upload": (_other_upload, "OMITTED_SELF"),
    "another slot": (_record(2, slot=77), "COHORT_NOT_EPOCH"),
    "another model": (_record(1, next_model_sha256=ZERO), "MODEL_CHAIN_BROKEN"),
    "another first model": (_record(1, model_sha256=ZERO), "MODEL_CHAIN_BROKEN"),
    "another run": (_record(1, run_id="f" * 32), "MODEL_CHAIN_BROKEN"),
    "a round twice": (_record(2, round=1), "MODEL_CHAIN_BROKEN"),
    "another step": (_relogged("after", lambda data: _moved(data, 1 << 20)), "MODEL_CHAIN_BROKEN"),
    "another mean": (_relogged("mean", lambda data: _moved(data, 1 << 20)), "MODEL_CHAIN_BROKEN"),
    "a mean of no clipped updates": (
        _relogged("mean", lambda data: (np.frombuffer(data, "<f4") * np.float32(1e4)).tobytes()),
        "SUM_OUT_OF_RANGE",
    ),
}


@pytest.mark.parametrize("lie", FRESH)
def test_a_lie_from_the_beginning_is_refused_where_no_head_was_kept(made: Made, lie: str) -> None:
    for path in made.folder.glob("*heads.log"):
        path.unlink()
    change, code = FRESH[lie]
    with pytest.raises(ConfideError) as refused:
        made.verify(change)
    assert refused.value.code == code


def test_a_node_that_sent_nothing_is_in_no_sum(made: Made) -> None:
    """The coordinator says that a node which sat out is in the sum."""
    log = made.folder / "member" / "seal-log.jsonl"
    kept = log.read_bytes()
    try:
        log.unlink()
        with pytest.raises(ProtocolFailure, match="COHORT_NOT_EPOCH: the log says that hospital-b is in the sum"):
            made.verify()
    finally:
        log.write_bytes(kept)


def test_a_head_that_nobody_of_the_roster_signed_is_not_taken(made: Made) -> None:
    stranger = SigningKey.generate()
    leaves = [merkle.leaf_hash(b"x")]
    for head in (
        sign_head(stranger, "coordinator", made.run_id, leaves),
        sign_head(stranger, NODE, made.run_id, leaves),
        sign_head(stranger, "nobody", made.run_id, leaves),
    ):
        with pytest.raises(IdentityError):
            Heads(made.folder).take(head, made.node.local.roster)
    assert len(kept_heads(made.folder)) == ROUNDS


# --- conviction ------------------------------------------------------------------------------------------------------


def _written(path: Path, document: object) -> str:
    path.write_bytes(canonical.encode(document))
    return str(path)


def test_two_nodes_that_were_told_different_logs_convict_by_their_heads_alone(made: Made, tmp_path: Path) -> None:
    shown, roster = made.heads()[1], json.loads(made.node.local.roster.signed)
    other = sign_head(made.key, "coordinator", made.run_id, [merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")])
    one, two = (
        _written(tmp_path / f"{name}.json", {"roster": roster, "heads": [head.model_dump(mode="json")]})
        for name, head in (("one", shown), ("two", other))
    )
    root, proof = made.world.consortium.root.public.hex(), tmp_path / "proof.json"
    found = CliRunner().invoke(audit.app, ["equivocation", one, two, "--root", root, "--output", str(proof)])
    assert (found.exit_code, "convicted: coordinator signed two logs" in found.output) == (3, True), found.output
    again = CliRunner().invoke(audit.app, ["equivocation", str(proof), "--root", root])
    assert again.exit_code == 3
    honest = CliRunner().invoke(audit.app, ["equivocation", one, one, "--root", root])
    assert (honest.exit_code, "nobody is convicted" in honest.output) == (0, True)


def test_a_head_that_contradicts_an_earlier_one_is_kept_with_its_proof(made: Made) -> None:
    other = sign_head(made.key, "coordinator", made.run_id, [merkle.leaf_hash(b"x")])
    with pytest.raises(TwoHeads):
        Heads(made.folder).take(other, made.node.local.roster)
    assert len(kept_heads(made.folder)) == ROUNDS + 1
    assert compare([json.loads((made.folder / PROOF).read_bytes())], made.world.consortium.root.public) is not None


def test_nobody_is_convicted_by_what_the_coordinator_did_not_sign(made: Made) -> None:
    first, roster = made.heads()[0], json.loads(made.node.local.roster.signed)
    root = made.world.consortium.root.public
    forged = sign_head(SigningKey.generate(), "coordinator", made.run_id, [bytes(32)])
    of_another_run = sign_head(made.key, "coordinator", "f" * 32, [bytes(32)])

    def heads(*given: SignedHead, leaves: tuple[str, ...] = ()) -> dict[str, Any]:
        shown = [head.model_dump(mode="json") for head in given]
        return {"roster": roster, "heads": shown, "leaves": list(leaves)}

    with pytest.raises(IdentityError):
        compare([heads(first, forged)], root)
    assert compare([heads(first, of_another_run)], root) is None
    assert compare([heads(first, made.heads()[2])], root) is None
    assert compare([heads(first, made.heads()[2], leaves=(ZERO,) * 3)], root) is None, "leaves of no signed head"
    with pytest.raises(IdentityError):
        compare([heads(first)], SigningKey.generate().public)
    for broken in ({}, {"roster": roster}, {"roster": roster, "heads": [{}]}, {"roster": 1, "heads": []}):
        with pytest.raises(ConfideError):
            compare([broken], root)
