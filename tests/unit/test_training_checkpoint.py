"""A local step that a restart cut off goes on in the same slot, to the same bits; and where that is not done at all."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confide_client.kept_files import CHECKPOINT
from confide_client.training import checkpoint as module
from confide_client.training.checkpoint import SlotCheckpoint

from tests.tiny_models import tiny_gpt2, tiny_llama
from tests.training_specs import specification
from tests.unit.test_training_local import Shard, first_model, slot, trainer

STEPS = {"local_steps": 5}


class Killed(BaseException):
    """SIGKILL, as far as a test in one process can have it."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    monkeypatch.setattr(module, "MOST_OF_TIME", 1e9)


def killed_at(monkeypatch: pytest.MonkeyPatch, losses: int) -> None:
    """The process dies when it has written down the so-many-th step."""
    keep = SlotCheckpoint.keep

    def keep_and_die(self: SlotCheckpoint, done: list[float], *rest: Any) -> None:
        keep(self, done, *rest)
        if len(done) == losses:
            raise Killed

    monkeypatch.setattr(SlotCheckpoint, "keep", keep_and_die)


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many losses stood at each step that is taken from now on."""
    taken: list[int] = []
    keep = SlotCheckpoint.keep

    def counted(self: SlotCheckpoint, done: list[float], *rest: Any) -> None:
        taken.append(len(done))
        keep(self, done, *rest)

    monkeypatch.setattr(SlotCheckpoint, "keep", counted)
    return taken


@pytest.mark.parametrize("sections", [{}, {"training": {"keep_optimizer_state": True}}, {"dropout": True}], ids=str)
def test_a_restarted_node_goes_on_to_the_same_bits(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    base = llama
    if sections.pop("dropout", False):
        base = tiny_gpt2(tmp_path / "gpt2", dropout=0.1)
        sections["adapter"] = {"target_modules": ["c_attn"]}
    spec = specification(**{**sections, "training": {**STEPS, **sections.get("training", {})}})
    whole = trainer(spec, base, tmp_path / "whole")
    model = first_model(spec, base, whole)
    expected = whole.contribute(model, Shard(), slot())
    with monkeypatch.context() as dying, pytest.raises(Killed):
        killed_at(dying, losses=3)
        trainer(spec, base, tmp_path / "node").contribute(model, Shard(), slot())
    file = tmp_path / "node" / CHECKPOINT
    assert file.stat().st_mode & 0o777 == 0o600
    torch.manual_seed(99)
    taken = steps_taken(monkeypatch)
    again = trainer(spec, base, tmp_path / "node").contribute(model, Shard(), slot())
    assert taken == [4, 5]
    assert again.update.tobytes() == expected.update.tobytes()
    assert again.metrics == expected.metrics
    assert not file.exists(), "the steps are done"


@pytest.mark.parametrize("other", [{"attempt": 2}, {"round": 2}, {"model_sha256": b"x" * 32}], ids=str)
def test_another_slot_trains_afresh(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    spec = specification(training=STEPS)
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    with monkeypatch.context() as dying, pytest.raises(Killed):
        killed_at(dying, losses=3)
        local.contribute(model, Shard(), slot())
    taken = steps_taken(monkeypatch)
    local.contribute(model, Shard(), slot(**other))
    assert taken == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "sections",
    [
        {"sealing": {"kind": "sealed"}, "federation": {"clip_norm": 4.0}},
        {"privacy": {"unit": "record", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}},
    ],
    ids=["sealed", "private"],
)
def test_a_sealed_or_private_run_leaves_nothing_half_trained_on_the_disk(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(module, "save_file", lambda tensors, path, metadata: written.append(path))
    spec = specification(training=STEPS, **sections)
    local = trainer(spec, llama, tmp_path)
    local.contribute(first_model(spec, llama, local), Shard(), slot())
    assert written == []


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _garble(file: Path) -> None:
    file.write_bytes(b"no tensors")


@pytest.mark.parametrize("damage", [_cut, _garble], ids=["cut", "garbled"])
def test_a_damaged_checkpoint_is_not_used(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    spec = specification(training=STEPS)
    local = trainer(spec, llama, tmp_path)
    model = first_model(spec, llama, local)
    expected = local.contribute(model, Shard(), slot())
    with monkeypatch.context() as dying, pytest.raises(Killed):
        killed_at(dying, losses=3)
        local.contribute(model, Shard(), slot())
    damage(tmp_path / CHECKPOINT)
    assert np.array_equal(local.contribute(model, Shard(), slot()).update, expected.update)


def test_a_full_disk_ends_checkpoints_and_not_the_training(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def full(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(module, "save_file", full)
    spec = specification(training=STEPS)
    local = trainer(spec, llama, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert local.contribute(first_model(spec, llama, local), Shard(), slot()).update.any()
    assert len(tries) == 1 and "without a checkpoint" in caplog.text


def test_it_is_written_once_a_minute_and_costs_little_of_the_time(llama: Path, tmp_path: Path) -> None:
    now = [0.0]
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    kept = SlotCheckpoint(tmp_path, specification(), slot(), every_s=60.0, clock=lambda: now[0])
    file = tmp_path / CHECKPOINT

    def written_at(seconds: float) -> bool:
        now[0] = seconds
        file.unlink(missing_ok=True)
        kept.keep([1.0], {"p": parameter}, optimizer)
        return file.exists()

    assert [written_at(seconds) for seconds in (1, 59, 61, 100, 122)] == [False, False, True, False, True]
