"""What an encoder is given so that no packed document sees another."""

import inspect
from typing import Any

import torch


def piece_inputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Piece numbers become an additive mask (B, 1, T, T): 0 inside a piece, the dtype's lowest value elsewhere."""
    pieces = inputs["pieces"]
    same = pieces[:, :, None] == pieces[:, None, :]
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(same.shape, dtype=dtype, device=pieces.device).masked_fill_(~same, torch.finfo(dtype).min)
    prepared = {"input_ids": inputs["input_ids"], "attention_mask": mask[:, None]}
    body = getattr(model, model.base_model_prefix)
    if "position_ids" in inspect.signature(body.forward).parameters:
        prepared["position_ids"] = inputs["position_ids"] + _first_position(body)
    return prepared


def _first_position(body: Any) -> int:
    """RoBERTa counts positions from its padding index + 1; everyone else from 0."""
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1
