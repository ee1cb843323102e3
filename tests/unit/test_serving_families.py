"""Every family that the endpoint takes answers in a shared batch as it does alone; the rest is refused by name."""

import asyncio
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from confide.errors import ModelError
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.port import Generation

from tests.families import CAUSAL, make

REFUSED = dict.fromkeys(("gemma2", "gpt_neo", "gptj", "codegen", "bloom", "gpt_oss", "mamba"), "only sdpa is served")
REFUSED["recurrent_gemma"] = "one answer would leak into another"
QUICK = ("llama", "gpt2", "mistral", "qwen3_next", "bloom", "recurrent_gemma")
PROMPTS = ((5, 9, 30, 7, 8, 90, 41, 20, 66, 31, 12, 5, 5, 9, 100, 33, 21, 54, 70, 80, 11), (7, 8), (90, 41, 20, 66))


def strong(folder: Path) -> None:
    """Weights under which answers vary."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)


async def logprobs(engine: LocalEngine, prompt: tuple[int, ...], wait_s: float) -> list[float]:
    await asyncio.sleep(wait_s)
    asked = Generation(prompt=prompt, max_tokens=8, logprobs=0)
    return [one.logprob or 0.0 async for delta in engine.generate(asked) for one in delta.logprobs]


def check(folder: Path, name: str) -> None:
    make(folder, name)
    strong(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that a family would have on a GPU
        if name in REFUSED:
            with pytest.raises(ModelError, match=REFUSED[name]):
                AdaptedModel(folder, "cpu")
            return
        engine = LocalEngine(AdaptedModel(folder, "cpu"), Room(rows=4, tokens=1024)).start()

    async def both() -> tuple[list[list[float]], list[list[float]]]:
        apart = [await logprobs(engine, prompt, 0.0) for prompt in PROMPTS]
        together = await asyncio.gather(*(logprobs(engine, p, 0.01 * place) for place, p in enumerate(PROMPTS)))
        await engine.close()
        return apart, list(together)

    apart, together = asyncio.run(both())
    for one, other in zip(apart, together, strict=True):
        assert one == pytest.approx(other, abs=2e-3), name
    assert all(apart)


@pytest.mark.parametrize("name", QUICK)
def test_a_family_batches_or_is_refused(tmp_path: Path, name: str) -> None:
    check(tmp_path, name)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(CAUSAL) - set(QUICK)))
def test_every_family_batches_or_is_refused(tmp_path: Path, name: str) -> None:
    check(tmp_path, name)
