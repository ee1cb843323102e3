"""A model is the folder's: nothing is drawn that is used, nothing torn is read, whoever loads it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from confide.errors import ModelError
from confide.models.answering import with_adapter
from confide.models.pretrained import load_pretrained, pooler_names
from confide.rag.embedder import Embedder
from confide_server.rlhf.policy import Policy
from confide_server.rlhf.reward_model import FeatureReader
from confide_server.serving.engines.embedding import LocalEmbedder
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny_bert, tiny_llama


def _without(folder: Path, part: str) -> str:
    """Takes the first tensor with `part` in its name out of the weights; returns its name."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if part in name)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def test_what_is_loaded_is_what_is_stored(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    model = load_pretrained(transformers.AutoModelForCausalLM, folder, torch.float32)
    stored = load_file(folder / "model.safetensors")
    assert not model.training
    assert all(torch.equal(model.state_dict()[name].float(), tensor.float()) for name, tensor in stored.items())


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: Embedder(folder).embed(["a text"]),
        LocalEmbedder,
        lambda folder: FeatureReader(folder, "mean", 32),
    ],
    ids=["retrieval", "serving", "features"],
)
def test_an_encoder_without_one_of_its_tensors_is_refused(tmp_path: Path, load: Callable[[Path], object]) -> None:
    """transformers fills it with random numbers: every search would answer, and mean nothing."""
    folder = tiny_bert(tmp_path / "bert")
    load(folder)
    lost = _without(folder, "attention.self.query.weight")
    with pytest.raises(ModelError, match=lost.removeprefix("bert.").replace(".", r"\.")):
        load(folder)


def test_an_encoder_without_its_pooler_is_whole(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path, metadata={"format": "pt"})
    assert load_pretrained(transformers.AutoModel, folder, torch.float32, may_lack=pooler_names)
    with pytest.raises(ModelError, match=r"lacks 'pooler\.dense"):
        load_pretrained(transformers.AutoModel, folder, torch.float32)


def test_a_policy_whose_weights_are_torn_or_lack_something_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    Policy(folder)
    lost = _without(folder, "mlp.down_proj")
    with pytest.raises(ModelError, match=lost.replace(".", r"\.")):
        Policy(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        Policy(folder)


def test_features_are_not_read_through_an_adapter_that_has_no_place_in_the_model(tmp_path: Path) -> None:
    """PEFT warns and goes on with an adapter that does nothing."""
    folder = tiny_bert(tmp_path / "bert")
    adapted = get_peft_model(
        transformers.AutoModel.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["query"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    read = FeatureReader(folder, "mean", 32, adapter=tmp_path / "adapter")
    assert abs(read.of(["q"], ["a"]) - FeatureReader(folder, "mean", 32).of(["q"], ["a"])).max() > 1e-4
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k.replace("encoder", "other"): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has no counterpart"):
        FeatureReader(folder, "mean", 32, adapter=tmp_path / "adapter")


def test_an_adapter_goes_on_learning_where_that_is_asked(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    base = load_pretrained(transformers.AutoModelForCausalLM, folder, torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    for trainable in (True, False):
        fresh = load_pretrained(transformers.AutoModelForCausalLM, folder, torch.float32)
        adapted = with_adapter(fresh, tmp_path / "adapter", trainable=trainable)
        assert any(one.requires_grad for one in adapted.parameters()) is trainable
