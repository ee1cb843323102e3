"""A reward head as files: reward_head.safetensors ("reward_head.weight", (1, D)) and reward.json, which names its base.

A head that was trained with LoRA has its adapter beside it, in PEFT's format, which reward.json names by hash.

write_reward(folder, weight, base_sha256=..., pooling="mean", max_length=64, lineage={...})
document, weight = read_reward(folder)
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from confide.errors import ModelError
from confide.files import private_folder, write_atomic
from confide.models.architecture import REWARD_HEAD

DOCUMENT, WEIGHTS = "reward.json", "reward_head.safetensors"


class RewardDocument(BaseModel):
    """reward.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = Field(ge=1, le=1)
    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    pooling: str = Field(pattern="^(mean|last)$")
    max_length: int = Field(ge=8, le=131072)
    adapter_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of adapter_model.safetensors in the same folder, through which the base reads; empty: the base alone."""
    reads_prompts: bool = True
    """Whether answers are read after their prompts; false: by themselves, where nothing else was compared."""
    lineage: dict[str, Any] = {}
    """What it was trained from: a run's specification, a snapshot, the privacy that was promised."""


def write_reward(
    folder: Path, weight: NDArray[np.floating], *, base_sha256: str, pooling: str, max_length: int,
    lineage: Mapping[str, Any], adapter_sha256: str = "", reads_prompts: bool = True,
) -> Path:  # fmt: skip
    """weight: (D,), finite, else ModelError. Files of the same names are replaced."""
    document = RewardDocument(
        version=1, base_sha256=base_sha256, pooling=pooling, max_length=max_length, adapter_sha256=adapter_sha256,
        reads_prompts=reads_prompts, lineage=dict(lineage),
    )  # fmt: skip
    tensor = torch.tensor(np.asarray(weight, dtype=np.float32).reshape(1, -1))
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError("the reward head holds NaN or infinity; it is not kept")
    private_folder(folder)
    write_atomic(folder / WEIGHTS, save({f"{REWARD_HEAD}.weight": tensor}))
    write_atomic(folder / DOCUMENT, document.model_dump_json(indent=1).encode())
    return folder


def read_reward(folder: Path) -> tuple[RewardDocument, NDArray[np.float64]]:
    """(document, (D,) weights). Raises ModelError for a folder that is no reward model."""
    try:
        document = RewardDocument.model_validate_json((folder / DOCUMENT).read_bytes())
        tensors = load((folder / WEIGHTS).read_bytes())
    except (OSError, ValidationError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{folder} holds no reward model ({type(error).__name__}); export a run of method reward"
        ) from error
    if set(tensors) != {f"{REWARD_HEAD}.weight"}:
        raise ModelError(f"{folder / WEIGHTS} holds {sorted(tensors)[:3]}; a reward head is one tensor")
    weight: NDArray[np.float64] = tensors[f"{REWARD_HEAD}.weight"].double().numpy().reshape(-1)
    if not all(map(math.isfinite, weight.tolist())):
        raise ModelError(f"{folder / WEIGHTS} holds NaN or infinity; train it again")
    return document, weight
