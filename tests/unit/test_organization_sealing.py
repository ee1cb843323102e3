"""Organization-level noise through the real members and collector: how much is in the opened sums, and who refuses."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, ProtocolFailure, SpecificationError
from confide.identity.keys import SigningKey
from confide.privacy.accounting import epsilon_by_rdp
from confide.privacy.events import SkellamRelease
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.noise.rounding import conditionally_round, squared_norm
from confide.privacy.organization import SlotNoise, largest_mean, organization_noise, slot_noise
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.sealing.collector import opening
from confide.sealing.factory import make_collector, make_member
from confide.sealing.member.chain import mean_update_bound
from confide.sealing.primitives import context
from confide.sealing.roles import Abandoned, Opened
from numpy.typing import NDArray

from tests.codec_oracle import dense_rotation, unpacked
from tests.private_federation import SIZE, PrivateFederation, fixed_noise, fixed_source, organization_spec, private
from tests.sealing_rosters import make_roster

__all__ = ["fixed_noise"]
VECTORS = Path(__file__).parent.parent / "vectors" / "noised.json"
TRAIN = fleet_pb2.TRAIN


def noise_in(federation: PrivateFederation, outcome: Opened | Abandoned) -> NDArray[np.float64]:
    """The opened sum minus the true one, in integer units of the rotated vector."""
    assert isinstance(outcome, Opened), outcome
    expected = federation.expected_sum(outcome.contributors, federation.slot_number)
    slot = federation.collector._state.slot
    assert slot is not None and slot.layout is not None
    return dense_rotation((outcome.update_sum - expected).astype(np.float32), slot.layout) / slot.layout.step


@pytest.mark.usefixtures("fixed_noise")
@pytest.mark.parametrize("missing", [0, 1])
def test_an_opened_sum_holds_the_noise_of_those_who_are_in_it(tmp_path: Path, missing: int) -> None:
    federation = private(tmp_path)
    silent = {TRAIN: ["hospital-04"]} if missing else None
    samples = np.concatenate([noise_in(federation, federation.slot(silent)) for _ in range(3)])
    noise, present = federation.noise(), 5 - missing
    assert (noise.least_survivors, noise.members) == (4, 5)
    # Rounding adds at most 1/4 a node. The estimate of a variance from 3 x 4096 samples is off by 1.3 % (one sigma).
    measured = samples.var() / (present * noise.variance)
    assert 0.95 < measured < 1.05 + 0.25 / noise.variance
    assert abs(samples.mean()) < 4 * np.sqrt(present * noise.variance / samples.size)
    # What the adversary does not know, one of those present being dishonest, is at least mu; with two fewer not.
    honest = (present - 1) * noise.variance
    assert honest >= noise.run.noise.variance * (1 - 1e-12) > (present - 2 - (1 - missing)) * noise.variance
    spent = SkellamRelease(variance=honest, l2=noise.run.noise.slot.l2, l1=noise.run.noise.slot.l1, count=22)
    assert epsilon_by_rdp([spent], delta=1e-3) <= 8.0


@pytest.mark.usefixtures("fixed_noise")
def test_noise_is_fresh_in_every_slot_and_of_every_node(tmp_path: Path) -> None:
    federation = private(tmp_path)
    first, second = (noise_in(federation, federation.slot()) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert np.abs(first - np.round(first)).max() > 0.01, "the true sum is not on the grid; only the opened one is"


def test_the_opened_sum_is_integers_times_the_step(tmp_path: Path) -> None:
    federation = private(tmp_path)
    outcome = federation.slot()
    slot = federation.collector._state.slot
    assert isinstance(outcome, Opened) and slot is not None and slot.layout is not None
    integers = dense_rotation(outcome.update_sum, slot.layout) / slot.layout.step
    assert np.abs(integers - np.round(integers)).max() < 1e-2 * np.abs(integers).max() ** 0.5
    assert slot.layout.granularity == federation.noise().run.units


def test_many_rounds_follow_the_model_chain_although_noise_is_longer_than_the_clip(tmp_path: Path) -> None:
    federation = private(tmp_path, specification=organization_spec(epsilon=0.5))
    for _ in range(4):
        outcome = federation.slot()
        assert isinstance(outcome, Opened), outcome
        mean = np.linalg.norm(outcome.update_sum) / 5
        assert 1.0 < mean < largest_mean(federation.specification, SIZE)
    assert not federation.failures
    assert mean_update_bound(federation.specification, SIZE) == largest_mean(federation.specification, SIZE)
    federation.model = federation.model + np.float32(2 * largest_mean(federation.specification, SIZE))
    assert isinstance(federation.slot(), Abandoned)
    assert {str(error).split(":")[0] for error in federation.failures.values()} == {"MODEL_CHAIN_BROKEN"}


def test_an_evaluation_carries_constants_and_no_noise(tmp_path: Path) -> None:
    federation = private(tmp_path)
    outcome = federation.slot(evaluate_only=True)
    assert isinstance(outcome, Opened)
    assert (outcome.weight_sum, outcome.metrics, len(outcome.update_sum)) == (5.0, {}, 0)


def test_too_few_for_the_noise_open_nothing(tmp_path: Path) -> None:
    federation = private(tmp_path)
    outcome = federation.slot({TRAIN: ["hospital-03", "hospital-04"]})
    assert isinstance(outcome, Abandoned) and outcome.code == "NOISE_INSUFFICIENT"
    assert fleet_pb2.REVEAL not in {step for step, *_ in federation.seen}
    assert isinstance(federation.slot(), Opened), "the next attempt has everybody"


def test_the_coordinator_opens_no_list_with_too_little_noise(tmp_path: Path) -> None:
    federation = private(tmp_path)
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    state = federation.collector._state
    assert state.slot is not None
    state.slot.survivors = ("hospital-00", "hospital-01", "hospital-02")
    with pytest.raises(ProtocolFailure) as failure:
        opening.open_sum(state, None, {})  # type: ignore[arg-type]  # noise is checked before anything is parsed
    assert failure.value.name is FailureName.NOISE_INSUFFICIENT


@pytest.mark.parametrize("what", ["metric", "weight"])
def test_whatever_else_a_node_would_send_is_refused_before_it_is_sent(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = private(tmp_path)

    def talkative(name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        update = federation.update(name, plan.slot)
        return Contribution(update, metrics={Metric.TRAIN_LOSS: 1.0}) if what == "metric" else Contribution(update, 0.5)

    monkeypatch.setattr(federation, "contribution", talkative)
    assert isinstance(federation.slot(), Abandoned)
    assert {error.code for error in federation.failures.values()} == {"METRIC_NOT_ALLOWED"}
    assert not federation.payloads


def test_a_sum_that_no_noise_explains_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation, honest = private(tmp_path), SlotNoise.to_integers
    liars = iter([True])

    def loud(self: SlotNoise, random: SecureRandom):  # type: ignore[no-untyped-def]
        factor = 60 if next(liars, False) else 1
        return lambda scaled: factor * honest(self, random)(scaled)

    monkeypatch.setattr(SlotNoise, "to_integers", loud)
    outcome = federation.slot()
    assert isinstance(outcome, Abandoned) and outcome.code == "SUM_OUT_OF_RANGE"
    assert "noise included" in outcome.reason


@pytest.mark.parametrize("seed", range(3))
def test_the_norm_bound_holds_for_honest_sums_and_not_for_one_with_a_mask_left(seed: int) -> None:
    run = organization_spec()
    noise, random = slot_noise(run, SIZE, members=5), SecureRandom(fixed_source(seed))
    update = np.random.default_rng(seed).normal(size=SIZE)
    scaled = update / np.linalg.norm(update) * noise.run.clip / noise.run.step
    total = np.sum([noise.to_integers(random)(scaled) for _ in range(5)], axis=0)
    assert np.linalg.norm(total) * noise.run.step < noise.largest_sum(5)
    assert np.abs(total).max() < 2 ** (noise.lane_bits - 1), "no lane wraps"
    garbage = np.random.default_rng(seed).integers(-(2 ** (noise.lane_bits - 1)), 2 ** (noise.lane_bits - 1), SIZE)
    assert np.linalg.norm(garbage) * noise.run.step > 1.5 * noise.largest_sum(5)


def test_rounded_vectors_stay_within_the_norm_that_was_accounted(tmp_path: Path) -> None:
    run = organization_noise(organization_spec(), SIZE)
    random, scaled = SecureRandom(fixed_source(1)), np.full(SIZE, run.units, dtype=float)
    bound = run.noise.norm_bound
    assert np.linalg.norm(scaled) == pytest.approx(run.clip / run.step)
    assert all(squared_norm(conditionally_round(scaled, bound=bound, random=random)) <= bound for _ in range(20))
    assert run.noise.slot.l2**2 == pytest.approx(bound)


def test_what_cannot_be_promised_is_refused_by_both_sides(tmp_path: Path) -> None:
    run, key = organization_spec(epsilon=0.01, delta=1e-9), SigningKey.generate()
    for make in (
        lambda: make_collector(run, make_roster({}), tmp_path / "c", "0" * 32, TensorSchema.unnamed(SIZE)),
        lambda: make_member(
            run,
            make_roster({"a": key}),
            "a",
            key,
            tmp_path / "m",
            "0" * 32,
            TensorSchema.unnamed(SIZE),
            initial_model_sha256=bytes(32),
        ),
    ):
        with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
            make()
    with pytest.raises(ProtocolFailure, match=r"PARAMETERS_IMPOSSIBLE.*32 is the most"):
        slot_noise(organization_spec(epsilon=0.01, delta=1e-5), 4_000_000_000, members=40)
    with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
        slot_noise(organization_spec(), SIZE, members=2)


@pytest.mark.parametrize(
    ("sealing", "extra", "message"),
    [("error_feedback = true", "", "error feedback"), ('kind = "none"', "", "inside sealing")],
)
def test_settings_that_would_void_the_promise_are_refused(sealing: str, extra: str, message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        organization_spec(sealing=sealing, extra=extra)


def test_one_clip_has_one_length() -> None:
    run = organization_spec()
    document = run.model_dump(mode="json")
    document["federation"]["clip_norm"] = 2.0
    with pytest.raises(ValueError, match="make them equal"):
        type(run).model_validate_json(json.dumps(document))
    document["federation"] |= {"clip_norm": 1.0, "fragments": 2}
    with pytest.raises(ValueError, match="set it to 1"):
        type(run).model_validate_json(json.dumps(document))


def test_a_node_with_a_stricter_policy_adds_no_less(tmp_path: Path) -> None:
    """Its own min_cohort makes it sign longer lists only; were its share by that number, the sum could lack noise."""
    federation = private(tmp_path)
    federation.rules = replace(federation.rules, min_cohort=5)
    member = federation.restart_member("hospital-00")
    federation.epoch()
    assert member.epoch is not None and member.epoch.parameters is not None
    assert member.epoch.parameters.smallest_list == 5
    plan = federation.plan()
    noise = context.slot_noise(federation.specification, member.epoch.parameters, plan, federation.coordinates)
    assert noise == federation.noise() and noise.least_survivors == 4


def make_vector(folder: Path) -> dict[str, object]:
    """The noised path of one node from fixed bytes: what any implementation has to reproduce."""
    run = organization_spec()
    noise = slot_noise(run, 3000, members=5)
    layout = noise.layout(run, 3000, scalars=1, rotation_seed=bytes(range(32)))
    update = (np.arange(3000) % 17 - 8).astype(np.float32)
    kept: list[NDArray[np.int64]] = []

    def to_integers(scaled: NDArray[np.float64]) -> NDArray[np.int64]:
        kept.append(noise.to_integers(SecureRandom(fixed_source(7)))(scaled))
        return kept[0]

    out = folder / "upload"
    digest = encode_upload(
        update, [255], layout, rounding_key=bytes(32), masks=[(b"m" * 32, 1)], out=out, to_integers=to_integers
    )
    total = UploadSum(layout)
    total.add(out, digest)
    total.remove_mask(b"m" * 32, 1)
    opened, scalars = total.open(1)
    return {
        "layout": layout.to_bytes().hex(),
        "lane_bits": layout.lane_bits,
        "granularity": layout.granularity,
        "norm_bound": noise.run.noise.norm_bound,
        "mu": f"{noise.run.noise.variance:.6f}",
        "variance_per_node": f"{noise.variance:.6f}",
        "first_integers": kept[0][:8].tolist(),
        "integers_sha256": hashlib.sha256(kept[0].astype("<i8").tobytes()).hexdigest(),
        "upload_digest": digest.hex(),
        "opened": [f"{value:.6f}" for value in opened[:4]],
        "scalars": scalars,
    }


def test_the_noised_path_never_changes_its_numbers(tmp_path: Path) -> None:
    """docs/sealing.md, "Noise": the vector in tests/vectors/noised.json, made by `make_vector`."""
    found = make_vector(tmp_path)
    assert found == json.loads(VECTORS.read_text())


def test_the_vectors_integers_are_rounding_and_noise_of_an_independent_rotation(tmp_path: Path) -> None:
    """The same bytes read by hand: 8 a coordinate for rounding, then Skellam as the difference of two Poisson draws."""
    found, run = make_vector(tmp_path), organization_spec()
    noise = slot_noise(run, 3000, members=5)
    layout = noise.layout(run, 3000, scalars=1, rotation_seed=bytes(range(32)))
    update = (np.arange(3000) % 17 - 8).astype(np.float32)
    exact = dense_rotation(update / np.float32(np.linalg.norm(update)), layout) / layout.step
    read = fixed_source(7)
    floor = np.floor(exact)
    while True:
        words = np.frombuffer(read(8 * layout.coordinates), dtype="<u8")
        uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52
        rounded = (floor + (uniform < exact - floor)).astype(np.int64)
        if squared_norm(rounded) <= noise.run.noise.norm_bound:
            break
    drawn = SecureRandom(read)
    skellam = drawn.poisson(layout.coordinates, mean=noise.variance / 2)
    skellam = skellam - drawn.poisson(layout.coordinates, mean=noise.variance / 2)
    integers = rounded + skellam
    assert integers[:8].tolist() == found["first_integers"]
    assert hashlib.sha256(integers.astype("<i8").tobytes()).hexdigest() == (found["integers_sha256"])
    # The upload is those integers plus the mask's keystream, modulo the lane.
    stream = np.frombuffer(_keystream(layout.lanes * layout.lane_dtype.itemsize), dtype=layout.lane_dtype)
    lanes = unpacked(tmp_path / "upload", layout)[: layout.coordinates]
    modulus = 2**layout.lane_bits
    assert np.array_equal((lanes - stream[: layout.coordinates].astype(np.int64)) % modulus, integers % modulus)


def _keystream(length: int) -> bytes:
    from tests.codec_oracle import counter_stream

    return counter_stream(b"m" * 32, length)
