"""What is exported loads elsewhere and computes what was trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from confide.errors import ModelError
from confide.models.architecture import load_tokenizer
from confide.models.export import write_adapter, write_export, write_merged
from confide.models.model_card import licence_of
from confide.models.trainable import build, initial_state, load_trainable
from confide.runs.specification import Specification
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file

from tests.tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification

MANIFEST = {"run_id": "ab" * 16, "rounds": [{"round": 1, "contributors": ["hospital-a"]}]}
SCHEMES = ["average", "ffa", "rolora", "fedsvd", "fedsb"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


def moved(spec: Specification, base: Path) -> dict[str, torch.Tensor]:
    """A state some way from the initial one."""
    noise = torch.Generator().manual_seed(1)
    return {name: t + 0.1 * torch.randn(t.shape, generator=noise) for name, t in initial_state(spec, base).items()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 25).reshape(2, 10)).logits


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapter_loads_in_peft_and_computes_the_same(llama: Path, tmp_path: Path, scheme: str) -> None:
    spec = specification(adapter={"aggregation": scheme, "first_layer": 1})
    state = moved(spec, llama)
    trained = build(spec, llama)
    load_trainable(trained, state)
    write_adapter(tmp_path / "adapter", state, MANIFEST, spec, llama)
    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-5, atol=1e-5)
    assert (logits(loaded) - before).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", ["average", "fedsb"])
def test_adapter_of_conv1d_layers(gpt2: Path, tmp_path: Path, scheme: str) -> None:
    spec = specification(adapter={"aggregation": scheme, "target_modules": ["c_attn", "c_proj"]})
    state = moved(spec, gpt2)
    trained = build(spec, gpt2)
    load_trainable(trained, state)
    write_adapter(tmp_path / "adapter", state, MANIFEST, spec, gpt2)
    loaded = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(gpt2), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-5, atol=1e-5)
    write_merged(tmp_path / "merged", state, MANIFEST, spec, gpt2)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained), rtol=1e-5, atol=1e-5)


def test_classification_adapter_brings_its_head(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "bert")
    spec = specification(
        method={"name": "classification", "labels": ["low", "high"]}, adapter={"target_modules": ["query"]}
    )
    state = moved(spec, base)
    trained = build(spec, base)
    load_trainable(trained, state)
    write_adapter(tmp_path / "adapter", state, MANIFEST, spec, base)
    fresh = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_exports_a_model_folder(llama: Path, tmp_path: Path, dtype: str) -> None:
    spec = specification(adapter={"kind": "full"}, model={"dtype": dtype})
    state = moved(spec, llama)
    folder = write_export(tmp_path / "model", state, MANIFEST, spec, llama)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    trained = build(spec, llama)
    load_trainable(trained, state)
    tolerance = 1e-5 if dtype == "float32" else 0.1
    torch.testing.assert_close(logits(loaded).float(), logits(trained), rtol=tolerance, atol=tolerance)
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template


def test_manifest_names_every_file_and_no_path_of_this_machine(llama: Path, tmp_path: Path) -> None:
    spec = specification()
    folder = write_export(tmp_path / "adapter", initial_state(spec, llama), MANIFEST, spec, llama, base_name="org/base")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["run_id"] == MANIFEST["run_id"]
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors", "README.md", *tokenizer}
    assert not any(str(llama).encode() in path.read_bytes() for path in folder.iterdir())


def test_tensors_of_another_specification_are_refused(llama: Path, tmp_path: Path) -> None:
    state = initial_state(specification(adapter={"rank": 2}), llama)
    with pytest.raises(ModelError, match="does not belong"):
        write_adapter(tmp_path / "adapter", state, MANIFEST, specification(), llama)
    with pytest.raises(ModelError, match="no adapter"):
        write_adapter(tmp_path / "adapter", state, MANIFEST, specification(adapter={"kind": "full"}), llama)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_in_context_run_leaves_its_manifest_alone(llama: Path, tmp_path: Path, kind: str) -> None:
    spec = specification(method={"name": "in_context"}, adapter={"kind": kind}, training={"local_steps": 0})
    write_export(tmp_path / "metrics", {}, MANIFEST, spec, llama)
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["manifest.json"]
    assert json.loads((tmp_path / "metrics" / "manifest.json").read_text()) == {**MANIFEST, "files": {}}


def test_an_adapter_folder_loads_by_itself(llama: Path, tmp_path: Path) -> None:
    spec = specification()
    state = moved(spec, llama)
    trained = build(spec, llama)
    load_trainable(trained, state)
    manifest = {**MANIFEST, "rounds": [{"round": 2, "contributors": ["a", "b"], "metrics": {"EVAL_LOSS": 3.25}}]}
    folder = write_adapter(tmp_path / "adapter", state, manifest, spec, llama)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(trained), rtol=1e-5, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("The wall")["input_ids"] == load_tokenizer(llama)("The wall")["input_ids"]
    card = (folder / "README.md").read_text()
    for said in ("library_name: peft", "license: other", spec.model.sha256, "a, b", "EVAL_LOSS: 3.25", "## Licence"):
        assert said in card
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n")
    assert licence_of(tmp_path / "with") == "apache-2.0"


def test_a_merged_base_keeps_the_dtype_in_which_it_is_stored(llama: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(llama, half)
    transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(half)
    spec = specification(model={"dtype": "float32"})
    folder = write_merged(tmp_path / "merged", moved(spec, half), MANIFEST, spec, half)
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert transformers.AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
