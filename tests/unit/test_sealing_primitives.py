"""Parameters, shares, keys and bounds: against RFC vectors, closed forms and what must not hold."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from confide.errors import FailureName, ProtocolFailure
from confide.runs.parameters import Parameters, for_epoch, planned, words
from confide.runs.sections import Outer
from confide.sealing.member.chain import mean_update_bound, step_bound
from confide.sealing.primitives import keys, shamir
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sealing_harness import specify


@pytest.mark.parametrize(("n", "c", "q", "d"), [(3, 0, 2, 1), (3, 1, 3, 0), (5, 1, 4, 1), (10, 3, 7, 3), (2, 0, 2, 0)])
def test_the_table_of_the_design(n: int, c: int, q: int, d: int) -> None:
    parameters = Parameters.of(members=n, colluding=c, min_cohort=2)
    assert (parameters.quorum, parameters.threshold, parameters.missing) == (q, q, d)


def test_every_possible_choice_satisfies_the_rules_and_no_other_is_made() -> None:
    for n, c in itertools.product(range(2, 40), range(40)):
        if c > n - 2:
            with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
                Parameters.of(members=n, colluding=c, min_cohort=2)
            continue
        made = Parameters.of(members=n, colluding=c, min_cohort=2)
        assert 2 * made.quorum - n > c and c < made.threshold
        assert max(made.quorum, made.threshold) <= n - made.missing
        assert made.missing == math.ceil((n - c) / 2) - 1
        with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
            Parameters.of(members=n, colluding=c, min_cohort=2, max_missing=made.missing + 1)


def test_what_is_promised_in_words() -> None:
    def say(n: int, c: int, missing: int | None = None) -> str:
        return words(Parameters.of(members=n, colluding=c, min_cohort=2, max_missing=missing))

    assert say(5, 1) == (
        "with 5 organizations, the coordinator and any 1 of them together learn nothing about another beyond the sum "
        "of the others; 1 may be missing"
    )
    assert "each of the two learns the other's update" in say(2, 0)
    assert "together with any one organization it is not held to that" in say(3, 0)
    assert say(3, 1).endswith("none may be missing") and say(10, 3, 2).endswith("2 may be missing")


def test_an_epoch_of_fewer_members_than_planned() -> None:
    specification = specify("max_missing = 3\ncolluding = 1")
    assert planned(specification, 10).missing == 3
    assert for_epoch(specification, 5).missing == 1
    with pytest.raises(ProtocolFailure, match="waive"):
        for_epoch(specify("colluding = 0"), 5)


# ---------------------------------------------------------------- shares


@given(secret=st.binary(min_size=32, max_size=32), members=st.integers(2, 9), data=st.data())
def test_any_threshold_of_shares_and_no_fewer(secret: bytes, members: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, members))
    shares = shamir.split(secret, threshold=threshold, members=members)
    chosen = data.draw(st.permutations(range(1, members + 1)))
    held = {x: shares[x - 1] for x in chosen[:threshold]}
    assert shamir.reconstruct(held, threshold=threshold) == secret
    with pytest.raises(ProtocolFailure, match="QUORUM_SHORT"):
        shamir.reconstruct(dict(list(held.items())[:-1]), threshold=threshold)


def test_fewer_shares_fit_every_secret() -> None:
    shares = shamir.split(bytes(32), threshold=3, members=5)
    points = {1: int.from_bytes(shares[0], "big"), 2: int.from_bytes(shares[1], "big")}
    for wanted in (0, 1, 2**256 - 1):
        # The polynomial through (0, wanted) and the two shares exists for every secret.
        third = _through({0: wanted, **points}, 3).to_bytes(33, "big")
        made = shamir.reconstruct({1: shares[0], 2: shares[1], 3: third}, threshold=3)
        assert int.from_bytes(made, "big") == wanted


@pytest.mark.parametrize("threshold", [2, 3, 4, 7])
def test_one_share_less_makes_another_secret(threshold: int) -> None:
    secret = bytes(range(32))
    shares = shamir.split(secret, threshold=threshold, members=threshold)
    fewer = {x: int.from_bytes(shares[x - 1], "big") for x in range(1, threshold)}
    assert _through(fewer, 0) != int.from_bytes(secret, "big")


def _through(points: dict[int, int], x: int) -> int:
    total = 0
    for i, value in points.items():
        weight = 1
        for j in points:
            if j != i:
                weight = weight * (x - j) * pow(i - j, -1, shamir.PRIME) % shamir.PRIME
        total += value * weight
    return total % shamir.PRIME


def test_the_field_is_prime_and_shares_outside_it_are_refused() -> None:
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))
    for share in (shamir.PRIME.to_bytes(33, "big"), bytes(32), bytes(34), b"\xff" * 33):
        with pytest.raises(ProtocolFailure, match="BAD_SHARE"):
            shamir.check_share(share)
    with pytest.raises(ProtocolFailure, match="BAD_DEALING"):
        shamir.reconstruct({1: (2**256 + 5).to_bytes(33, "big")}, threshold=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), secret=st.binary(min_size=32, max_size=32), members=st.integers(2, 12))
def test_one_wrong_share_among_more_than_the_threshold_is_inconsistent(
    data: st.DataObject, secret: bytes, members: int
) -> None:
    threshold = data.draw(st.integers(1, members - 1))
    holders = data.draw(st.sets(st.integers(1, members), min_size=threshold + 1))
    shares = dict(enumerate(shamir.split(secret, threshold=threshold, members=members), start=1))
    held = {x: int.from_bytes(shares[x], "big") for x in holders}
    opening = shamir.Interpolation(holders, threshold=threshold)
    assert opening.consistent(held) and opening.secret(held) == secret
    liar = data.draw(st.sampled_from(sorted(holders)))
    held[liar] = (held[liar] + 1) % shamir.PRIME
    assert not opening.consistent(held)


# ---------------------------------------------------------------- bounds


def _largest_step(outer: Outer, rounds: int, generator: np.random.Generator, size: int) -> float:
    """The longest step that torch takes over gradients of norm 1, honest and adversarial ones."""
    parameter = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    optimizer: torch.optim.Optimizer
    if outer.name == "sgd":
        optimizer = torch.optim.SGD(
            [parameter], lr=outer.learning_rate, momentum=outer.momentum, nesterov=outer.nesterov
        )  # fmt: skip
    else:
        optimizer = torch.optim.Adam(
            [parameter], lr=outer.learning_rate, betas=(outer.beta1, outer.beta2), eps=outer.epsilon
        )  # fmt: skip
    longest = 0.0
    for step in range(rounds):
        gradient = generator.normal(size=size) if generator.random() < 0.3 else np.ones(size)
        scale = 10.0 ** -generator.integers(0, 4) if step < rounds - 1 else 1.0
        parameter.grad = torch.from_numpy(scale * gradient / np.linalg.norm(gradient))
        before = parameter.detach().clone()
        optimizer.step()
        longest = max(longest, float(torch.linalg.vector_norm(parameter.detach() - before)))
    return longest


@pytest.mark.parametrize(
    "outer",
    [
        Outer(),
        Outer(learning_rate=0.7, momentum=0.9, nesterov=True),
        Outer(learning_rate=0.5, momentum=0.8),
        Outer(name="adam", learning_rate=0.1, epsilon=1e-8),
        Outer(name="adam", learning_rate=0.1, beta1=0.9, beta2=0.8, epsilon=1e-8),
        Outer(name="adam", learning_rate=0.01, epsilon=1.0),
    ],
)
def test_no_step_of_the_outer_optimizer_exceeds_its_bound(outer: Outer) -> None:
    bound = step_bound(outer, gradient_norm=1.0, parameters=20, rounds=30)
    longest = max(_largest_step(outer, 30, np.random.default_rng(seed), 20) for seed in range(20))
    assert longest <= bound * (1 + 1e-9)
    assert longest > 0.2 * bound or outer.epsilon == 1.0


def test_the_mean_updates_bound_counts_rounding() -> None:
    assert mean_update_bound(specify("bits = 16"), 8) == pytest.approx(1 + 8 / 32767)
    assert mean_update_bound(specify("bits = 4"), 8) == pytest.approx(1 + 2.5 / 7)
    assert mean_update_bound(specify("bits = 8", 'weights = "examples"'), 8) == pytest.approx(1 + 20 * 4 / 127)


P_25519 = 2**255 - 19
SMALL_U = (
    0, 1, P_25519 - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)  # fmt: skip


@pytest.mark.parametrize("u", [value + lift for value in SMALL_U for lift in (0, P_25519) if value + lift < 2**255])
@pytest.mark.parametrize("top_bit", [0, 1])
def test_every_encoding_of_low_order_is_refused_by_the_table_and_by_the_agreement(u: int, top_bit: int) -> None:
    public = (u | top_bit << 255).to_bytes(32, "little")
    for refuses in (lambda: keys.check_order(public), lambda: keys.agree(keys.new_secret(), public)):
        with pytest.raises(ProtocolFailure) as caught:
            refuses()
        assert caught.value.name is FailureName.LOW_ORDER_KEY


@given(st.binary(min_size=32, max_size=32))
def test_the_table_and_the_agreement_refuse_the_same_keys(public: bytes) -> None:
    def refused(check: Callable[[], object]) -> bool:
        try:
            check()
        except ProtocolFailure:
            return True
        return False

    assert refused(lambda: keys.check_order(public)) == refused(lambda: keys.agree(bytes(range(32)), public))
