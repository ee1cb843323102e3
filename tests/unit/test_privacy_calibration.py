"""Calibration in both directions, rounding within its bound, and what is impossible."""

import math

import numpy as np
import pytest
from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.privacy.accounting import epsilon_by_pld, epsilon_by_rdp
from confide.privacy.calibration import (
    check_noise,
    granularity,
    noise_multiplier,
    noise_multiplier_by_rdp,
    noise_reach,
    ring_bits,
    shared_noise,
)
from confide.privacy.events import SampledGaussian, SkellamRelease
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.noise.rounding import MAX_INTEGER, conditionally_round, squared_norm, squared_norm_bound
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st


def fixed() -> SecureRandom:
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    return SecureRandom(lambda length: encryptor.update(bytes(length)))


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(3.0, 1e-5, 0.0512, 98), (0.5, 1e-6, 0.001, 1000), (1.0, 1e-5, 1.0, 3)],
)
def test_the_noise_suffices_and_a_hundredth_less_does_not(
    epsilon: float, delta: float, rate: float, steps: int
) -> None:
    sigma = noise_multiplier(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)

    def cost(noise: float) -> float:
        event = SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)
        return epsilon_by_pld([event], delta=delta)

    assert cost(sigma) <= epsilon < cost(0.99 * sigma)
    assert noise_multiplier_by_rdp(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps) > sigma


@pytest.mark.parametrize("slots", [1, 20])
@pytest.mark.parametrize("scaled_clip", [100.0, 22_400.0])
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_shared_noise_suffices_and_one_percent_less_does_not(epsilon: float, scaled_clip: float, slots: int) -> None:
    noise = shared_noise(epsilon=epsilon, delta=1e-5, scaled_clip=scaled_clip, dimension=4096, slots=slots)

    def cost(variance: float) -> float:
        event = SkellamRelease(variance=variance, l2=noise.slot.l2, l1=noise.slot.l1, count=slots)
        return epsilon_by_rdp([event], delta=1e-5, orders=range(2, 513))

    assert cost(noise.variance) <= epsilon < cost(0.99**2 * noise.variance)
    assert noise.per_node(least_survivors=4, colluding=1) * (4 - 1) == pytest.approx(noise.variance)
    assert noise.slot.l2**2 == pytest.approx(noise.norm_bound)
    assert noise.slot.l1 <= noise.slot.l2 * min(math.sqrt(4096), noise.slot.l2) * (1 + 1e-12)


def test_any_allowed_set_of_honest_survivors_adds_enough() -> None:
    noise = shared_noise(epsilon=4.0, delta=1e-5, scaled_clip=500.0, dimension=64, slots=3)
    share = noise.per_node(least_survivors=7, colluding=3)
    for survivors in range(7, 11):
        for dishonest in range(4):
            honest = (survivors - dishonest) * share
            event = SkellamRelease(variance=honest, l2=noise.slot.l2, l1=noise.slot.l1, count=3)
            assert epsilon_by_rdp([event], delta=1e-5, orders=range(2, 513)) <= 4.0
    with pytest.raises(ProtocolFailure) as failure:
        check_noise(6, least_survivors=7)
    assert failure.value.name is FailureName.NOISE_INSUFFICIENT
    check_noise(7, least_survivors=7)
    check_noise(10, least_survivors=7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0}, {"epsilon": -1.0}, {"epsilon": math.inf}, {"delta": 0.0}, {"delta": 1.0},
        {"slots": 0}, {"scaled_clip": 0.0}, {"dimension": 0}, {"beta": 1.0},
    ],
)  # fmt: skip
def test_impossible_shared_noise_is_refused_by_name(wrong: dict[str, float]) -> None:
    right = {
        "epsilon": 1.0, "delta": 1e-5, "scaled_clip": 10.0, "dimension": 8, "slots": 1, "beta": 0.5,
    }  # fmt: skip
    with pytest.raises(ProtocolFailure) as failure:
        shared_noise(**{**right, **wrong})  # type: ignore[arg-type]
    assert failure.value.name is FailureName.PARAMETERS_IMPOSSIBLE


@pytest.mark.parametrize(("least_survivors", "colluding"), [(1, 1), (2, 3), (3, -1)])
def test_noise_that_nobody_honest_adds_is_refused(least_survivors: int, colluding: int) -> None:
    noise = shared_noise(epsilon=1.0, delta=1e-5, scaled_clip=10.0, dimension=8, slots=1)
    with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
        noise.per_node(least_survivors=least_survivors, colluding=colluding)


@pytest.mark.parametrize(("epsilon", "dimension", "slots"), [(8.0, 1024, 4), (1.0, 1 << 20, 20), (200.0, 1024, 1)])
def test_the_grid_is_the_coarsest_that_costs_one_percent(epsilon: float, dimension: int, slots: int) -> None:
    chosen = granularity(epsilon=epsilon, delta=1e-5, dimension=dimension, slots=slots)

    def stddev(units: int) -> float:
        clip = units * math.sqrt(dimension)
        noise = shared_noise(epsilon=epsilon, delta=1e-5, scaled_clip=clip, dimension=dimension, slots=slots)
        return math.sqrt(noise.variance) / units

    assert stddev(chosen) <= 1.01 * stddev(4096) < stddev(chosen // 2)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0.0}, {"delta": 1.5}, {"sampling_rate": 0.0}, {"sampling_rate": 1.1}, {"steps": 0}]
)
def test_impossible_noise_is_refused_by_name(wrong: dict[str, float]) -> None:
    right = {"epsilon": 1.0, "delta": 1e-5, "sampling_rate": 0.1, "steps": 10}
    with pytest.raises(ProtocolFailure) as failure:
        noise_multiplier(**{**right, **wrong})  # type: ignore[arg-type]
    assert failure.value.name is FailureName.PARAMETERS_IMPOSSIBLE


def test_the_norm_bound_is_the_published_minimum() -> None:
    clip, dimension, beta = 100.0, 64, math.exp(-0.5)
    first = (clip + 8) ** 2
    second = clip**2 + 16 + 1.0 * (clip + 4)
    assert (
        squared_norm_bound(scaled_clip=clip, dimension=dimension, beta=beta) == math.floor(min(first, second)) == 10120
    )
    assert squared_norm_bound(scaled_clip=0.5, dimension=1, beta=1e-9) == math.floor(1.5**2)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(data=st.data(), dimension=st.integers(1, 200), clip=st.floats(0.1, 1e4))
def test_rounding_stays_within_the_bound(data: st.DataObject, dimension: int, clip: float) -> None:
    direction = np.random.default_rng(data.draw(st.integers(0, 2**32))).normal(size=dimension)
    vector = direction / np.linalg.norm(direction) * clip * data.draw(st.sampled_from([0.0, 0.3, 1.0 - 1e-9]))
    bound = squared_norm_bound(scaled_clip=clip, dimension=dimension)
    rounded = conditionally_round(vector, bound=bound, random=fixed())
    assert squared_norm(rounded) <= bound
    assert np.abs(rounded - vector).max() < 1.0


def test_unconditional_rounding_would_break_the_bound() -> None:
    """The condition does something: free draws exceed the bound now and then, conditional ones never."""
    vector, random = np.full(400, 0.5), fixed()
    bound = squared_norm_bound(scaled_clip=10.0, dimension=400)
    free = [int((random.uniform(400) < 0.5).sum()) for _ in range(400)]
    assert 0 < sum(norm > bound for norm in free) < 400 * math.exp(-0.5)
    assert all(squared_norm(conditionally_round(vector, bound=bound, random=random)) <= bound for _ in range(400))


def test_rounding_is_unbiased() -> None:
    vector, random = np.linspace(-3.0, 3.0, 50), fixed()
    bound = 10 * squared_norm_bound(scaled_clip=float(np.linalg.norm(vector)), dimension=50)
    mean = np.mean([conditionally_round(vector, bound=bound, random=random) for _ in range(4000)], axis=0)
    assert np.abs(mean - vector).max() < 5 * 0.5 / math.sqrt(4000)


def test_a_vector_beyond_its_clip_is_refused_not_squeezed() -> None:
    bound = squared_norm_bound(scaled_clip=10.0, dimension=16)
    with pytest.raises(UpdateError, match="not clipped"):
        conditionally_round(np.full(16, 10.0), bound=bound, random=fixed())
    for bad in (np.array([math.nan]), np.array([math.inf]), np.zeros((2, 2)), np.array([1e15])):
        with pytest.raises(UpdateError):
            conditionally_round(bad, bound=10**40, random=fixed())


def test_squared_norms_are_exact_beyond_float64_and_int64() -> None:
    values = np.array([MAX_INTEGER, -MAX_INTEGER, 3, -MAX_INTEGER + 1, (1 << 20) - 1, -(1 << 20) - 7], dtype=np.int64)
    assert squared_norm(values) == sum(int(v) ** 2 for v in values)
    many = np.full(1 << 21, -MAX_INTEGER + 12345, dtype=np.int64)
    assert squared_norm(many) == (1 << 21) * (MAX_INTEGER - 12345) ** 2
    with pytest.raises(UpdateError):
        squared_norm(np.array([MAX_INTEGER + 1]))


def test_the_ring_holds_the_noise() -> None:
    variance, members, size = 2500.0, 5, 200_000
    random = fixed()
    total = sum(random.skellam(size, variance=variance) for _ in range(members))
    reach = noise_reach(variance=members * variance, coordinates=size)
    assert np.abs(total).max() < reach < 12 * math.sqrt(members * variance)
    bits = ring_bits(members=members, levels=127, variance_per_node=variance, coordinates=size)
    assert 2 ** (bits - 1) > members * 127 + reach > 2 ** (bits - 2)
