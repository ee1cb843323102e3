"""A trained reward head with the base that it belongs to: what an answer is worth.

A head of another base is refused: its numbers would mean nothing, and nobody would see it.

    scores = RewardModel(folder, base_folder, base_sha256).scores([""], ["a fine wall"])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confide.errors import ModelError
from confide.files import sha256_file
from confide.methods.preference import PairEncoder, Turns, answer_rows, conversation
from confide.methods.reward import Features
from confide.models.adapter_hash import ADAPTER_FILE
from confide.models.answering import with_adapter
from confide.models.architecture import load_tokenizer
from confide.models.pretrained import load_pretrained, pooler_names
from confide.models.reward_folder import read_reward
from numpy.typing import NDArray

_ROWS_AT_ONCE = 32


class RewardModel:
    """Scores answers. Raises ModelError for a folder that is no reward model, or one of another base."""

    def __init__(self, folder: Path, base: Path, base_sha256: str) -> None:
        """base: the base model's folder, whose hash is `base_sha256`."""
        self.document, self.weight = read_reward(folder)
        if self.document.base_sha256 != base_sha256:
            raise ModelError(
                f"REWARD_OF_ANOTHER_BASE: the reward model in {folder} was trained on the base "
                f"{self.document.base_sha256[:16]}, and {base_sha256[:16]} was given; give its own base, or train "
                "another reward model"
            )
        adapter = self._adapter(folder)
        self.features = FeatureReader(base, self.document.pooling, self.document.max_length, adapter=adapter)
        width = self.features.width
        if self.weight.shape != (width,):
            raise ModelError(f"the reward head has {self.weight.size} weights; its base has {width} features")

    def _adapter(self, folder: Path) -> Path | None:
        wanted = self.document.adapter_sha256
        if not wanted:
            return None
        path = folder / ADAPTER_FILE
        found = sha256_file(path) if path.is_file() else "none"
        if found != wanted:
            raise ModelError(
                f"REWARD_OF_ANOTHER_ADAPTER: the head in {folder} was trained over the adapter {wanted[:16]}, and "
                f"{found[:16]} is there; export the run again"
            )
        return folder

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """(N,) rewards. Raises ModelError for NaN: a reward is never silently zero.

        A head that was trained on answers by themselves is given them by themselves, whatever was asked.
        """
        if not self.document.reads_prompts:
            prompts = ["" for _ in answers]
        with np.errstate(invalid="ignore", over="ignore"):
            found: NDArray[np.float64] = self.features.of(prompts, answers).astype(np.float64) @ self.weight
        if not np.isfinite(found).all():
            raise ModelError("REWARD_NOT_FINITE: a reward is NaN or infinite; nothing is made of it")
        return found


class FeatureReader:
    """Features of answers under a base, as method "reward" makes them."""

    def __init__(self, base: Path, pooling: str, max_length: int, *, adapter: Path | None = None) -> None:
        """adapter: a folder in PEFT's format that the base reads through; None: the base alone."""
        import transformers

        tokenizer = load_tokenizer(base)
        self._pad = tokenizer.pad_token_id
        self._encoder = PairEncoder("reward", tokenizer, max_length)
        self._features = Features(pooling)
        self._model: Any = load_pretrained(transformers.AutoModel, base, torch.float32, may_lack=pooler_names)
        if adapter is not None:
            self._model = with_adapter(self._model, adapter).eval()

    @property
    def width(self) -> int:
        """D."""
        return int(self._model.config.get_text_config().hidden_size)

    def of(self, prompts: Sequence[str | Turns], answers: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), of length 1. prompts: one turn's text, or turns; an empty one is none."""
        encoded = [
            self._encoder.answer(conversation(prompt, "user", "prompt"), answer)
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
