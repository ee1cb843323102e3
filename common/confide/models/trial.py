"""Does a model family work with a run's method? Tried, not looked up: a small model against plain eager attention.

    implementation = attention_for(specification, config, task)     "confide_sdpa" or "eager"

Our attention is taken where the outputs agree with eager attention's, up to the largest length that the run accepts;
else eager attention itself, where the family does without ours (a soft cap, attention sinks, biases of position). What
works with neither is refused: a family whose packed documents see each other, or that cannot recompute activations.
The trial model has the family's own configuration with few layers, a small vocabulary and strong random weights, so
that it takes a moment; its verdict is kept for as long as the process runs.
"""

import copy
import functools
import json
import math
from typing import Any

import torch

from confide.errors import ModelError
from confide.models.arithmetic.attention import IMPLEMENTATION
from confide.runs.specification import Specification

EAGER = "eager"
_VOCABULARY = 512
_TOLERANCE = 1e-3
_PACKING = frozenset({"causal_lm", "masked_lm"})
_DOCUMENTS = (7, 19)
"""Tokens of two packed documents."""
_WINDOWS = (5, 64)
"""Shorter and longer than a document."""
_FAILURES = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    IndexError,
    NotImplementedError,
)
"""What transformers raises for what a family does not support; its words are for its developers."""


def attention_for(specification: Specification, config: Any, task: Any) -> str:
    """The implementation to load the model with. Raises ModelError naming the family and what it cannot do.

    task: the transformers class of the method, such as AutoModelForCausalLM.
    """
    plan = (
        specification.method.name,
        int(specification.method.max_length),
        specification.training.gradient_checkpointing,
    )
    return _verdict(json.dumps(config.to_dict(), sort_keys=True, default=str), plan, _Frozen(config), task)


class _Frozen:
    """A configuration that does not count for the cache: its JSON stands beside it."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=64)
def _verdict(_key: str, plan: tuple[str, int, bool], frozen: _Frozen, task: Any) -> str:
    method, length, checkpointing = plan
    config = frozen.config
    if method == "in_context":
        return _agreeing(config, task, length)
    chosen = _agreeing(config, task, length)
    for implementation in dict.fromkeys([chosen, EAGER]):
        faults = _faults(config, task, implementation, method, checkpointing)
        if not faults:
            return implementation
    raise ModelError(
        f"a {config.model_type} model cannot be trained by method {method!r} here: {faults[0]}; choose another base "
        "model or method"
    )


def _agreeing(config: Any, task: Any, length: int) -> str:
    """Ours where it gives what eager attention gives. Raises ModelError where not even that runs."""
    small = _small(config, task)
    ids, mask = _inputs(small, length)
    try:
        expected = _hidden(_made(small, task, EAGER), ids, mask)
    except _FAILURES as error:
        raise ModelError(
            f"a {config.model_type} model does not run here ({type(error).__name__}), up to method.max_length = "
            f"{length}; choose another base model, or a smaller length"
        ) from error
    if not torch.isfinite(expected).all():
        return EAGER
    try:
        found = _hidden(_made(small, task, IMPLEMENTATION), ids, mask)
    except _FAILURES:
        return EAGER
    return IMPLEMENTATION if _same(found, expected) else EAGER


def _faults(config: Any, task: Any, implementation: str, method: str, checkpointing: bool) -> list[str]:
    """What is wrong with an implementation for a run; empty when all is right."""
    if method in _PACKING:
        for window in _WINDOWS:
            small = _small(config, task)
            if getattr(small.get_text_config(), "sliding_window", None):
                small.get_text_config().sliding_window = window
            try:
                if not _kept_apart(_made(small, task, implementation), method):
                    return ["packed documents would see each other"]
            except _FAILURES as error:
                return [f"it takes no packed documents ({type(error).__name__})"]
    if checkpointing:
        try:
            if not _recomputes(config, task, implementation):
                return ["training.gradient_checkpointing changes its gradients"]
        except _FAILURES as error:
            return [f"it does not support training.gradient_checkpointing ({type(error).__name__})"]
    return []


def _small(config: Any, task: Any) -> Any:
    """The family's configuration with one layer of each kind (at least two), or as it is where that makes no model."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    kinds = getattr(text, "layer_types", None)
    try:
        if kinds:
            text.layer_types = (list(dict.fromkeys(kinds)) * 2)[: max(2, len(set(kinds)))]
        text.num_hidden_layers = len(text.layer_types) if kinds else min(2, int(text.num_hidden_layers))
        _shrink_vocabulary(text)
        with torch.device("meta"):
            task.from_config(small, attn_implementation=EAGER)
    except _FAILURES:
        small = copy.deepcopy(config)
    small.dtype = torch.float32
    return small


def _shrink_vocabulary(text: Any) -> None:
    if int(text.vocab_size) <= _VOCABULARY:
        return
    text.vocab_size = _VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"):
        value = getattr(text, name, None)
        if isinstance(value, list) or (isinstance(value, int) and value >= _VOCABULARY):
            setattr(text, name, 1)


def _made(small: Any, task: Any, implementation: str) -> Any:
    """In evaluation mode, with the same strong weights whatever the implementation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.from_config(copy.deepcopy(small), attn_implementation=implementation, dtype=torch.float32)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    # Scores of some size: with small ones a wrong cap or bias would not be seen.
                    parameter.normal_(0, 1.5 / math.sqrt(parameter.shape[-1]), generator=random)
    model.config.use_cache = False
    return model.eval()


def _inputs(small: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, one of them half as long and filled up on the right."""
    count = int(small.get_text_config().vocab_size)
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(min(10, count - 1), count, (2, max(2, length)), generator=random)
    mask = torch.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    return ids, mask


def _body(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


def _hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states at places that are not filling."""
    with torch.no_grad():
        states: torch.Tensor = _body(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    return states[mask.bool()]


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return False
    scale = float(expected.abs().mean()) + 1e-9
    return float((found - expected).abs().max()) <= _TOLERANCE * scale


def _kept_apart(model: Any, method: str) -> bool:
    """Whether the second of two packed documents is what it is alone, whatever the first one holds."""
    first, second = _DOCUMENTS
    count = int(model.config.get_text_config().vocab_size)
    random = torch.Generator().manual_seed(3)
    lowest = min(10, count - 1)
    one, other = (torch.randint(lowest, count, (1, first), generator=random) for _ in range(2))
    rest = torch.randint(lowest, count, (1, second), generator=random)
    with torch.no_grad():
        alone = _packed(model, method, rest, (second,))
        for before in (one, other):
            both = _packed(model, method, torch.cat([before, rest], dim=1), _DOCUMENTS)
            if not _same(both[:, first:], alone):
                return False
    return True


def _packed(model: Any, method: str, ids: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Hidden states, with the inputs that the method itself would give."""
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    body = _body(model)
    if method == "causal_lm":
        states: torch.Tensor = body(input_ids=ids, position_ids=positions).last_hidden_state
        return states
    from confide.models.pieces import piece_inputs

    pieces = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes, start=1)])[None]
    inputs = piece_inputs(model, {"input_ids": ids, "position_ids": positions, "pieces": pieces})
    made: torch.Tensor = body(**inputs).last_hidden_state
    return made


def _recomputes(config: Any, task: Any, implementation: str) -> bool:
    """Whether gradients with recomputed activations are the gradients without."""
    gradients = []
    for recompute in (False, True):
        model = _made(_small(config, task), task, implementation)
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        ids, mask = _inputs(model.config, 16)
        body = _body(model)
        body(input_ids=ids, attention_mask=mask).last_hidden_state.square().mean().backward()
        gradients.append([p.grad for p in body.parameters() if p.grad is not None])
    plain, recomputed = gradients
    return len(plain) == len(recomputed) and all(map(_same, recomputed, plain))
