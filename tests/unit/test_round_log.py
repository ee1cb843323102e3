"""The log of rounds: the tree of RFC 6962 and 9162 against its published values, heads at a node, what is parsed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide import journal
from confide.errors import ConfideError, ProtocolFailure
from confide.proto import fleet_pb2
from confide.rounds import merkle
from confide.rounds.heads import SignedHead, head_of_message, parse_head, sign_head
from confide.rounds.record import MOST_BYTES, RoundRecord, parse_record, upload_entry, upload_leaves
from confide_client.runs.heads import PROOF, kept_heads
from confide_client.runs.proving import _collect
from hypothesis import given
from hypothesis import strategies as st

from tests.node_bench import MODEL, Bench, make_store, open_bench

ZERO = "0" * 64

# The test data of Certificate Transparency's reference implementation (RFC 6962): entries and roots of 1 to 8 of them.
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def _recursive(leaves: list[bytes]) -> bytes:
    """MTH as section 2.1.1 words it."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + _recursive(leaves[:half]) + _recursive(leaves[half:])).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_the_published_ones(size: int) -> None:
    assert merkle.root([merkle.leaf_hash(entry) for entry in ENTRIES[:size]]).hex() == ROOTS[size - 1]
    assert merkle.root([]).hex() == hashlib.sha256(b"").hexdigest()


@given(st.integers(1, 70), st.data())
def test_every_path_leads_to_the_root_and_no_altered_one_does(size: int, data: st.DataObject) -> None:
    leaves = [merkle.leaf_hash(number.to_bytes(2, "big")) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    root, path = _recursive(leaves), merkle.inclusion_path(leaves, index)
    assert merkle.root(leaves) == root == merkle.root_of_path(leaves[index], index, size, path)
    other = data.draw(st.integers(0, size - 1).filter(lambda number: number != index)) if size > 1 else size
    lies = [(leaves[index], other, size, path), (leaves[index], index, size, [*path, bytes(32)])]
    lies += [(leaves[index], index, size, path[:-1])] if path else []
    lies += [(merkle.leaf_hash(b"other"), index, size, path)]
    for lie in lies:
        try:
            assert merkle.root_of_path(*lie) != root
        except ProtocolFailure as error:
            assert error.code == "MALFORMED"


def record(**changes: object) -> RoundRecord:
    said = {
        "run_id": "ab" * 16, "round": 1, "slot": 1, "attempt": 1, "evaluate_only": False, "model_sha256": ZERO,
        "next_model_sha256": ZERO, "uploads": 0, "uploads_root": ZERO, "mean_sha256": "", "outer_before_sha256": "",
        "outer_after_sha256": "",
    }  # fmt: skip
    return RoundRecord.model_validate(said | changes)


def test_a_record_is_read_in_its_canonical_form_only() -> None:
    data = record().canonical_bytes()
    assert parse_record(data) == record()
    for other in (data + b" ", b" " + data, data.replace(b'"round":1', b'"round":1.0'), data + b" " * MOST_BYTES, b""):
        with pytest.raises(ProtocolFailure, match="MALFORMED"):
            parse_record(other)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_no_bytes_are_a_record_by_accident(data: bytes) -> None:
    with pytest.raises(ProtocolFailure, match="MALFORMED"):
        parse_record(data)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.dictionaries(st.text(), inner)))
def test_no_document_is_a_head_by_accident(document: object) -> None:
    with pytest.raises(ProtocolFailure, match="MALFORMED"):
        parse_head(document)


@given(st.binary(max_size=64))
def test_any_message_is_a_head_or_malformed(data: bytes) -> None:
    message = fleet_pb2.RunHead(size=3, root_sha256=data, coordinator="coordinator", signature=bytes(64))
    try:
        assert head_of_message("ab" * 16, message).to_message() == message
    except ProtocolFailure as error:
        assert error.code == "MALFORMED" and len(data) != 32


def test_names_order_the_tree_of_uploads() -> None:
    assert upload_leaves([("b", ZERO), ("a", ZERO)])[0] == merkle.leaf_hash(upload_entry("a", ZERO))


def test_a_proof_of_nothing_is_empty() -> None:
    assert _collect(iter(())).head is None


# --- at a node, with its real runtime


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "models").mkdir()
    with open_bench(tmp_path, make_store(tmp_path / "models")) as bench:
        yield bench


def end(bench: Bench, slot: int, head: SignedHead | None, *, committed: bool = True) -> fleet_pb2.Reply:
    message = fleet_pb2.End(slot=slot, committed=committed, head=head.to_message() if head else None)
    return bench.ask(bench.run.make(fleet_pb2.END, message.SerializeToString()))[0]


def signed(bench: Bench, *entries: bytes) -> SignedHead:
    key = bench.world.members["coordinator"].identity
    return sign_head(key, "coordinator", bench.run.run_id, [merkle.leaf_hash(entry) for entry in entries])


def test_a_node_keeps_each_head_once_and_stops_at_a_second_log(bench: Bench) -> None:
    bench.offer()
    bench.train(slot=1)
    folder = bench.node.state.run(bench.run.run_id)
    first, second = signed(bench, b"one"), signed(bench, b"one", b"two")
    for head in (first, first, second, None):
        assert end(bench, 1, head).WhichOneof("outcome") == "body"
    assert kept_heads(folder) == [first, second]
    assert end(bench, 1, signed(bench, b"other"), committed=False).WhichOneof("outcome") == "body"
    assert kept_heads(folder) == [first, second], "only of a committed slot"
    lie = end(bench, 1, signed(bench, b"other"))
    assert lie.failure.code == "TWO_HEADS"
    assert (folder / PROOF).exists()
    assert len(journal.read(folder / "heads.log")[0]) == 3
    refused = bench.failure(*bench.run.slot(MODEL, slot=2, attempt=2))
    assert refused.code == "TWO_HEADS"


def test_a_head_that_nobody_signed_is_refused_and_the_slot_has_ended_all_the_same(bench: Bench) -> None:
    bench.offer()
    bench.train(slot=1)
    forged = signed(bench, b"one").model_copy(update={"signature": "0" * 128})
    assert end(bench, 1, forged).failure.code == "IdentityError"
    assert not list((bench.node.state.run(bench.run.run_id) / "replies").iterdir())
    with pytest.raises(ConfideError):
        parse_head({})
