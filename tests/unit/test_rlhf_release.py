"""From `rlhf train` to what a release names, and whole models as candidates: bound by hashes, with tiny models."""

import json
from pathlib import Path

import pytest
import torch
from confide.errors import ModelError
from confide.models.adapter_hash import content_hash
from confide.models.export import write_merged
from confide.models.store import folder_digest
from confide.models.trainable import initial_state
from confide_server.admin_cli.release import _aligned
from confide_server.rlhf.commands import _aligned_model
from confide_server.rlhf.documents import EXAMPLE, parse_toml
from confide_server.rlhf.gate import check_same_tokens
from confide_server.rlhf.gate_subject import digest_of, is_whole, released
from confide_server.rlhf.trl_adapter import Trained
from confide_server.state.release_subject import FILE_NAME

from tests.coordinator_world import World
from tests.served_models import signed_manifest, strong_adapter, strong_llama
from tests.training_specs import specification


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_llama(tmp_path_factory.mktemp("base"))


def trained(base: Path, out: Path) -> Path:
    """A folder as `confide rlhf train` leaves it."""
    run = parse_toml(EXAMPLE.replace("0" * 64, folder_digest(base)))
    adapter = strong_adapter(base, out / "adapter", 3)
    (adapter / "manifest.json").unlink()
    (out / FILE_NAME).write_bytes(_aligned_model(run, Trained(adapter, 20)).to_bytes())
    return out


def test_an_adapter_of_rlhf_train_is_named_by_its_hash_and_its_specification(base: Path, tmp_path: Path) -> None:
    out = trained(base, tmp_path / "run")
    found = released(out / "adapter", None, base)
    said = json.loads((out / FILE_NAME).read_bytes())
    assert found == {
        "base_sha256": folder_digest(base), "model_sha256": content_hash(out / "adapter"),
        "specification_sha256": said["specification_sha256"], "baseline_sha256": "",
    }  # fmt: skip
    assert _aligned(out) == (out / FILE_NAME).read_bytes()
    nameless = strong_adapter(base, tmp_path / "nameless", 4)
    (nameless / "manifest.json").unlink()
    assert released(nameless, None, base) is None
    with pytest.raises(ModelError, match="no release can stand for it"):
        released(out / "adapter", nameless, base)
    weights = out / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    for check in (lambda: released(out / "adapter", None, base), lambda: _aligned(out)):
        with pytest.raises(ModelError, match="is of the adapter"):
            check()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_model_of_a_run_is_bound_to_it(base: Path, tmp_path: Path, dtype: str) -> None:
    world = World.create(tmp_path / "world", nodes=1)
    run = specification(model={"sha256": folder_digest(base), "dtype": dtype}, adapter={"kind": "full"})
    noise = torch.Generator().manual_seed(4)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=noise) for n, t in initial_state(run, base).items()}
    manifest = signed_manifest(world, run, state, base)
    whole = write_merged(tmp_path / "whole", state, manifest, run, base)
    found = released(whole, None, base)
    assert is_whole(whole) and found is not None and found["model_sha256"] == manifest["model_sha256"]
    assert digest_of(whole) == folder_digest(whole) and digest_of(None) == ""
    listed = json.loads((whole / "manifest.json").read_bytes())
    (whole / "manifest.json").write_text(json.dumps(listed | {"model_sha256": "ab" * 32}))
    if dtype == "float32":
        with pytest.raises(ModelError, match="are not the model"):
            released(whole, None, base)
    (whole / "README.md").write_text("another")
    with pytest.raises(ModelError, match=r"README\.md"):
        released(whole, None, base)


def test_models_with_other_tokens_are_not_compared() -> None:
    class Tokens:
        chat_template = "a"

        def get_vocab(self) -> dict[str, int]:
            return {"a": 1}

    other = Tokens()
    check_same_tokens(Tokens(), other)
    other.chat_template = "b"
    with pytest.raises(ModelError, match="different tokenizers"):
        check_same_tokens(Tokens(), other)
