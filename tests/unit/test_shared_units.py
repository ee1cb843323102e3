"""Record- and user-level noise that all nodes add together: exact sums, enough noise, and who refuses."""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.codec.layout import MAX_INTEGER
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.errors import DataError, PolicyRefusal, ProtocolFailure, SpecificationError
from confide.models.trainable import initial_state
from confide.privacy.accounting import epsilon_by_rdp
from confide.privacy.events import SkellamRelease
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan_words import describe_shared_unit_plan
from confide.privacy.shared import check_units, shared_cost, slot_noise
from confide.privacy.shared_units import UnitSlotNoise, largest_mean, shared_unit_plan, unit_noise
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from confide.sealing.member.chain import mean_update_bound
from confide.sealing.roles import Abandoned, Opened
from confide_client.policy.policy import parse_policy
from confide_client.training import LocalTrainer
from numpy.typing import NDArray

from tests.codec_oracle import counter_stream, unpacked
from tests.preferences import pairs
from tests.private_federation import fixed_noise, fixed_source
from tests.sealing_harness import Federation
from tests.tiny_models import tiny_bert
from tests.training_specs import specification
from tests.unit.test_preference_methods import Shard

__all__ = ["fixed_noise"]
SIZE = 384
TRAIN = fleet_pb2.TRAIN


def shared_spec(
    *, epsilon: float = 8.0, batch_size: int = 512, sealing: str = "", unit: str = "record"
) -> Specification:
    """A reward head with shared noise."""
    head, tail = EXAMPLE.split("[adapter]")
    tail = tail.split("[training]")[1].replace("clip_norm = 12.0", "").replace("local_steps = 3", "local_steps = 1")
    tail = tail.replace("batch_size = 8", f'batch_size = {batch_size}\noptimizer = "sgd"')
    tail = tail.replace("rounds = 3", "rounds = 20")
    key = 'user_key = "annotator"' if unit == "user" else ""
    return parse_toml(
        f'{head}[adapter]\nkind = "none"\n[method]\nname = "reward"\n[training]{tail}\n[sealing]\nslots_per_epoch = 8\n'
        f'{sealing}\n[privacy]\nunit = "{unit}"\nepsilon = {epsilon}\ndelta = 1e-5\nclip = 0.5\nnoise = "shared"\n'
        f"{key}\n"
    )


@dataclass
class SharedFederation(Federation):
    """Nodes whose updates are sums of integers."""

    size: int = SIZE

    def integers(self, name: str, slot: int) -> NDArray[np.int64]:
        """What one node sums up."""
        levels = unit_noise(self.specification, self.size).levels
        return np.random.default_rng([int(name[-2:]), slot]).integers(-levels // 9, levels // 9, self.size)

    def update(self, name: str, slot: int) -> NDArray[np.float32]:
        """The same in the update's units, as a trainer makes it."""
        step = unit_noise(self.specification, self.size).step
        return (self.integers(name, slot).astype(np.float64) * step).astype(np.float32)

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        """No metric."""
        return Contribution(np.zeros(0, np.float32) if plan.evaluate_only else self.update(name, plan.slot))


def shared(folder: Path, specification: Specification | None = None) -> SharedFederation:
    return SharedFederation(folder, 5, specification=specification or shared_spec())


def noise_in(federation: SharedFederation, outcome: Opened | Abandoned) -> NDArray[np.float64]:
    """The opened sum minus the true one, in integers."""
    assert isinstance(outcome, Opened), outcome
    step = unit_noise(federation.specification, SIZE).step
    true = np.sum([federation.integers(name, federation.slot_number) for name in outcome.contributors], axis=0)
    return outcome.update_sum.astype(np.float64) / step - true


@pytest.mark.usefixtures("fixed_noise")
@pytest.mark.parametrize("missing", [0, 1])
def test_an_opened_sum_holds_the_noise_of_those_who_are_in_it(tmp_path: Path, missing: int) -> None:
    federation = shared(tmp_path, shared_spec(sealing='differences = "accepted"'))
    silent = {TRAIN: ["hospital-04"]} if missing else None
    samples = np.concatenate([noise_in(federation, federation.slot(silent)) for _ in range(6)])
    noise, present = slot_noise(federation.specification, SIZE, members=5), 5 - missing
    assert isinstance(noise, UnitSlotNoise)
    # 2,304 samples: a variance is off by 3 % (one sigma); float32 of the opened sum by far less than a unit of noise.
    assert samples.var() / (present * noise.variance) == pytest.approx(1, abs=0.15)
    assert abs(samples.mean()) < 4 * math.sqrt(present * noise.variance / samples.size)
    honest = (present - 1) * noise.variance
    assert honest >= noise.run.noise.variance * (1 - 1e-12) > (present - 2 - (1 - missing)) * noise.variance
    event = noise.run.noise.slot
    spent = SkellamRelease(variance=honest, l2=event.l2, l1=event.l1, count=22)
    assert epsilon_by_rdp([spent], delta=1e-5) <= 8.0
    assert shared_cost(federation.specification, SIZE).slots == 22


def test_too_few_for_the_noise_open_nothing(tmp_path: Path) -> None:
    federation = shared(tmp_path, shared_spec(sealing='differences = "accepted"'))
    outcome = federation.slot({TRAIN: ["hospital-03", "hospital-04"]})
    assert isinstance(outcome, Abandoned) and outcome.code == "NOISE_INSUFFICIENT"


def test_rounds_follow_the_model_chain(tmp_path: Path) -> None:
    federation = shared(tmp_path, shared_spec(epsilon=0.5))
    for _ in range(3):
        assert isinstance(federation.slot(), Opened)
    bound = largest_mean(federation.specification, SIZE)
    assert mean_update_bound(federation.specification, SIZE) == bound
    federation.model = federation.model + np.float32(2 * bound)
    assert isinstance(federation.slot(), Abandoned)
    assert {str(error).split(":")[0] for error in federation.failures.values()} == {"MODEL_CHAIN_BROKEN"}


@pytest.mark.parametrize("batch_size", [1, 512, 65536])
def test_sums_are_exact_up_to_the_clamp(tmp_path: Path, batch_size: int) -> None:
    """Whatever float32 makes of an integer times the step, the codec takes the integer, and adds it exactly."""
    run = shared_spec(batch_size=batch_size, epsilon=8.0)
    noise = slot_noise(run, SIZE, members=5)
    assert isinstance(noise, UnitSlotNoise)
    layout, levels, step = noise.layout(run, SIZE, scalars=1, rotation_seed=bytes(32)), noise.run.levels, noise.run.step
    assert levels <= MAX_INTEGER and layout.lane_bits <= 32 and layout.wire_bytes < 65536
    rng = np.random.default_rng(1)
    total, expected = UploadSum(layout), np.zeros(SIZE, dtype=np.int64)
    for number in range(5):
        integers = rng.integers(-levels, levels + 1, SIZE)
        integers[:2] = levels, -levels
        sent = integers.copy()
        sent[2] = 3 * levels  # beyond the clamp
        update = (sent.astype(np.float64) * step).astype(np.float32)
        key, out = os.urandom(32), tmp_path / str(number)
        digest = encode_upload(
            update, [7], layout, rounding_key=bytes(32), masks=[(key, 1)], out=out,
            to_integers=lambda scaled: scaled.astype(np.int64),
        )  # fmt: skip
        integers[2] = levels
        expected += integers
        total.add(out, digest)
        total.remove_mask(key, 1)
    opened, scalars = total.open(5)
    assert scalars == [35]
    assert np.array_equal(opened, (expected * step).astype(np.float32))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("unit", ["record", "user"])
@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_one_unit_moves_the_integers_by_at_most_the_bound(
    bert: Path, tmp_path: Path, unit: str, micro_batch_size: int
) -> None:
    privacy: dict[str, Any] = {"unit": unit, "epsilon": 8.0, "delta": 1e-5, "clip": 0.02, "noise": "shared"}
    if unit == "user":
        privacy["user_key"] = "annotator"
    run = specification(
        method={"name": "reward"}, adapter={"kind": "none"}, sealing={"kind": "sealed"}, privacy=privacy,
        training={"local_steps": 1, "batch_size": 16, "learning_rate": 1.0, "optimizer": "sgd",
                  "micro_batch_size": micro_batch_size},
    )  # fmt: skip
    local = LocalTrainer(run, bert, node="a", folder=tmp_path, threads=1, device="cpu")
    model = local.schema.flatten(initial_state(run, bert))
    noise = unit_noise(run, local.schema.size)

    def integers(records: list[Any]) -> NDArray[np.float64]:
        update = local.contribute(model, Shard(records), fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)).update
        whole = update.astype(np.float64) / noise.step
        assert np.abs(whole - np.rint(whole)).max() < 0.3
        return np.rint(whole)

    records = pairs(12)
    left = [r for r in records if r["annotator"] != "person-0"] if unit == "user" else records[1:]
    moved = np.linalg.norm(integers(records) - integers(left))
    assert 0.9 * noise.grid.bound < moved <= noise.grid.bound, "clipped pairs reach their bound"
    unfit = {"chosen": "a", "rejected": "a", "annotator": "person-9"}
    assert np.array_equal(integers([*records, unfit]), integers(records)), "what does not fit adds nothing"


def test_a_node_adds_its_share_to_the_very_integers() -> None:
    run = shared_spec()
    noise = slot_noise(run, SIZE, members=5)
    exact = np.arange(SIZE, dtype=np.float64) - 100
    made = noise.to_integers(SecureRandom(fixed_source(3)))(exact)
    random = SecureRandom(fixed_source(3))
    assert isinstance(noise, UnitSlotNoise)
    assert np.array_equal(made - exact, random.skellam(SIZE, variance=noise.variance))


def test_the_plan_says_whose_noise_it_is() -> None:
    plan = shared_unit_plan(shared_spec(epsilon=1.0), members=5, trained=SIZE)
    lines, warnings = describe_shared_unit_plan(plan)
    assert not warnings and "THE NOISE IS SHARED" in lines[0] and "NOISE_INSUFFICIENT" in lines[1]
    assert 0.9 < plan.epsilon <= 1.0 < plan.epsilon_beside_others


IMPOSSIBLE = {
    "steps": ({"training": {"local_steps": 2}}, "local_steps is 2.*must be 1"),
    "adam": ({"training": {"optimizer": "adamw"}}, "optimizer.*'sgd'"),
    "unsealed": ({"sealing": {"kind": "none"}}, "sealing.kind.*'sealed'"),
    "lora": ({"adapter": {"kind": "lora"}}, "adapter.kind"),
    "clip norm": ({"federation": {"clip_norm": 1.0}}, "clip_norm.*left out"),
    "organization": ({"privacy": {"unit": "organization"}}, "always is"),
    "none": ({"privacy": {"unit": "none", "epsilon": None, "delta": None, "clip": None}}, "parameters of privacy"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_settings_that_would_void_the_promise_are_refused(case: str) -> None:
    sections, said = IMPOSSIBLE[case]
    document = shared_spec().model_dump(mode="json")
    for section, fields in sections.items():
        document[section] |= fields
    with pytest.raises(ValueError, match=said):
        Specification.model_validate_json(json.dumps(document))


def test_what_cannot_be_promised_is_refused() -> None:
    with pytest.raises(ProtocolFailure, match="PARAMETERS_IMPOSSIBLE"):
        slot_noise(shared_spec(), SIZE, members=2)
    with pytest.raises(ProtocolFailure, match="no noise up to"):
        slot_noise(shared_spec(epsilon=0.001), SIZE, members=99)
    with pytest.raises(SpecificationError, match="not below one over"):
        check_units(shared_spec(), 100_000)
    with pytest.raises(DataError, match="no records"):
        check_units(shared_spec(), 0)


def test_a_policy_has_to_accept_that_no_update_is_noised_enough_by_itself() -> None:
    run = shared_spec()
    text = (
        f'version = 1\nmethods = ["reward"]\nmodels = ["{run.model.sha256}"]\ndata_sets = ["construction-faq"]\n'
        'max_rounds = 20\nmax_local_steps = 1\nprivacy_units = ["record"]\n'
    )
    budget = '[budgets."construction-faq"]\nepsilon = 8.0\ndelta = 1e-5\n'
    with pytest.raises(PolicyRefusal, match="alone would not hold enough noise"):
        parse_policy(text + budget).check(run, group="construction-faq")
    parse_policy(text + "shared_noise = true\n" + budget).check(run, group="construction-faq")


VECTORS = Path(__file__).parent.parent / "vectors" / "integers.json"


def make_vector(folder: Path) -> dict[str, object]:
    """The path of one node's integers from fixed bytes: what any implementation has to reproduce."""
    run = shared_spec()
    noise = slot_noise(run, SIZE, members=5)
    assert isinstance(noise, UnitSlotNoise)
    layout = noise.layout(run, SIZE, scalars=1, rotation_seed=bytes(range(32)))
    update = ((np.arange(SIZE) % 17 - 8) * 1000 * noise.run.step).astype(np.float32)
    kept: list[NDArray[np.int64]] = []

    def to_integers(exact: NDArray[np.float64]) -> NDArray[np.int64]:
        kept.append(noise.to_integers(SecureRandom(fixed_source(7)))(exact))
        return kept[0]

    out = folder / "upload"
    digest = encode_upload(
        update, [255], layout, rounding_key=bytes(32), masks=[(b"m" * 32, 1)], out=out, to_integers=to_integers
    )
    total = UploadSum(layout)
    total.add(out, digest)
    total.remove_mask(b"m" * 32, 1)
    opened, scalars = total.open(1)
    assert np.array_equal(opened, (kept[0][:SIZE] * noise.run.step).astype(np.float32))
    return {
        "layout": layout.to_bytes().hex(),
        "lane_bits": layout.lane_bits,
        "bits": noise.run.grid.bits,
        "mu": f"{noise.run.noise.variance:.6f}",
        "variance_per_node": f"{noise.variance:.6f}",
        "first_integers": kept[0][:8].tolist(),
        "integers_sha256": hashlib.sha256(kept[0].astype("<i8").tobytes()).hexdigest(),
        "upload_digest": digest.hex(),
        "scalars": scalars,
    }


def test_the_path_of_integers_never_changes_its_numbers(tmp_path: Path) -> None:
    """docs/sealing.md, "Noise": the vector in tests/vectors/integers.json, made by `make_vector`."""
    assert make_vector(tmp_path) == json.loads(VECTORS.read_text())


def test_the_vectors_upload_is_the_integers_under_the_mask(tmp_path: Path) -> None:
    """The same bytes read by hand: Skellam as the difference of two Poisson draws, then the mask's keystream."""
    found, run = make_vector(tmp_path), shared_spec()
    noise = slot_noise(run, SIZE, members=5)
    assert isinstance(noise, UnitSlotNoise)
    layout = noise.layout(run, SIZE, scalars=1, rotation_seed=bytes(range(32)))
    exact = np.zeros(layout.coordinates, dtype=np.int64)
    exact[:SIZE] = (np.arange(SIZE) % 17 - 8) * 1000
    random = SecureRandom(fixed_source(7))
    drawn = [random.poisson(layout.coordinates, mean=noise.variance / 2) for _ in range(2)]
    integers = exact + drawn[0] - drawn[1]
    assert integers[:8].tolist() == found["first_integers"]
    stream = np.frombuffer(counter_stream(b"m" * 32, layout.lanes * layout.lane_dtype.itemsize), layout.lane_dtype)
    lanes = unpacked(tmp_path / "upload", layout)[: layout.coordinates]
    modulus = 2**layout.lane_bits
    assert np.array_equal((lanes - stream[: layout.coordinates].astype(np.int64)) % modulus, integers % modulus)
