"""Routing, outlines and their charge, what a relay holds, and forms of quotations."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confide.errors import (
    DataError,
    IdentityError,
    LedgerError,
    PolicyRefusal,
    ProtocolFailure,
    StateError,
    TransportError,
)
from confide.identity.keys import SigningKey
from confide.inquiries.asking import Inquirer
from confide.inquiries.checking import pieces
from confide.inquiries.documents import IndexCard, Outline, Quotation, Redaction, signed
from confide.inquiries.outline import _summed, cost, multiplier, noised, vectors
from confide.inquiries.routing import Known, chosen, known_of, scores
from confide.privacy.accounting import epsilon
from confide.privacy.ledger import Ledger
from confide.privacy.noise.lattice import Lattice
from confide.privacy.noise.randomness import SecureRandom
from confide_client.policy.policy import parse_policy
from confide_client.retrieval import outlines
from confide_client.retrieval.outlines import make_outline
from confide_server.inquiries import relay as relay_module
from confide_server.inquiries.relay import BUSY, LATE, NOT_LISTENING, InquiryRelay
from confide_server.rag.inquiring import told
from hypothesis import given
from hypothesis import strategies as st

from tests.inquiry_worlds import POLICY, InquiryWorld
from tests.rag_worlds import embedder

D = 32


def unit(random: np.random.Generator, count: int, towards: int, spread: float = 0.3) -> Any:
    """(count, D) embeddings around one axis."""
    rows = np.eye(D)[towards] + spread * random.normal(size=(count, D)) / np.sqrt(D)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class NoNoise(SecureRandom):
    def rounded_gaussian(self, size: int, *, stddev: float) -> Any:
        return np.zeros(size, np.int64)


# --- outlines


def test_without_noise_an_outline_is_the_mean() -> None:
    rows = unit(np.random.default_rng(0), 50, 3)
    made = noised({"a": rows}, epsilon=1.0, delta=1e-6, random=NoNoise())
    assert made.centroids[0].documents == 50
    np.testing.assert_allclose(vectors(made)[0], rows.mean(axis=0), atol=1e-5)


def test_the_noise_is_what_the_ledger_is_charged_for() -> None:
    """Over many releases of one outline, the spread of each number is the multiplier times the length of a unit."""
    rows = unit(np.random.default_rng(0), 40, 3)
    random = SecureRandom(Random(1).randbytes)
    made = [noised({"a": rows}, epsilon=2.0, delta=1e-6, random=random) for _ in range(300)]
    sums = np.stack([vectors(one)[0] * one.centroids[0].documents for one in made])
    # A unit's embedding has the length _SCALE of the clip 1, so that noise in its own measure is 1 / _SCALE larger.
    expected = multiplier(epsilon=2.0, delta=1e-6) * np.sqrt(1 + 0.3**2)
    assert 0.97 < sums.std(axis=0).mean() / expected < 1.03
    stated = np.mean([one.centroids[0].noise_stddev * one.centroids[0].documents for one in made])
    assert stated == pytest.approx(expected, rel=1e-3)
    assert epsilon(cost(made[0].noise_multiplier).whole, delta=1e-6) == pytest.approx(2.0, rel=0.01)


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_one_unit_moves_the_sum_by_one_clip_at_most(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    lattice = Lattice(clip=1.0, noise_multiplier=1.0)
    rows = random.normal(size=(count, D)).astype(np.float32) * random.choice([0.01, 1.0, 100.0], size=(count, 1))
    moved = _summed(rows, lattice) - _summed(rows[1:], lattice)
    assert np.linalg.norm(moved.astype(np.float64)) <= lattice.bound


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="holds a number that is none"):
        noised({"a": np.full((1, D), np.nan, np.float32)}, epsilon=1.0, delta=1e-6, random=NoNoise())
    with pytest.raises(DataError, match="1 to 16 collections"):
        noised({}, epsilon=1.0, delta=1e-6, random=NoNoise())


# --- the charge


@pytest.fixture
def world(tmp_path: Path) -> Iterator[InquiryWorld]:
    made = InquiryWorld(tmp_path)
    yield made
    made.close()


CHARGED = f'{POLICY}budget = "papers"\n[budgets.papers]\nepsilon = 3.0\ndelta = 1e-6\n'


def make(world: InquiryWorld, policy: str = CHARGED, epsilon: float = 1.0) -> tuple[Outline, bool, int]:
    """(outline, whether it was charged, lines of the ledger)."""
    clinic = world.organizations["clinic"]
    ledger = Ledger(clinic.folder / "ledger.log")
    try:
        made, charged = make_outline(
            clinic.folder, clinic.library, clinic.caller, embedder(), parse_policy(policy), ledger, epsilon
        )
        return made, charged, len(ledger)
    finally:
        ledger.close()


def test_a_version_is_charged_once(world: InquiryWorld) -> None:
    first, charged, lines = make(world)
    assert charged and lines == 4  # approved, reserved, spent, released
    again, charged, lines = make(world)
    assert again == first and not charged and lines == 4
    clinic = world.organizations["clinic"]
    more = clinic.folder / "more.md"
    more.write_text("# More\n\nThe clinic is closed in the second week of July.\n")
    clinic.library.add(clinic.caller, "leaflets", [more], embedder(), None, lambda _: None)
    other, charged, lines = make(world)
    assert other != first and charged and lines == 8


def test_an_outline_is_told_while_the_policy_opens_what_it_speaks_of(world: InquiryWorld) -> None:
    clinic = world.organizations["clinic"]

    def told(policy: str, model: Any = None) -> Outline | None:
        return outlines.told_outline(clinic.folder, parse_policy(policy), model or embedder())

    assert told(CHARGED) is None
    made, _, _ = make(world)
    assert told(CHARGED) == made == told(CHARGED.replace('["leaflets"]', '["leaflets", "more"]'))
    assert told("version = 1\n") is None and told(CHARGED.replace('["leaflets"]', '["more"]')) is None
    assert told(CHARGED, SimpleNamespace(sha256="0" * 64)) is None


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 100.5, float("nan"), float("inf")])
def test_an_epsilon_that_is_none_is_refused(epsilon: float, world: InquiryWorld) -> None:
    with pytest.raises(StateError, match="an outline's epsilon"):
        make(world, epsilon=epsilon)


def test_beyond_the_budget_nothing_is_made(world: InquiryWorld) -> None:
    with pytest.raises(ProtocolFailure, match="BUDGET_EXHAUSTED"):
        make(world, epsilon=4.0)
    assert outlines.load_outline(world.organizations["clinic"].folder) is None
    for policy in (POLICY, f'{POLICY}budget = "other"\n', "version = 1\n"):
        with pytest.raises(PolicyRefusal):
            make(world, policy)


@pytest.mark.parametrize("call", ["approve", "reserve", "spend", "release"])
def test_a_crash_at_any_call_charges_once_and_draws_once(
    call: str, world: InquiryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise LedgerError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, call, crash)
        with pytest.raises(LedgerError, match="the power went"):
            make(world)
    clinic = world.organizations["clinic"]
    pending = (clinic.folder / outlines.PENDING).read_bytes()
    made, charged, lines = make(world)
    assert charged and lines == 4
    assert outlines.StoredOutline.model_validate_json(pending).outline == made


# --- routing


def card(outline: Outline | None, **changes: object) -> IndexCard:
    said = {
        "node": "clinic", "key": "0" * 64, "embedder": "1" * 64, "dimension": D, "issued_at": 0, "expires_at": 9,
        "outline": outline,
    }  # fmt: skip
    return IndexCard.model_validate(said | changes)


def test_routing_asks_who_knows_and_who_says_nothing() -> None:
    random, secure = np.random.default_rng(1), SecureRandom(Random(1).randbytes)
    cards = {
        f"node-{n}": card(noised({"a": unit(random, 400, n)}, epsilon=1.0, delta=1e-6, random=secure)) for n in range(6)
    }
    cards["silent"] = card(None)
    cards["tiny"] = card(noised({"a": unit(random, 2, 0)}, epsilon=1.0, delta=1e-6, random=secure))
    cards["stranger"] = cards["node-0"].model_copy(update={"embedder": "2" * 64})
    known = {name: known_of(one, "1" * 64, D) for name, one in cards.items()}
    [question] = unit(random, 1, 4, spread=0.1)
    assert chosen(question.astype(float), known) == ["node-4", "silent", "stranger", "tiny"]
    assert chosen(question.astype(float), known, margin=9.0)[-3:] == ["silent", "stranger", "tiny"]


def test_routing_over_one_or_no_outline() -> None:
    assert scores(np.ones(D), {"a": Known.nothing(D)}) == {}
    assert chosen(np.ones(D), {"a": Known(np.ones((1, D)), np.zeros(1)), "b": Known.nothing(D)}) == ["a", "b"]


# --- quotations


def quotation(**changes: object) -> Quotation:
    said = {
        "collection": "leaflets", "document": "0" * 32, "source": "a.md", "version": 1, "sha256": "0" * 64,
        "text_sha256": "0" * 64, "start": 10, "stop": 30, "text": "write to [e-mail] now",
        "redacted": (Redaction(start=19, stop=26, kind="e-mail"),),
    }  # fmt: skip
    return Quotation.model_validate(said | changes)


def test_pieces_between_redactions() -> None:
    assert pieces(quotation()) == [(10, 19, "write to "), (26, 30, " now")]


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "write to [e-mail] now and then"},
        {"text": "write to [phone] now"},
        {"stop": 29},
        {"start": 30, "stop": 30, "redacted": (), "text": "x"},
        {"redacted": (Redaction(start=19, stop=31, kind="e-mail"),)},
        {"redacted": (Redaction(start=5, stop=6, kind="e-mail"),)},
        {"redacted": ()},
    ],
)
def test_text_and_offsets_that_do_not_belong_together(changes: dict[str, object]) -> None:
    with pytest.raises(TransportError, match="do not allow"):
        pieces(quotation(**changes))


# --- the relay


class Rosters:
    def __init__(self, world: InquiryWorld) -> None:
        self._world = world

    @property
    def current(self) -> Any:
        return self._world.roster


@pytest.fixture
def relay(world: InquiryWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InquiryRelay:
    monkeypatch.setattr(relay_module, "POLL_S", 0.02)
    (tmp_path / "cards").mkdir()
    return InquiryRelay(Rosters(world), tmp_path / "cards")  # type: ignore[arg-type]


def listening(relay: InquiryRelay, node: str, answer: Callable[[str, bytes], None], most: int) -> threading.Thread:
    """A node that answers so many inquiries; it stands when this returns."""

    def run() -> None:
        deliveries = relay.listen(node, lambda: True)
        for number, box in itertools.islice(deliveries, most):
            answer(number, box)
        deliveries.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while node not in relay._listeners:
        thread.join(0.005)
    return thread


def test_the_relay_carries_and_only_between_the_two(relay: InquiryRelay) -> None:
    def answer(number: str, box: bytes) -> None:
        relay.answer("builders", number, b"mine", "")  # not the one it was addressed to: dropped
        relay.answer("clinic", number, b"re: " + box, "")
        relay.answer("clinic", number, b"again", "")

    thread = listening(relay, "clinic", answer, 1)
    got = list(relay.ask("administrator", {"clinic": b"box", "builders": b"box"}, 120, lambda: True))
    assert sorted(got) == [("builders", b"", NOT_LISTENING), ("clinic", b"re: box", "")]
    thread.join(60)
    assert not relay._deliveries and not relay._open


def test_late_busy_and_too_many(relay: InquiryRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MOST_WAITING", 1)
    deliveries = relay.listen("clinic", lambda: True)
    relay._listeners["clinic"] = relay_module._Listener()
    assert list(relay.ask("administrator", {"clinic": b"x"}, 1, lambda: True)) == [("clinic", b"", LATE)]
    assert list(relay.ask("administrator", {"clinic": b"x"}, 1, lambda: True)) == [("clinic", b"", BUSY)]
    deliveries.close()
    held = [relay.ask("administrator", {"builders": b"x"}, 120, lambda: True) for _ in range(4)]
    assert [next(one) for one in held] == [("builders", b"", NOT_LISTENING)] * 4
    with pytest.raises(StateError, match="4 inquiries of administrator"):
        next(relay.ask("administrator", {"builders": b"x"}, 120, lambda: True))
    for one in held:
        one.close()
    assert not relay._open


def test_a_newer_call_of_a_node_ends_the_earlier_one(relay: InquiryRelay) -> None:
    earlier = listening(relay, "clinic", lambda number, box: None, 1)
    newer = listening(relay, "clinic", lambda number, box: relay.answer("clinic", number, b"new", ""), 1)
    earlier.join(60)
    assert not earlier.is_alive()
    assert ("clinic", b"new", "") in list(relay.ask("administrator", {"clinic": b"x"}, 120, lambda: True))
    newer.join(60)


@pytest.mark.parametrize(
    ("sealed", "deadline_s", "why"),
    [
        ({}, 5, "0 nodes"),
        ({f"n{n}": b"" for n in range(65)}, 5, "65 nodes"),
        ({"clinic": b""}, 0, "deadline"),
        ({"clinic": b""}, 121, "deadline"),
        ({"clinic": bytes(40_000)}, 5, "40000 bytes"),
    ],
)
def test_sizes_are_bounded(relay: InquiryRelay, sealed: dict[str, bytes], deadline_s: float, why: str) -> None:
    with pytest.raises(TransportError, match=why):
        next(relay.ask("administrator", sealed, deadline_s, lambda: True))


def test_a_node_publishes_its_own_card_only(relay: InquiryRelay, world: InquiryWorld) -> None:
    clinic = world.organizations["clinic"]
    data = signed(clinic.card(), clinic.identity)
    with pytest.raises(IdentityError, match="a node publishes its own"):
        relay.publish("builders", data)
    with pytest.raises(IdentityError, match="does not verify"):
        relay.publish("clinic", signed(clinic.card(), SigningKey.generate()))
    relay.publish("clinic", data)
    assert relay.cards(1 << 20) == [data] and relay.cards(10) == []
    world.enrol(revoked=("clinic",))
    assert relay.cards(1 << 20) == []


def test_an_expired_card_is_not_asked(world: InquiryWorld) -> None:
    asking: Inquirer = world.inquirer()
    assert set(asking.cards()) == {"clinic", "builders"}
    with pytest.raises(StateError, match="stranger answers no questions now"):
        asking.ask("What does a visit cost?", nodes=["stranger"])
    with pytest.raises(StateError, match="1 to 2000 characters"):
        asking.ask("  ")
    with pytest.raises(StateError, match="surrogate"):
        asking.ask("half \udcff")
    with pytest.raises(StateError, match="purpose 'Care of!' is no name"):
        world.inquirer(purpose="Care of!")


def test_what_each_node_said_is_told(world: InquiryWorld) -> None:
    """Also of one that has nothing, and of one that was not asked because others were named."""
    for one in world.organizations.values():
        one.policy = one.policy.replace("-1.0", "1.0")
    found = world.inquirer().ask("What does a visit cost?", everybody=True)
    assert set(told(found)) == {f"{name}: nothing near enough to the question" for name in ("clinic", "builders")}
    assert list(told(world.inquirer().ask("Cost?", nodes=["clinic"]))) == [
        "clinic: nothing near enough to the question"
    ]
    unquoted = found.answers[0].model_copy(update={"node": "clinic", "found": 2})
    [said] = told(dataclasses.replace(found, answers=(unquoted,)))
    assert said == "clinic: 2 passages are near the question, and nothing in them may or can be quoted"


def test_quotations_of_all_organizations_are_ranked_by_the_asker(world: InquiryWorld) -> None:
    found = world.inquirer().ask("How thick must the wall be?")  # no outlines: everybody is asked
    assert {one.organization for one in found.quotes} == {"clinic", "builders"}
    assert [one.cosine for one in found.quotes] == sorted((one.cosine for one in found.quotes), reverse=True)
    assert found.bytes_sent > 0 and found.bytes_received > 0 and not found.skipped and not found.failures
