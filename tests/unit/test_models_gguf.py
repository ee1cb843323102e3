"""A merged model as GGUF, loaded back by transformers: the same logits and the same tokens."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from confide.errors import ModelError
from confide.models.export import write_merged
from confide.models.gguf_export import write_gguf
from confide.models.store import folder_digest
from confide.models.trainable import initial_state

from tests.tiny_models import CHAT_TEMPLATE, TEXT, sentencepiece_tokenizer, tiny_gpt2, tiny_llama
from tests.training_specs import specification


def merged(base: Path, folder: Path, **model: Any) -> Path:
    """A run's result with strong random adapters, merged and as GGUF."""
    spec = specification(model={"sha256": folder_digest(base), **model})
    noise = torch.Generator().manual_seed(1)
    state = {name: t + torch.randn(t.shape, generator=noise) for name, t in initial_state(spec, base).items()}
    return write_merged(folder, state, {}, spec, base, gguf=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loads_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_llama(tmp_path / "base")
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    folder = merged(base, tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = transformers.GgufConfig(dequantize=True)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", quantization_config=config, dtype=torch.float32
    )
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"][:40]])
    with torch.inference_mode():
        assert torch.allclose(plain(ids).logits, back(ids).logits, atol=1e-5)
    files = {path.name for path in folder.iterdir()}
    assert {"model.gguf", "model.safetensors", "manifest.json"} <= files and not any(".part" in name for name in files)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    assert tokenizer(TEXT)["input_ids"][:40] == ids[0].tolist()
    template = gguf.GGUFReader(folder / "model.gguf").fields["tokenizer.chat_template"].contents()
    assert template == CHAT_TEMPLATE


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gpt2 model cannot be written as GGUF"):
        write_gguf(tiny_gpt2(tmp_path / "gpt2"), tmp_path / "gpt2.gguf")
    pieces = tiny_llama(tmp_path / "pieces")
    sentencepiece_tokenizer(pieces)
    config = transformers.AutoConfig.from_pretrained(pieces)
    config.vocab_size = 600
    transformers.LlamaForCausalLM(config).save_pretrained(pieces)
    with pytest.raises(ModelError, match="no byte-level BPE"):
        write_gguf(pieces, tmp_path / "pieces.gguf")
    scaled = tiny_llama(tmp_path / "scaled")
    config = transformers.AutoConfig.from_pretrained(scaled)
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    config.save_pretrained(scaled)
    with pytest.raises(ModelError, match="scales its positions"):
        write_gguf(scaled, tmp_path / "scaled.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.part"))
