"""Asking a model in the terminal, with and without an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from confide.errors import ModelError
from confide.models.answering import answer, load_answering, prompt_ids
from confide.models.export import write_adapter, write_merged
from confide.models.store import folder_digest
from confide.models.trainable import initial_state
from confide_client.commands.chat import chat
from typer import Typer
from typer.testing import CliRunner

from tests.tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.training_specs import specification

QUESTION = [{"role": "user", "content": "How thick must the wall be?"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strong random weights: the small ones of a fresh model would only repeat the last token."""
    fresh, spec = tiny_llama(tmp_path_factory.mktemp("fresh")), specification(adapter={"kind": "full"})
    noise = torch.Generator().manual_seed(2)
    state = {n: t + 0.3 * torch.randn(t.shape, generator=noise) for n, t in initial_state(spec, fresh).items()}
    return write_merged(tmp_path_factory.mktemp("llama"), state, {}, spec, fresh)


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = specification(model={"sha256": folder_digest(llama)})
    noise = torch.Generator().manual_seed(1)
    state = {name: t + torch.randn(t.shape, generator=noise) for name, t in initial_state(spec, llama).items()}
    return write_adapter(tmp_path_factory.mktemp("adapter"), state, {}, spec, llama)


def run(*arguments: str, keys: str = "") -> Any:
    app = Typer()
    app.command()(chat)
    return CliRunner().invoke(app, list(arguments), input=keys)


def test_streamed_answer_is_transformers_own(llama: Path) -> None:
    model, tokenizer = load_answering(llama, device="cpu")
    ids = prompt_ids(tokenizer, QUESTION)
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    pieces = list(answer(model, tokenizer, QUESTION, max_tokens=20))
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert len(pieces) > 1 and text.startswith("".join(pieces))
    assert text.rstrip("\N{REPLACEMENT CHARACTER}") == "".join(pieces)


def test_temperature_draws_from_the_seed(llama: Path) -> None:
    model, tokenizer = load_answering(llama, device="cpu")

    def sampled(seed: int) -> str:
        return "".join(answer(model, tokenizer, QUESTION, max_tokens=12, temperature=1.0, seed=seed))

    assert sampled(1) == sampled(1) != sampled(2)


def test_an_adapter_changes_the_answer(llama: Path, adapter: Path) -> None:
    plain = run("--base", str(llama), "--prompt", "Who pays?", "--max-tokens", "16")
    tuned = run("--base", str(llama), "--adapter", str(adapter), "--prompt", "Who pays?", "--max-tokens", "16")
    assert plain.exit_code == tuned.exit_code == 0, plain.output + tuned.output
    assert plain.output.strip() and plain.output != tuned.output


def test_conversation_goes_on_and_starts_afresh(llama: Path) -> None:
    """The same question again is another conversation, unless it starts afresh."""
    model, tokenizer = load_answering(llama, device="cpu")
    one = "".join(answer(model, tokenizer, [{"role": "user", "content": "Who?"}], max_tokens=4))
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": one}]
    two = "".join(answer(model, tokenizer, [*turns, {"role": "user", "content": "Who?"}], max_tokens=4))
    assert one != two
    result = run("--base", str(llama), "--max-tokens", "4", keys="Who?\nWho?\n/new\n\nWho?\n/quit\n")
    assert result.exit_code == 0
    assert result.output.split("afresh.\n", 1)[1] == f"> {one}\n> {two}\n> > > {one}\n> "
    ended = run("--base", str(llama), keys="")
    assert ended.exit_code == 0 and ended.output.endswith("> \n")


def test_an_adapter_of_another_base_is_refused(llama: Path, adapter: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", seed=9)
    with pytest.raises(ModelError, match="is another one"):
        load_answering(other, adapter)


def test_what_is_no_model_or_adapter_is_named(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a folder"):
        load_answering(tmp_path / "nothing")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_answering(llama, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="missing or damaged"):
        load_answering(llama, tmp_path)


def test_without_chat_template_the_text_goes_on(tmp_path: Path) -> None:
    _, tokenizer = load_answering(tiny_gpt2(tmp_path), device="cpu")
    assert tokenizer.decode(prompt_ids(tokenizer, QUESTION)[0]) == QUESTION[0]["content"]


def test_adapters_without_effect_and_bases_that_write_nothing_are_refused(llama: Path, tmp_path: Path) -> None:
    sha256 = folder_digest(llama)
    noise = torch.Generator().manual_seed(1)

    def exported(name: str, moved: bool = True, **method: Any) -> Path:
        spec = specification(model={"sha256": sha256}, method={"name": name, **method})
        state = initial_state(spec, llama)
        if moved:
            state = {key: t + torch.randn(t.shape, generator=noise) for key, t in state.items()}
        return write_adapter(tmp_path / f"{name}-{moved}", state, {}, spec, llama)

    with pytest.raises(ModelError, match="for FEATURE_EXTRACTION; it writes no text"):
        load_answering(llama, exported("contrastive"))
    with pytest.raises(ModelError, match="for SEQ_CLS; it writes no text"):
        load_answering(llama, exported("classification", labels=["a", "b"]))
    with pytest.raises(ModelError, match="changes nothing: it is as training began"):
        load_answering(llama, exported("sft", moved=False))
    foreign = exported("sft")
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["o_proj"]}))
    with pytest.raises(ModelError, match="has no counterpart in it"):
        load_answering(llama, foreign)
    with pytest.raises(ModelError, match="bert model, which does not write text"):
        load_answering(tiny_bert(tmp_path / "bert"))
