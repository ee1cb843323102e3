"""An audit by what cannot come out: releases of the whole private step, unsealed, against neighbouring data.

The adversary knows the model and every record, and asks whether one of them was there. With noise in floating point he
needs no statistics: a float32 sum of a known number and noise can take some values and not others (Mironov 2012), so
one coordinate that no noise reaches from the sum without the record proves that the record was there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.models.trainable import initial_state
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan import unit_plan
from confide_client.training import LocalTrainer
from confide_client.training.private import mechanism_of
from numpy.typing import NDArray

from tests.tiny_models import tiny_llama
from tests.training_specs import specification
from tests.unit.test_dpsgd_training import RECORDS, SLOT, Shard

BATCH = 4
"""At least the number of records, so that all of them are in every batch; a power of two divides exactly."""

SECTIONS: dict[str, Any] = {
    "training": {"optimizer": "sgd", "learning_rate": 1.0, "local_steps": 1, "batch_size": BATCH, "weight_decay": 0.0},
    "adapter": {"rank": 8},
}
PRIVACY = {"unit": "record", "epsilon": 8.0, "delta": 1e-3, "clip": 0.5}
UNITS = {"record": PRIVACY, "user": {**PRIVACY, "unit": "user", "user_key": "author"}}
RELEASES = 4


class _Silent:
    """Noise of nothing, whatever the sampler is called."""

    names = ("rounded_gaussian", "gaussian")

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for name in self.names:
            if hasattr(SecureRandom, name):
                self._patch.setattr(SecureRandom, name, lambda self, count, *, stddev: np.zeros(count, dtype=np.int64))

    def __exit__(self, *error: object) -> None:
        self._patch.undo()


def unreachable(released: NDArray[np.float32], clean: NDArray[np.float32], step: float) -> int:
    """Coordinates that prove something: reached neither by float32 noise added to the clean sum in float32, nor by any
    whole number of steps of the lattice, which the adversary knows to be what is really added.

    Float32 alone would accuse the innocent: of an odd number of steps beyond 2^24 it has none, so a release on the
    other side of zero from a noise so rare seemed to be out of reach (one run in 700 of these tests).
    """
    nearest = released - clean
    steps = (released.astype(np.float64) - clean) / step
    reached = np.asarray(steps == np.rint(steps))
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        noise = nearest
        for _ in range(4):
            reached |= clean + noise == released
            noise = np.nextafter(noise, direction)
    return int((~reached).sum())


class Audit:
    """One node, one model, two neighbouring data sets."""

    def __init__(self, folder: Path, unit: str) -> None:
        self.spec = specification(privacy=UNITS[unit], **SECTIONS)
        base = tiny_llama(folder / "base", width=128)
        self.local = LocalTrainer(self.spec, base, node="hospital-a", folder=folder)
        self.model = self.local.schema.flatten(initial_state(self.spec, base))
        # Where the model is zero, the update is the noised mean gradient to the bit.
        self.exact = self.model == 0
        self.lattice = mechanism_of(unit_plan(self.spec, len(RECORDS[:3]))).lattice
        self.present = list(RECORDS[:3])  # three records of three users
        self.absent = [None, *RECORDS[1:3]]

    def release(self, records: list[Any]) -> NDArray[np.float32]:
        """The noised sum as it can be calculated back from the update that leaves."""
        update = self.local.contribute(self.model, Shard(records), SLOT).update
        return np.asarray(-update[self.exact] * BATCH, dtype=np.float32)

    def clean(self, records: list[Any]) -> NDArray[np.float32]:
        with _Silent():
            return self.release(records)


@pytest.fixture(scope="module", params=["record", "user"])
def audit(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"), request.param)


def test_no_release_is_impossible_under_the_wrong_neighbour(audit: Audit) -> None:
    right, wrong = audit.clean(audit.present), audit.clean(audit.absent)
    assert (right != wrong).mean() > 0.5, "the record does not matter"
    found = {"right": 0, "wrong": 0}
    for _ in range(RELEASES):
        released = audit.release(audit.present)
        found["right"] += unreachable(released, right, audit.lattice.granularity)
        found["wrong"] += unreachable(released, wrong, audit.lattice.granularity)
    assert found == {"right": 0, "wrong": 0}, f"of {RELEASES * right.size} coordinates"


def test_the_adversary_convicts_noise_in_floating_point() -> None:
    """What was added before the lattice: else the test above would pass whatever came out."""
    rng = np.random.default_rng(3)
    right, wrong = (rng.normal(scale=0.02, size=3072).astype(np.float32) for _ in range(2))
    released = right + rng.normal(scale=0.4, size=right.size).astype(np.float32)
    step = 0.5 / 2**22
    assert unreachable(released, right, step) == 0
    assert unreachable(released, wrong, step) > 10


def test_the_adversary_does_not_convict_rare_noise_on_the_lattice() -> None:
    step = 0.5 / 2**22
    clean = np.array([3 * step], dtype=np.float32)
    released = np.array([(3 - (2**24 + 1)) * step], dtype=np.float32)
    assert unreachable(released, clean, step) == 0


def test_every_release_lies_on_the_lattice_of_public_constants(audit: Audit) -> None:
    """The set of possible values is the same for all data: the floats next to whole numbers of steps."""
    lattice = audit.lattice
    for records in (audit.present, audit.absent):
        released = audit.release(records)
        assert np.abs(released).max() > 0
        steps = np.rint(released.astype(np.float64) / lattice.granularity)
        again = (steps * (lattice.granularity / BATCH)).astype(np.float32) * np.float32(BATCH)
        assert (again == released).all()
    clean = audit.clean(audit.present).astype(np.float64) / lattice.granularity
    assert (clean == np.rint(clean)).all() and np.linalg.norm(clean) <= len(audit.present) * lattice.bound
