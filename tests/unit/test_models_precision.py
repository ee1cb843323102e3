"""What a process computes in, measured or set, and what that changes: neither what is stored nor what travels."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from confide.errors import StateError
from confide.models.answering import load_answering
from confide.models.arithmetic import precision
from confide.models.arithmetic.widened import is_narrow, widened
from confide.models.store import ModelStore, float32_copy, folder_digest
from confide.models.trainable import build, initial_state, load_trainable
from confide.proto import fleet_pb2
from confide.runs.metrics import Metric
from confide_client.data.datasets import LocalData
from confide_client.training import LocalTrainer
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny_llama
from tests.training_specs import specification

RECORDS = [{"question": f"How thick is wall {i}?", "answer": f"It is {i} centimetres thick."} for i in range(8)]
NARROW = {"model": {"sha256": "0" * 64, "dtype": "bfloat16"}}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "_chosen", precision._Chosen())
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def narrow_llama(folder: Path) -> Path:
    """A tiny Llama stored in bfloat16, as most models are."""
    tiny_llama(folder)
    path = folder / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    return narrow_llama(tmp_path / "narrow")


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_faster_arithmetic_is_chosen(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    monkeypatch.setattr(
        precision, "_flop_per_s", lambda rows, width: {n: 1e9 + (n == faster) for n in precision.DTYPES}
    )
    assert precision.choice().arithmetic == faster


def test_it_is_measured_once_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="confide.models.arithmetic.precision")
    threads = torch.get_num_threads()
    first = precision.choice()
    assert first is precision.choice("cpu")
    assert torch.get_num_threads() == threads
    assert [r.message for r in caplog.records] == [f"computing in {first.arithmetic}: {first.why}"]
    assert "GFLOP/s in bfloat16" in first.why


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_machine_may_be_set(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    precision.prefer(name)
    assert precision.choice().arithmetic == name
    other = "float32" if name == "bfloat16" else "bfloat16"
    precision.prefer("auto")
    monkeypatch.setenv(precision.VARIABLE, other)
    precision.prefer(name)
    assert precision.choice().arithmetic == other


def test_an_unknown_arithmetic_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(precision.VARIABLE, "float16")
    with pytest.raises(StateError, match="CONFIDE_PRECISION is 'float16'; allowed are auto, float32, bfloat16"):
        precision.choice()


def test_bfloat16_is_used_only_where_the_run_allows_it() -> None:
    precision.prefer("bfloat16")
    plain, stored, cast = specification(), specification(**NARROW), specification(training={"autocast": True})
    assert [precision.used(s) for s in (plain, stored, cast)] == ["float32", "bfloat16", "bfloat16"]
    assert [precision.base_dtype(s) for s in (plain, stored, cast)] == [torch.float32, torch.bfloat16, torch.float32]
    assert [precision.autocast(s, "cpu")._enabled for s in (plain, stored, cast)] == [False, False, True]
    precision.prefer("float32")
    assert {precision.used(s) for s in (plain, stored, cast)} == {"float32"}
    assert {precision.base_dtype(s) for s in (plain, stored, cast)} == {torch.float32}
    assert not any(precision.autocast(s, "cpu")._enabled for s in (plain, stored, cast))


def test_a_narrow_base_is_computed_in_float32_to_the_last_bit(narrow: Path, tmp_path: Path) -> None:
    """The same update as of a base whose very numbers are stored in float32."""
    precision.prefer("float32")
    wide = tmp_path / "wide"
    tiny_llama(wide)
    path = wide / "model.safetensors"
    save_file({n: t.bfloat16().float() for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    updates = []
    for base, spec in ((narrow, specification(**NARROW)), (wide, specification())):
        trainer = LocalTrainer(spec, base, node="hospital-a", folder=tmp_path / base.name, threads=1, device="cpu")
        start = trainer.schema.flatten(initial_state(spec, base))
        slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)
        updates.append(trainer.contribute(start, LocalData(RECORDS, RECORDS[:2]), slot).update)
    assert (updates[0] == updates[1]).all()
    assert updates[0].any()


def test_autocast_is_a_hint(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    updates = []
    for autocast in (False, True):
        spec = specification(training={"autocast": autocast})
        precision.prefer("float32")
        trainer = LocalTrainer(spec, base, node="hospital-a", folder=tmp_path / str(autocast), threads=1, device="cpu")
        start = trainer.schema.flatten(initial_state(spec, base))
        slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)
        updates.append(trainer.contribute(start, LocalData(RECORDS, ()), slot).update)
    assert (updates[0] == updates[1]).all()


def test_answers_are_computed_so_too(narrow: Path) -> None:
    for name in ("float32", "bfloat16"):
        precision.prefer(name)
        model, _ = load_answering(narrow, device="cpu")
        assert {p.dtype for p in model.parameters()} == {precision.DTYPES[name]}


def test_a_frozen_base_is_pages_of_one_file(narrow: Path) -> None:
    precision.prefer("float32")
    model = build(specification(**NARROW), narrow)
    copy = float32_copy(folder_digest(narrow)) / "model.safetensors"
    assert str(copy) in Path("/proc/self/maps").read_text()
    assert oct(copy.stat().st_mode & 0o777) == "0o600"
    assert oct(copy.parent.stat().st_mode & 0o777) == "0o700"
    stored, held = load_file(narrow / "model.safetensors"), dict(model.named_parameters())
    assert torch.equal(held["model.embed_tokens.weight"], stored["model.embed_tokens.weight"].float())
    assert held["model.embed_tokens.weight"].dtype == torch.float32


def test_what_is_trained_is_never_a_shared_file(narrow: Path) -> None:
    precision.prefer("float32")
    spec = specification(**NARROW, adapter={"kind": "full"})
    model = build(spec, narrow)
    load_trainable(model, {name: t + 1 for name, t in initial_state(spec, narrow).items()})
    assert not float32_copy(folder_digest(narrow)).exists()
    stored = load_file(narrow / "model.safetensors")
    assert torch.equal(initial_state(spec, narrow)["model.norm.weight"], stored["model.norm.weight"].float())


def test_a_float32_base_needs_no_copy(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    assert not is_narrow(base)
    assert widened(base) == base


def test_an_altered_copy_is_made_again(narrow: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = widened(narrow) / "model.safetensors"
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert widened(narrow) == copy.parent
    assert copy.read_bytes() == whole
    assert "was altered; it is made again" in caplog.text


def test_without_a_place_for_the_copy_each_process_has_its_own(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert widened(narrow) == narrow
    precision.prefer("float32")
    assert next(build(specification(**NARROW), narrow).parameters()).dtype == torch.float32


def test_removing_a_model_removes_the_copy(narrow: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    digest = store.add(str(narrow), "narrow")
    copy = widened(store.path(digest))
    assert copy.name == digest
    store.remove(digest)
    assert not copy.exists()


WORK = """
    import json, sys
    from pathlib import Path
    from confide.models.arithmetic import precision
    from confide.models.trainable import initial_state
    from confide.proto import fleet_pb2
    from confide_client.data.datasets import LocalData
    from confide_client.training import LocalTrainer
    from tests.unit.test_models_precision import NARROW, RECORDS
    from tests.training_specs import specification

    spec, base, found = specification(**NARROW), Path(sys.argv[1]), {"auto": precision.choice().arithmetic}
    for name in ("auto", "bfloat16"):
        precision.prefer(name)
        folder = Path(sys.argv[2]) / name
        trainer = LocalTrainer(spec, base, node="hospital-a", folder=folder, threads=1, device="cpu")
        start = trainer.schema.flatten(initial_state(spec, base))
        slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)
        metrics = trainer.contribute(start, LocalData(RECORDS, RECORDS), slot).metrics
        found["metrics " + name] = {str(key): value for key, value in metrics.items()}
    print(json.dumps(found))
"""


def test_a_bfloat16_model_on_a_processor_without_its_unit(narrow: Path, tmp_path: Path) -> None:
    """float32 is chosen there, and finds what bfloat16 finds."""
    emulated = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORK), str(narrow), str(tmp_path)],
        env={**os.environ, **emulated},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["auto"] == "float32"
    for metric in (Metric.TRAIN_LOSS, Metric.EVAL_LOSS, Metric.UPDATE_NORM):
        ours, theirs = (found[f"metrics {name}"][str(metric)] for name in ("auto", "bfloat16"))
        assert ours == pytest.approx(theirs, rel=0.05)
