"""How fast the local step is: beside a bare transformers loop, and beside the fastest matrix product of this core.

Both loops take the same batches of the same model with the same optimizer; they take turns in one process, so that
other work on the machine slows both. CPU time of one thread, medians.

    bare: loss = model(input_ids=..., labels=...).loss; loss.backward(); clip; optimizer.step()
    ours: LocalTrainer.contribute with as many local steps, reading and writing the flat model included
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confide import canonical
from confide.methods import base as methods
from confide.models.architecture import load_base, load_tokenizer
from confide.models.arithmetic import linear, precision
from confide.models.arithmetic.linear_kernels import weight_gradient
from confide.models.trainable import build, initial_state, load_trainable
from confide.proto import fleet_pb2
from confide.runs.fields import Record
from confide.runs.specification import Specification
from confide_client.data.datasets import LocalData
from confide_client.training import LocalTrainer
from confide_client.training.draws import Draws
from confide_client.training.loop import step_batches, terms
from confide_client.training.optimizers import make_optimizer

STEPS = 4
"""Optimizer steps of one timed call: few, so that what a call costs beside its steps is not hidden."""


def speed_specification(name: str, **sections: Any) -> Specification:
    """A run of `STEPS` local steps; sections as in a run's TOML."""
    training = {"local_steps": STEPS, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-4}
    document = {
        "version": 1,
        "name": f"speed-{name}",
        "model": {"sha256": "0" * 64},
        "adapter": {"kind": "full"},
        "federation": {"rounds": 1, "data": "shard"},
        "sealing": {"kind": "none"},
        **sections,
        "training": training | sections.get("training", {}),
    }
    return Specification.model_validate_json(canonical.encode(document))


def _slot() -> fleet_pb2.SlotOpen:
    return fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)


class _Ours:
    """The product's local step."""

    def __init__(self, spec: Specification, base: Path, records: Sequence[Record], folder: Path) -> None:
        self._trainer = LocalTrainer(spec, base, node="bench", folder=folder, threads=1, device="cpu")
        self._data = LocalData(train=list(records), evaluation=[])
        self._model = self._trainer.schema.flatten(initial_state(spec, base))
        self.parameters = self._trainer.schema.size

    def __call__(self) -> None:
        self._trainer.contribute(self._model, self._data, _slot())


class _Bare:
    """What one writes with transformers and torch alone, on the batches that the product's step takes."""

    def __init__(self, spec: Specification, base: Path, records: Sequence[Record], *, apart: bool = True) -> None:
        if spec.adapter.kind == "full":
            self._model: Any = load_base(spec, base, torch.float32)
            self._model.config.use_cache = False
        else:
            self._model = build(spec, base)
            load_trainable(self._model, initial_state(spec, base))
        self._model.set_attn_implementation("sdpa")
        self._left_out = set() if apart else {"position_ids"}
        method = methods.create(spec, load_tokenizer(base))
        self._batches = list(step_batches(spec, method, method.prepare(records), Draws(spec, "bench"), _slot(), 0))
        self.tokens = sum(part.inputs["input_ids"].numel() for parts in self._batches for part in parts)
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(spec.training, dict(enumerate(self._trained)))  # type: ignore[arg-type]
        self._spec = spec

    def __call__(self) -> None:
        self._model.train()
        for parts in self._batches:
            for part in parts:
                # transformers shifts labels by itself: ours stand where they are predicted.
                labels = torch.full_like(part.labels, -100)
                labels[:, 1:] = part.labels[:, :-1]
                inputs = {name: tensor for name, tensor in part.inputs.items() if name not in self._left_out}
                with precision.autocast(self._spec, "cpu"):
                    loss = self._model(**inputs, labels=labels).loss * (part.count / terms(parts))
                loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)


def timed(works: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each work, taking turns; the first turn of each is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if repetition:
                taken[name].append(time.process_time() - began)
    return taken


def throughput(
    spec: Specification,
    base: Path,
    records: Sequence[Record],
    folder: Path,
    repetitions: int,
    *,
    apart: bool = True,
) -> dict[str, float]:
    """{"ratio": ours / bare, "ours", "bare": tokens/s}; the ratio is the median of those of neighbouring turns.

    apart: whether the bare loop, too, keeps the documents of a sequence apart. If not, it has no mask to heed.
    """
    bare = _Bare(spec, base, records, apart=apart)
    taken = timed({"bare": bare, "ours": _Ours(spec, base, records, folder)}, repetitions)
    ratios = [theirs / mine for theirs, mine in zip(taken["bare"], taken["ours"], strict=True)]
    speeds = {name: round(bare.tokens / statistics.median(times), 1) for name, times in taken.items()}
    return {"ratio": round(statistics.median(ratios), 4), **speeds}


def matmul_peak(dtype: torch.dtype, sizes: Sequence[int] = (256, 384, 512, 1024, 2048)) -> float:
    """FLOP/s of the best square product of this core: 2 n^3 operations each."""
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        count = max(1, int(2e9 / (2 * size**3)))
        for repetition in range(6):
            began = time.process_time()
            for _ in range(count):
                torch.mm(a, b)
            if repetition:
                best = max(best, count * 2 * size**3 / (time.process_time() - began))
    return best


def products_alone(model: Any, tokens: int, dtype: torch.dtype) -> float:
    """FLOP/s of a model's linear layers, with nothing around them: forward, and both products of backward.

    The most that a step could reach if all else took no time; each product finds its operands in cache, if they fit.
    """
    seconds, operations = 0.0, 0
    shapes = Counter(tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear))
    for (out, inner), count in shapes.items():
        x, weight, gradient = (torch.randn(s).to(dtype) for s in ((tokens, inner), (out, inner), (tokens, out)))
        fits = dtype == torch.bfloat16 and linear.fits(weight.float())
        works = {
            "forward": partial(torch.mm, x, weight.T),
            "to input": partial(torch.mm, gradient, weight),
            "to weight": partial(weight_gradient, gradient, x) if fits else partial(torch.mm, gradient.T, x),
        }
        seconds += count * sum(statistics.median(times) for times in timed(works, 15).values())
        operations += count * 6 * out * inner * tokens
    return operations / seconds


FLOP_FORMULA = (
    "FLOP per token = 6 N + 12 L D T / 2: N parameters in matrix products (the tied head counted once, the embedding "
    "look-up not at all), forward 2 N and backward 4 N; attention scores and sums, L layers of width D over T tokens, "
    "half of them under the causal mask"
)


def flop_per_token(config: Any, parameters: int, length: int) -> float:
    """FLOP_FORMULA. parameters: all of a model with a tied head; its norms are too few to matter."""
    return float(6 * parameters + 6 * config.num_hidden_layers * config.hidden_size * length)


def peak_fraction(
    spec: Specification, base: Path, records: Sequence[Record], folder: Path, repetitions: int
) -> dict[str, Any]:
    """How much of the peak of matrix products the local step reaches, compiled and warmed up, in what is faster here.

    "products_alone": how much of it the model's linear layers reach by themselves, on one micro-batch.
    """
    from confide.models.architecture import load_config

    arithmetic = precision.used(spec)
    dtype = precision.DTYPES[arithmetic]
    ours = _Ours(spec, base, records, folder)
    began = time.process_time()
    ours()
    warm_up = time.process_time() - began
    method = methods.create(spec, load_tokenizer(base))
    batches = step_batches(spec, method, method.prepare(records), Draws(spec, "bench"), _slot(), 0)
    tokens = sum(part.inputs["input_ids"].numel() for parts in batches for part in parts)
    alone: list[float] = []
    fractions, speeds, peaks = [], [], []
    model = load_base(spec, base, torch.float32)
    for _ in range(repetitions):
        peak = matmul_peak(dtype)
        began = time.process_time()
        ours()
        speed = tokens / (time.process_time() - began)
        peaks.append(peak)
        alone.append(products_alone(model, spec.training.micro_batch_size * spec.method.max_length, dtype) / peak)
        speeds.append(speed)
        fractions.append(speed * flop_per_token(load_config(base), ours.parameters, spec.method.max_length) / peak)
    return {
        "fraction": round(float(np.median(fractions)), 4),
        "tokens_per_s": round(statistics.median(speeds), 1),
        "products_alone": round(statistics.median(alone), 4),
        "peak_gflops": round(statistics.median(peaks) / 1e9, 1),
        "warm_up_s": round(warm_up, 1),
        "precision": arithmetic,
        "parameters": ours.parameters,
        "formula": FLOP_FORMULA,
    }
