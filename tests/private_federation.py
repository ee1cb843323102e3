"""A sealed federation under organization-level privacy, with noise from fixed keys, for tests of what is opened."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from confide.privacy.noise import randomness
from confide.privacy.organization import SlotNoise, slot_noise
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.sealing_harness import Federation

SIZE = 4096
"""Parameters of the tests' model: as many coordinates, no padding."""


def organization_spec(
    *,
    epsilon: float = 8.0,
    delta: float = 1e-3,
    rounds: int = 20,
    clip: float = 1.0,
    sealing: str = "",
    extra: str = "",
) -> Specification:
    """The example under organization-level privacy."""
    text = EXAMPLE.replace("rounds = 3", f"rounds = {rounds}").replace("clip_norm = 12.0", f"clip_norm = {clip}")
    privacy = f'[privacy]\nunit = "organization"\nepsilon = {epsilon}\ndelta = {delta}\nclip = {clip}\n'
    return parse_toml(f"{text}\n{extra}\n[sealing]\nslots_per_epoch = 8\n{sealing}\n{privacy}")


def fixed_source(key: int) -> randomness.ByteSource:
    """AES-256-CTR under a number as its key."""
    encryptor = Cipher(algorithms.AES256(key.to_bytes(32, "big")), modes.CTR(bytes(16))).encryptor()
    return lambda length: encryptor.update(bytes(length))


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The nodes' noise is the same in every run of the test, and different in every upload."""
    keys = itertools.count(1)
    monkeypatch.setattr(randomness, "AesKeystream", lambda: fixed_source(next(keys)))
    yield


@dataclass
class PrivateFederation(Federation):
    """Nodes that contribute their update and nothing else."""

    size: int = SIZE

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        """As in a private run: no metric."""
        return Contribution(np.zeros(0, np.float32) if plan.evaluate_only else self.update(name, plan.slot))

    def noise(self) -> SlotNoise:
        """What each member adds in an epoch of all."""
        return slot_noise(self.specification, self.size, members=self.count)


def private(folder: Path, count: int = 5, specification: Specification | None = None) -> PrivateFederation:
    """`count` nodes; c = 1, so that of 5 one may be missing."""
    return PrivateFederation(folder, count, specification=specification or organization_spec())
