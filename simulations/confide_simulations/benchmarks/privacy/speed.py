"""Speed and memory of the private local step beside the plain one: same model, adapter, records and micro-batches.

Steps of both kinds take turns in one process, so that a busy machine slows both. A private step takes the gradient of
every record, clips it, adds noise from the CSPRNG and applies the optimizer; a plain step does the last alone.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from confide.methods.base import micro_batches
from confide.privacy.dpsgd import ClippedGaussian, RecordLoss, private_gradients
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.per_sample import PerSampleGradients
from confide.runs.specification import Specification

from confide_simulations.benchmarks.meta import peak_mib

Timings = dict[str, Any]
Records = list[Mapping[str, Any]]


def save_model(base: Path, *, width: int, layers: int, tokenizer_from: Path, heads: int = 8) -> int:
    """A Llama of random weights with an existing tokenizer, in `base`; returns its number of parameters."""
    import transformers

    transformers.AutoTokenizer.from_pretrained(tokenizer_from, trust_remote_code=False).save_pretrained(base)
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(base)
    return sum(parameter.numel() for parameter in model.parameters())


class _Steps:
    """One model and optimizer, stepped plainly or privately."""

    def __init__(self, spec: Specification, base: Path, records: Records) -> None:
        from confide.methods import base as methods
        from confide.models.architecture import load_tokenizer
        from confide.models.trainable import build

        self.spec = spec
        self.model: Any = build(spec, base)
        self.method = methods.create(spec, load_tokenizer(base))
        self.examples = sorted(self.method.prepare(records), key=self.method.length)
        self.tokens = sum(self.method.length(example) for example in self.examples)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.size = spec.training.micro_batch_size

    def plain(self) -> None:
        self.model.train()
        count = 0
        for part in micro_batches(self.method, self.examples, self.size):
            batch = self.method.collate(part, seed=0)
            count += batch.count
            (self.method.loss(self.model, batch) / batch.count).backward()  # type: ignore[no-untyped-call]
        self._apply()

    def private(self, per_sample: PerSampleGradients, random: SecureRandom) -> None:
        mechanism = ClippedGaussian(clip=0.5, noise_multiplier=1.0, expected_batch=len(self.examples))
        private_gradients(
            per_sample,
            [[example] for example in self.examples],
            loss=RecordLoss(self.model, self.method),
            mechanism=mechanism,
            micro_batch_size=self.size,
            random=random,
        )
        self._apply()

    def _apply(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure_speed(spec: Specification, base: Path, records: Records, repetitions: int) -> Timings:
    """{"tokens_per_s": {plain, private}, "peak_mib": {plain, private}}: medians of CPU time, steps taking turns."""
    plain, private = _Steps(spec, base, records), _Steps(spec, base, records)
    random = SecureRandom()
    times: dict[str, list[float]] = {"plain": [], "private": []}
    with PerSampleGradients(private.model) as per_sample:
        for repetition in range(repetitions + 1):
            for name, step in (("plain", plain.plain), ("private", lambda: private.private(per_sample, random))):
                began = time.process_time()
                step()
                if repetition:  # the first of each finds cold caches
                    times[name].append(time.process_time() - began)
        peaks = {
            "plain": peak_mib(plain.plain),
            "private": peak_mib(lambda: private.private(per_sample, random)),
        }
    speed = {name: round(plain.tokens / statistics.median(taken), 1) for name, taken in times.items()}
    return {"tokens_per_s": speed, "peak_mib": peaks}
