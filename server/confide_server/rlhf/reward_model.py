"""A trained reward head with the base that it belongs to: what an answer is worth.

The folder that is written and read: reward_head.safetensors ("reward_head.weight", (1, D)) and reward.json, which names
the base by its hash. A head of another base is refused: its numbers would mean nothing, and nobody would see it.

    RewardModel.write(folder, weight, base_sha256=..., pooling="mean", max_length=64, lineage={...})
    scores = RewardModel(folder, base_folder, base_sha256).scores([""], ["a fine wall"])
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confide.errors import ModelError
from confide.files import private_folder, write_atomic
from confide.methods.preference import PairEncoder, answer_rows
from confide.methods.reward import Features
from confide.models.architecture import REWARD_HEAD, load_tokenizer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_DOCUMENT, _WEIGHTS = "reward.json", "reward_head.safetensors"
_ROWS_AT_ONCE = 32


class RewardDocument(BaseModel):
    """reward.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = Field(ge=1, le=1)
    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    pooling: str = Field(pattern="^(mean|last)$")
    max_length: int = Field(ge=8, le=131072)
    lineage: dict[str, Any] = {}
    """What it was trained from: a run's specification, a snapshot, the privacy that was promised."""


class RewardModel:
    """Scores answers. Raises ModelError for a folder that is no reward model, or one of another base."""

    def __init__(self, folder: Path, base: Path, base_sha256: str) -> None:
        """base: the base model's folder, whose hash is `base_sha256`."""
        self.document, self.weight = _read(folder)
        if self.document.base_sha256 != base_sha256:
            raise ModelError(
                f"REWARD_OF_ANOTHER_BASE: the reward model in {folder} was trained on the base "
                f"{self.document.base_sha256[:16]}, and {base_sha256[:16]} was given; give its own base, or train "
                "another reward model"
            )
        self.features = FeatureReader(base, self.document.pooling, self.document.max_length)
        width = self.features.width
        if self.weight.shape != (width,):
            raise ModelError(f"the reward head has {self.weight.size} weights; its base has {width} features")

    @staticmethod
    def write(
        folder: Path, weight: NDArray[np.floating], *, base_sha256: str, pooling: str, max_length: int,
        lineage: Mapping[str, Any],
    ) -> Path:  # fmt: skip
        """weight: (D,), finite."""
        from safetensors.torch import save

        document = RewardDocument(
            version=1, base_sha256=base_sha256, pooling=pooling, max_length=max_length, lineage=dict(lineage)
        )
        tensor = torch.tensor(np.asarray(weight, dtype=np.float32)[None])
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError("the reward head holds NaN or infinity; it is not kept")
        private_folder(folder)
        write_atomic(folder / _WEIGHTS, save({f"{REWARD_HEAD}.weight": tensor}))
        write_atomic(folder / _DOCUMENT, document.model_dump_json(indent=1).encode())
        return folder

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """(N,) rewards. Raises ModelError for NaN: a reward is never silently zero."""
        with np.errstate(invalid="ignore", over="ignore"):
            found: NDArray[np.float64] = self.features.of(prompts, answers).astype(np.float64) @ self.weight
        if not np.isfinite(found).all():
            raise ModelError("REWARD_NOT_FINITE: a reward is NaN or infinite; nothing is made of it")
        return found


class FeatureReader:
    """Features of answers under a base, as method "reward" makes them."""

    def __init__(self, base: Path, pooling: str, max_length: int) -> None:
        import transformers

        tokenizer = load_tokenizer(base)
        self._pad = tokenizer.pad_token_id
        self._encoder = PairEncoder("reward", tokenizer, max_length)
        self._features = Features(pooling)
        self._model: Any = transformers.AutoModel.from_pretrained(
            base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()

    @property
    def width(self) -> int:
        """D."""
        return int(self._model.config.get_text_config().hidden_size)

    def of(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), of length 1; an empty prompt is none."""
        encoded = [
            self._encoder.answer([{"role": "user", "content": prompt}] if prompt else [], answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        # Similar lengths together: little padding.
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number].ids))
        out = np.zeros((len(encoded), self.width), dtype=np.float32)
        with torch.no_grad():
            for start in range(0, len(order), _ROWS_AT_ONCE):
                part = order[start : start + _ROWS_AT_ONCE]
                rows = answer_rows([encoded[number] for number in part], self._pad)
                out[part] = self._features(self._model, rows).numpy()
        return out


def _read(folder: Path) -> tuple[RewardDocument, NDArray[np.float64]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        document = RewardDocument.model_validate_json((folder / _DOCUMENT).read_bytes())
        tensors = load((folder / _WEIGHTS).read_bytes())
    except (OSError, ValidationError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{folder} holds no reward model ({type(error).__name__}); export a run of method reward"
        ) from error
    if set(tensors) != {f"{REWARD_HEAD}.weight"}:
        raise ModelError(
            f"{folder / _WEIGHTS} holds {sorted(tensors)[:3]}; a reward head is {REWARD_HEAD}.weight alone"
        )
    weight = tensors[f"{REWARD_HEAD}.weight"].double().numpy().reshape(-1)
    if not all(map(math.isfinite, weight.tolist())):
        raise ModelError(f"{folder / _WEIGHTS} holds NaN or infinity; train it again")
    return document, weight
