"""Evidence names the run's model that it is of, by its tensors and not by what a manifest says."""

import json
from pathlib import Path

import pytest
from confide.errors import ModelError
from confide.models.store import folder_digest
from confide_server.rlhf.gate_subject import released
from safetensors.torch import load_file, save_file

from tests.coordinator_world import World
from tests.served_models import signed_adapter, strong_llama


def test_a_candidate_and_its_baseline_are_named_by_their_tensors(tmp_path: Path) -> None:
    world, base = World.create(tmp_path / "world", nodes=1), strong_llama(tmp_path / "base")
    candidate, baseline = (signed_adapter(world, base, tmp_path / f"adapter-{seed}", seed) for seed in (1, 2))
    manifests = [json.loads((folder / "manifest.json").read_bytes()) for folder in (candidate, baseline)]
    found = released(candidate, baseline, base)
    assert found == {
        "base_sha256": folder_digest(base),
        "model_sha256": manifests[0]["model_sha256"],
        "specification_sha256": manifests[0]["specification_sha256"],
        "baseline_sha256": manifests[1]["model_sha256"],
    }
    alone = released(candidate, None, base)
    assert alone is not None and alone["baseline_sha256"] == ""
    (candidate / "manifest.json").write_text(json.dumps(manifests[0] | {"specification_sha256": "ab" * 32}))
    with pytest.raises(ModelError, match="names the specification"):
        released(candidate, None, base)
    (candidate / "manifest.json").write_text(json.dumps(manifests[0]))
    tensors = load_file(candidate / "adapter_model.safetensors")
    save_file({name: one + 1e-3 for name, one in tensors.items()}, candidate / "adapter_model.safetensors")
    with pytest.raises(ModelError):
        released(candidate, None, base)
    (candidate / "manifest.json").unlink()
    assert released(candidate, None, base) is None
