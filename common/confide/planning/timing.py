"""How fast this machine trains a run: a few real steps of its shape on made-up records, never on anyone's.

Records of random tokens, as long as the run allows, go through the run's own method, model and backward pass. So the
figures are upper bounds for shorter records, follow from no data, and may be told.

    speed = time_model(specification, model, method, tokenizer)
    speed.round_s(specification, evaluation_records=40)
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from confide.methods.base import Example, Method, create
from confide.models.architecture import load_tokenizer
from confide.models.arithmetic import precision
from confide.models.trainable import build, trainable_tensors
from confide.runs.deadline import Speed
from confide.runs.fields import Record
from confide.runs.specification import Specification

PATIENCE_S = 2.0
"""A machine on which a micro-batch takes longer is timed on one record, once, after a short one."""
_FORWARD_SHARE = 0.5
"""Of a record's training: at most so much is the forward pass, which is all that evaluation takes."""


def time_base(specification: Specification, base: Path) -> Speed:
    """Load a base model on this machine and time the run on it. Raises ModelError or DataError."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(base)
    return time_model(specification, build(specification, base, device), create(specification, tokenizer), tokenizer)


def time_model(specification: Specification, model: Any, method: Method, tokenizer: Any) -> Speed:
    """On a model as `build` made it; its trainable values, gradients and mode are as before afterwards.

    Raises DataError when no record of this shape can be learned from.
    """
    training = specification.training
    at_once = training.batch_size if method.whole_batch else min(training.micro_batch_size, training.batch_size)
    examples = list(method.prepare(made_up(specification, tokenizer, at_once)))[:at_once]
    fewest = min(2 if method.whole_batch else 1, len(examples))
    device = next(model.parameters()).device
    was_training = model.training
    if training.local_steps == 0:
        evaluation_s = _timed(device, lambda: method.evaluate(model, examples[:1], examples, 1))
        model.train(was_training)
        return Speed(step_s=0.0, evaluation_s=evaluation_s)
    parameters = list(trainable_tensors(model).values())
    model.train()
    try:
        brief = made_up(specification, tokenizer, fewest, tokens=math.ceil(specification.method.max_length / 8))
        short = list(method.prepare(brief))[:fewest]
        record_s = _record_s(device, _work(specification, model, method), short, examples, fewest)
        optimizer_s = _timed(device, lambda: _optimizer_step(specification, parameters))
    finally:
        for parameter in parameters:
            parameter.grad = None
        model.train(was_training)
    step_s = training.batch_size * record_s + optimizer_s
    return Speed(step_s=step_s, evaluation_s=_FORWARD_SHARE * record_s)


def _record_s(
    device: torch.device,
    work: Callable[[Sequence[Example]], None],
    short: list[Example],
    examples: list[Example],
    fewest: int,
) -> float:
    """Of one record, forward and backward: in a micro-batch where that is quick, else of the fewest that can be."""
    work(short)  # pages weights in and prepares kernels
    few = examples[:fewest]
    record_s = _timed(device, lambda: work(few)) / len(few)
    if record_s * len(examples) > PATIENCE_S:
        return record_s
    work(examples)
    return _timed(device, lambda: work(examples)) / len(examples)


def _work(specification: Specification, model: Any, method: Method) -> Callable[[Sequence[Example]], None]:
    device = next(model.parameters()).device
    if specification.privacy.unit in ("record", "user"):
        return _private_work(specification, model, method)

    def work(examples: Sequence[Example]) -> None:
        with precision.autocast(specification, device):
            batch = method.collate(examples, 0).to(device)
            loss = method.loss(model, batch) / max(1, batch.count)
        loss.backward()  # type: ignore[no-untyped-call]

    return work


def _private_work(specification: Specification, model: Any, method: Method) -> Callable[[Sequence[Example]], None]:
    """Gradients of single records, clipped, with noise: what a private step does."""
    from confide.privacy.dpsgd import ClippedGaussian, RecordLoss, private_gradients
    from confide.privacy.noise.randomness import SecureRandom
    from confide.privacy.per_sample import PerSampleGradients

    device = next(model.parameters()).device
    loss = RecordLoss(model, method, context=lambda: precision.autocast(specification, device))
    mechanism = ClippedGaussian(clip=1.0, noise_multiplier=1.0, expected_batch=1.0)

    def work(examples: Sequence[Example]) -> None:
        with PerSampleGradients(model) as per_sample:
            for parameter in per_sample.parameters:
                parameter.grad = None
            private_gradients(
                per_sample,
                [[example] for example in examples],
                loss=loss,
                mechanism=mechanism,
                micro_batch_size=len(examples),
                random=SecureRandom(),
            )

    return work


def _optimizer_step(specification: Specification, parameters: list[torch.nn.Parameter]) -> None:
    """At a learning rate of 0, which leaves every finite parameter as it is; what is not finite is put back."""
    kept = [parameter.detach().clone() for parameter in parameters]
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    kinds[specification.training.optimizer](parameters, lr=0.0).step()
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)


def _timed(device: torch.device, work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def made_up(specification: Specification, tokenizer: Any, count: int, tokens: int | None = None) -> list[Record]:
    """So many records of random tokens, about `tokens` each; None: each of which fills method.max_length."""
    random, method = np.random.Generator(np.random.PCG64(0)), specification.method
    special = set(tokenizer.all_special_ids)
    usual = np.asarray([number for number in range(len(tokenizer)) if number not in special])

    def text(number: int) -> str:
        return str(tokenizer.decode(random.choice(usual, max(1, number)).tolist()))

    whole = 2 * method.max_length if tokens is None else tokens
    if method.name == "in_context":
        short = math.ceil(method.max_length / (method.shots + 1) / 2)
        outputs = method.labels or (text(4),)
        return [{"input": text(short), "output": outputs[n % len(outputs)]} for n in range(max(count, method.shots))]
    if method.name == "classification":
        return [{"text": text(whole), "label": method.labels[n % len(method.labels)]} for n in range(count)]
    if method.name == "contrastive":
        return [{"anchor": text(whole), "positive": text(whole)} for _ in range(count)]
    if method.name in ("reward", "dpo"):
        return [{"prompt": text(1), "chosen": text(whole), "rejected": text(whole)} for _ in range(count)]
    if method.name == "sft":
        return [{"prompt": text(1), "completion": text(whole)} for _ in range(count)]
    return [{"text": text(whole)} for _ in range(count)]
