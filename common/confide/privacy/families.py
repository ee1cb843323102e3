"""Model families whose per-record gradients were compared with brute force; every other one is refused.

A library may compute a wrong per-record gradient without an error (an embedding of positions that is shared over
the batch, a recomputed activation, a parameter that two modules own). Clipping would then bound the wrong vector
and the claimed epsilon would be false. So the set is closed: tests/unit/test_dpsgd_families.py holds each entry,
with tied and untied embeddings, LoRA and full, against the gradient of a batch of one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from confide.errors import ModelError


@dataclass(frozen=True)
class Family:
    """One architecture, by transformers' `model_type`.

    explicit: inputs that the architecture would otherwise make once for the whole batch, and that are therefore
        given to it record by record.
    full: whether training every parameter is offered; otherwise LoRA and heads only.
    """

    model_type: str
    explicit: tuple[str, ...] = ()
    full: bool = True


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("smollm3"),
        Family("gemma3_text", full=False),
        Family("gpt2", explicit=("position_ids",)),
        Family("gpt_neox"),
        Family("bert", explicit=("position_ids", "token_type_ids")),
        Family("distilbert", explicit=("position_ids",)),
    )
}


def family_of(model: nn.Module) -> Family:
    """The model's family. Raises ModelError for one that was not tested."""
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return family_named(model_type)


def check_base(folder: Path) -> None:
    """Raise ModelError unless the model in a folder is of a tested family, by its configuration alone."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError("the base model's config.json cannot be read; add the model again") from error
    family_named(str(config.get("model_type")) if isinstance(config, dict) else "unknown")


def family_named(model_type: str) -> Family:
    """A family by `model_type`. Raises ModelError for one that was not tested."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise ModelError(
            f"per-record gradients of a {model_type!r} model were never compared with brute force, so its privacy "
            f'could not be promised; choose one of {", ".join(sorted(FAMILIES))}, or privacy.unit = "none"'
        )
    return family


def check_full(family: Family, *, full: bool) -> None:
    """Raise ModelError when all parameters are to be trained and the family does not offer it."""
    if full and not family.full:
        raise ModelError(
            f"training all parameters of a {family.model_type!r} model is not offered under privacy (its embedding "
            'layer scales by a buffer, which the per-record hooks do not support); use adapter.kind = "lora"'
        )


def check_trainable(model: nn.Module) -> Family:
    """The model's family, if this very model can be trained privately. Raises ModelError naming what is in the way."""
    family = family_of(model)
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ModelError(
            "gradient checkpointing breaks per-record gradients without an error; under privacy.unit record or user "
            "set training.gradient_checkpointing = false and a smaller micro_batch_size"
        )
    trained_embedding = any(
        parameter.requires_grad
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    )
    check_full(family, full=trained_embedding)
    return family


def explicit_inputs(family: Family) -> Callable[..., Any]:
    """A forward pre-hook (with keyword arguments) that gives each record its own positions and token types."""

    def give(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        ids_BT = kwargs.get("input_ids", args[0] if args else None)
        if ids_BT is None:
            raise ModelError("under privacy the model is called with input_ids, shape (records, tokens)")
        made = {}
        if "position_ids" in family.explicit and kwargs.get("position_ids") is None:
            made["position_ids"] = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape)
        if "token_type_ids" in family.explicit and kwargs.get("token_type_ids") is None:
            made["token_type_ids"] = torch.zeros_like(ids_BT)
        return args, kwargs | made

    return give
