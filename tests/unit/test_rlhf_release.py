"""From `rlhf train` to what a release names, and whole models as candidates: bound by hashes, with tiny models."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from confide import canonical
from confide.errors import ModelError, StateError
from confide.models.adapter_hash import content_hash
from confide.models.export import write_merged
from confide.models.store import folder_digest
from confide.models.trainable import initial_state
from confide_server.admin_cli.release import _aligned
from confide_server.rlhf.commands import _aligned_model
from confide_server.rlhf.gate import check_same_tokens
from confide_server.rlhf.gate_subject import digest_of, is_whole, released
from confide_server.rlhf.merging import merge
from confide_server.rlhf.policy import Policy, Sampling
from confide_server.rlhf.training.documents import EXAMPLE, parse_toml
from confide_server.rlhf.training.trl_adapter import Trained
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.local import LocalEngine
from confide_server.serving.port import BASE, Generation
from confide_server.state.release_subject import FILE_NAME
from safetensors.torch import load_file, save_file

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
    assert _aligned(out)[0] == (out / FILE_NAME).read_bytes()
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


def test_a_merged_model_is_released_and_answers_as_base_and_adapter_do(base: Path, tmp_path: Path) -> None:
    out = trained(base, tmp_path / "run")
    model = merge(out, base, out / "merged")
    said = json.loads((out / "merged" / FILE_NAME).read_bytes())
    assert said["adapter_sha256"] == content_hash(out / "adapter") and said["merged_sha256"] == folder_digest(
        out / "merged"
    )
    found = released(out / "merged", out / "adapter", base)
    assert found == {
        "base_sha256": folder_digest(base), "model_sha256": model.merged_sha256,
        "specification_sha256": model.specification_sha256, "baseline_sha256": model.adapter_sha256,
    }  # fmt: skip
    assert _aligned(out / "merged")[1].model_sha256 == model.merged_sha256
    prompts, answers = ["Who pays?", "When?"], ["The tenant does.", "On Monday"]
    policies = [Policy(base, adapter=out / "adapter"), Policy(out / "merged"), Policy(base)]
    apart, merged, bare = (policy.log_probabilities(prompts, answers) for policy in policies)
    assert torch.allclose(apart, merged, atol=1e-3) and not torch.allclose(apart, bare, atol=0.1)
    greedy = Sampling(max_new_tokens=8, temperature=0.0)
    assert policies[0].sample(prompts, count=1, sampling=greedy) == policies[1].sample(
        prompts, count=1, sampling=greedy
    )
    beside, alone = AdaptedModel(base, "cpu"), AdaptedModel(out / "merged", "cpu")
    beside.add(model.adapter_sha256, out / "adapter")
    assert said_by(beside, model.adapter_sha256) == said_by(alone, BASE) != said_by(beside, BASE)
    assert alone.sha256 == model.merged_sha256, "it is served under the hash that the release names"
    with pytest.raises(StateError, match="is there already"):
        merge(out, base, out / "merged")


def said_by(model: AdaptedModel, adapter: str) -> str:
    """What the endpoint's engine answers."""

    async def answer() -> str:
        engine = LocalEngine(model).start()
        prompt = engine.prompts.chat([{"role": "user", "content": "Who pays for the scaffold?"}])
        wanted = Generation(prompt=prompt, adapter=adapter, max_tokens=12)
        text = "".join([delta.text async for delta in engine.generate(wanted)])
        await engine.close()
        return text

    return asyncio.run(answer())


@pytest.mark.parametrize("altered", ["a matrix", "another matrix", "the vocabulary"])
def test_a_merged_model_that_is_not_the_sum_has_no_release(base: Path, tmp_path: Path, altered: str) -> None:
    out = trained(base, tmp_path / "run")
    merged = tmp_path / "merged"
    merge(out, base, merged)
    tensors = load_file(merged / "model.safetensors")
    adapted = next(name for name in tensors if "q_proj" in name)
    if altered == "the vocabulary":
        (merged / "tokenizer_config.json").write_bytes((merged / "tokenizer_config.json").read_bytes() + b" ")
    else:
        name = adapted if altered == "a matrix" else next(name for name in tensors if "norm" in name)
        tensors[name] += 0.01
        save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    for check in (lambda: released(merged, None, base), lambda: _aligned(merged)):
        with pytest.raises(ModelError, match=r"holds|is there; merge again"):
            check()
    said = json.loads((merged / FILE_NAME).read_bytes())
    (merged / FILE_NAME).write_bytes(canonical.encode(said | {"merged_sha256": folder_digest(merged)}))
    with pytest.raises(ModelError, match="does not follow from base and adapter"):
        released(merged, None, base)


def test_only_a_plain_adapter_of_its_base_is_merged(base: Path, tmp_path: Path) -> None:
    out = trained(base, tmp_path / "run")
    config = out / "adapter" / "adapter_config.json"
    whole = config.read_bytes()

    def refused(reason: str) -> None:
        aligned = json.loads((out / FILE_NAME).read_bytes()) | {"adapter_sha256": content_hash(out / "adapter")}
        (out / FILE_NAME).write_bytes(canonical.encode(aligned))
        with pytest.raises(ModelError, match=reason):
            merge(out, base, tmp_path / "merged")
        assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merging-*"))

    config.write_text(json.dumps(json.loads(whole) | {"use_dora": True}))
    refused(r"no plain LoRA \(use_dora\)")
    config.write_bytes(whole)
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    save_file(
        weights | {"base_model.model.lm_head.weight": torch.ones(2)}, out / "adapter" / "adapter_model.safetensors"
    )
    refused("more than A and B")
    named = {name.replace(".q_proj.", ".q_other."): tensor for name, tensor in weights.items()}
    save_file(named, out / "adapter" / "adapter_model.safetensors")
    refused("q_other")


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
