"""The golden vectors: made again byte by byte, and checked by an implementation that shares none of our code."""

import json
import struct
from typing import Any

import pytest
from confide.errors import FailureName

from tests import sealing_reference as reference
from tests.sealing_reference import bytes_of, fields, hash_fields, hkdf, info, integer, repeated
from tests.vectors.make_sealing_vectors import TARGET, build

DOCUMENT = json.loads(TARGET.read_text())
CASES = pytest.mark.parametrize("case", DOCUMENT["cases"], ids=lambda case: case["name"].replace(" ", "-"))
MEMBERS = ("hospital-00", "hospital-01", "hospital-02")
h = bytes.fromhex


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> bytes:
    return reference.hashlib.sha256(data).digest()


def replies(case: dict[str, Any], step: str) -> dict[str, bytes]:
    return {item["node"]: h(item["reply"]) for item in case["messages"] if item["step"] == step}


def bundle_of(case: dict[str, Any], node: str) -> bytes:
    return bytes_of(replies(case, "ADVERTISE")[node], 1)


def mask_key(case: dict[str, Any], node: str) -> bytes:
    return repeated(bundle_of(case, node), 7)[0]


def pair_seed(case: dict[str, Any], secret: bytes, node: str, peer: str) -> bytes:
    shared = reference.x25519(secret, mask_key(case, peer))
    return hkdf(shared, h(case["context"]), info("pairwise-mask", min(node, peer), max(node, peer)))


def self_seed(case: dict[str, Any], seed: bytes, node: str) -> bytes:
    return hkdf(seed, h(case["context"]), info("self-mask", node))


def test_the_file_is_what_the_generator_makes() -> None:
    assert json.loads(json.dumps(build())) == DOCUMENT


@CASES
def test_failures_are_named(case: dict[str, Any]) -> None:
    names = {item["failure"] for item in case["failing"]}
    assert names <= {name.value for name in FailureName} | {"IdentityError"} and len(names) >= 15


@CASES
def test_bundles(case: dict[str, Any]) -> None:
    bundles = []
    for node in MEMBERS:
        signed, own = replies(case, "ADVERTISE")[node], case["secrets"][node]
        bundle, identity = bytes_of(signed, 1), h(case["identity"][node])
        bundles.append(bundle)
        assert reference.signed(identity, "sealing/bundle", bundle, bytes_of(signed, 2))
        assert bytes_of(bundle, 6) == reference.x25519(h(own["share_secret"]), reference.BASE_POINT)
        assert repeated(bundle, 7) == [reference.x25519(h(k), reference.BASE_POINT) for k in own["mask_secrets"]]
        assert repeated(bundle, 8) == [
            hash_fields(
                "confide/v1/sealing/seed", DOCUMENT["run_id"].encode(), number(1), number(slot), node.encode(), h(seed)
            )
            for slot, seed in enumerate(own["seeds"], start=1)
        ]
        ledger = hash_fields(
            "confide/v1/sealing/ledger",
            node.encode(),
            number(integer(bundle, 10)),
            bytes_of(bundle, 11),
        )
        assert reference.signed(identity, "sealing/ledger", ledger, bytes_of(bundle, 15))
    assert hash_fields("confide/v1/sealing/bundles", *bundles) == h(case["bundles"])


@CASES
def test_dealings_open_to_signed_shares_of_the_secrets(case: dict[str, Any]) -> None:
    dealer, points = "hospital-01", {}
    own = case["secrets"][dealer]
    for item in repeated(replies(case, "SHARE")[dealer], 3):
        receiver = bytes_of(item, 2).decode()
        shared = reference.x25519(h(own["share_secret"]), bytes_of(bundle_of(case, receiver), 6))
        key = hkdf(shared, h(case["bundles"]), info("share-key", dealer, receiver))
        associated = hash_fields(
            "confide/v1/sealing/dealing", h(case["bundles"]), dealer.encode(), receiver.encode()
        )  # fmt: skip
        plain = reference.chacha20poly1305_open(key, bytes(12), bytes_of(item, 3), associated)
        for kind, secrets in ((1, own["seeds"]), (2, own["mask_secrets"])):
            shares = repeated(plain, kind)
            assert len(shares) == len(secrets) == 2
            share, signature = bytes_of(shares[0], 1), bytes_of(shares[0], 2)
            statement = hash_fields(
                "confide/v1/sealing/share",
                DOCUMENT["run_id"].encode(),
                h(case["bundles"]),
                number(1),
                bytes([kind]),
                dealer.encode(),
                receiver.encode(),
                share,
            )
            assert reference.signed(h(case["identity"][dealer]), "sealing/share", statement, signature)
            points.setdefault(kind, {})[MEMBERS.index(receiver) + 1] = int.from_bytes(share, "big")
    assert case["parameters"]["t"] == 2
    assert reference.interpolate(points[1]).to_bytes(32, "big") == h(own["seeds"][0])
    assert reference.interpolate(points[2]).to_bytes(32, "big") == h(own["mask_secrets"][0])


@CASES
def test_the_context(case: dict[str, Any]) -> None:
    layout, parameters = case["layout"], case["parameters"]
    assert h(layout["rotation_seed"]) == hash_fields("confide/v1/sealing/rotation", h(case["bundles"]), number(1))
    assert layout["lane_bits"] == (layout["members"] * (2 ** layout["bits"] - 1)).bit_length()
    integers = (layout[name] for name in ("parameters", "scalars", "bits", "members", "noise_bits"))
    described = (
        b"confide/v1/vector-layout" + struct.pack(">5Qd", *integers, layout["clip"]) + h(layout["rotation_seed"])
    )
    context = hash_fields(
        "confide/v1/sealing/context",
        number(1),
        DOCUMENT["run_id"].encode(),
        sha256(canonical(case["specification"])),
        hash_fields("confide/v1/model", sha256(h(case["model"]))),
        b"",
        sha256(canonical(case["roster"])),
        h(case["bundles"]),
        *(number(value) for value in (1, 1, 1, 1, 0)),
        described,
        *(number(parameters[name]) for name in ("n", "c", "t", "q")),
    )
    assert context == h(case["context"])


@CASES
def test_the_lists_signatures(case: dict[str, Any]) -> None:
    survivors = case["opened"]["contributors"]
    digests = [part for name in survivors for part in (name.encode(), reference.blake3(h(case["uploads"][name])))]
    listed = hash_fields("confide/v1/sealing/survivors", h(case["context"]), number(1), *digests)
    confirmations = replies(case, "CONFIRM")
    assert sorted(confirmations) == survivors and len(survivors) >= case["parameters"]["q"]
    for node, reply in confirmations.items():
        statement = hash_fields("confide/v1/sealing/list", listed, node.encode(), number(integer(reply, 4)))
        assert reference.signed(h(case["identity"][node]), "sealing/list", statement, bytes_of(reply, 5))


@CASES
def test_the_sum_opens_from_what_was_revealed_and_from_nothing_else(case: dict[str, Any]) -> None:
    layout, survivors = case["layout"], case["opened"]["contributors"]
    modulus = 2 ** layout["lane_bits"]
    uploads = {name: reference.unpack(h(case["uploads"][name]), layout["lane_bits"]) for name in survivors}
    count = len(uploads[survivors[0]])
    points: dict[str, dict[int, int]] = {name: {} for name in MEMBERS}
    kinds: dict[str, set[int]] = {name: set() for name in MEMBERS}
    for holder, reply in replies(case, "REVEAL").items():
        for share in repeated(reply, 3):
            dealer = bytes_of(share, 1).decode()
            points[dealer][MEMBERS.index(holder) + 1] = int.from_bytes(bytes_of(share, 3), "big")
            kinds[dealer].add(integer(share, 2))
    total = [sum(lanes) % modulus for lanes in zip(*uploads.values(), strict=True)]
    for name in MEMBERS:
        assert kinds[name] == ({1} if name in survivors else {2})
        secret = reference.interpolate(points[name]).to_bytes(32, "big")
        if name in survivors:
            assert secret == h(case["secrets"][name]["seeds"][0])
            masks = [(self_seed(case, secret, name), 1)]
        else:
            assert secret == h(case["secrets"][name]["mask_secrets"][0])
            masks = [(pair_seed(case, secret, name, peer), 1 if peer < name else -1) for peer in survivors]
        for seed, sign in masks:
            total = [
                (a - sign * b) % modulus
                for a, b in zip(total, reference.mask(seed, count, layout["lane_bits"]), strict=True)
            ]  # fmt: skip
    sums = reference.scalars(total, layout["coordinates"], layout["scalars"], layout["bits"])
    assert sums == [sum(values) for values in zip(*(case["scalars"][name] for name in survivors), strict=True)]
    assert sums == [
        sum(plain_scalars(case, name, uploads[name], count)[i] for name in survivors) for i in range(len(sums))
    ]
    weight = sums[0] / (2**32 - 2)
    assert weight == case["opened"]["weight_sum"] == len(survivors)
    signed = [value - modulus if value >= modulus // 2 else value for value in total[: layout["coordinates"]]]
    levels = 2 ** (layout["bits"] - 1) - 1
    assert max(map(abs, signed)) <= levels * len(survivors)
    step = 4.0 * layout["clip"] / (levels * layout["coordinates"] ** 0.5)
    # Rotation keeps lengths: the sum of impulses of 0.5 at different places has norm 0.5 sqrt(|L|).
    norm = step * sum(value * value for value in signed) ** 0.5
    assert norm == pytest.approx(0.5 * len(survivors) ** 0.5, rel=0.01)


def plain_scalars(case: dict[str, Any], node: str, lanes: list[int], count: int) -> list[int]:
    """One node's own scalars, from its upload and all of its secrets."""
    layout, own = case["layout"], case["secrets"][node]
    modulus = 2 ** layout["lane_bits"]
    masks = [(self_seed(case, h(own["seeds"][0]), node), 1)]
    secret = h(own["mask_secrets"][0])
    masks += [(pair_seed(case, secret, node, peer), 1 if node < peer else -1) for peer in MEMBERS if peer != node]
    for seed, sign in masks:
        lanes = [
            (a - sign * b) % modulus
            for a, b in zip(lanes, reference.mask(seed, count, layout["lane_bits"]), strict=True)
        ]  # fmt: skip
    return reference.scalars(lanes, layout["coordinates"], layout["scalars"], layout["bits"])


def test_the_reference_reads_the_same_fields() -> None:
    assert fields(h("0801120161")) == [(1, 1), (2, b"a")]
