"""A policy: a base model with perhaps an adapter, asked to write answers, and to say how likely answers are.

policy = Policy(base_folder, adapter=folder)
answers = policy.sample(["Why is lime mortar used?"], count=4, seed=7)
policy.log_probabilities(answers)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from confide.errors import DataError
from confide.methods.preference import PairEncoder, answer_rows
from confide.models.architecture import load_tokenizer

_ROWS_AT_ONCE = 16
"""Of log-probabilities, whose logits of every token are in memory at once."""
_ANSWERS_AT_ONCE = 64
"""Of generation, where each step reads all weights once, whatever the number of rows."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn. temperature 0: the likeliest token each time, and one answer a prompt."""

    max_new_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One answer. clipped: it was cut off by max_new_tokens."""

    prompt: str
    text: str
    clipped: bool


class Policy:
    """Base and adapter in this process' memory."""

    def __init__(
        self, base: Path, *, adapter: Path | None = None, max_length: int = 256, dtype: str = "float32"
    ) -> None:
        """adapter: a folder in PEFT's format; None: the base alone. dtype: float32 where bfloat16 is slow."""
        import transformers

        self.tokenizer = load_tokenizer(base)
        self.base = base
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        if adapter is not None:
            import peft

            # Merged: it only answers, and every token then costs what the base's does.
            model = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=False).merge_and_unload()
        self.model = model.eval()
        self._encoder = PairEncoder("dpo", self.tokenizer, max_length)

    def _prompt(self, prompt: str) -> list[int]:
        ids = self._encoder.answer([{"role": "user", "content": prompt}], "")
        return [int(token) for token in ids.ids[: ids.start]]

    def sample(self, prompts: Sequence[str], *, count: int, sampling: Sampling) -> list[list[Completion]]:
        """`count` answers to each prompt, in order. The same seed, prompts and machine give the same answers."""
        if not prompts or any(not prompt.strip() for prompt in prompts):
            raise DataError("there is no prompt, or an empty one; give each some text")
        torch.manual_seed(sampling.seed)
        rows = [(number, self._prompt(prompt)) for number, prompt in enumerate(prompts) for _ in range(count)]
        found: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, len(rows), _ANSWERS_AT_ONCE):
            part = rows[start : start + _ANSWERS_AT_ONCE]
            for (number, _), completion in zip(part, self._generate([ids for _, ids in part], sampling), strict=True):
                found[number].append(Completion(prompts[number], *completion))
        return found

    def _generate(self, rows: list[list[int]], sampling: Sampling) -> list[tuple[str, bool]]:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        width = max(map(len, rows))
        # On the left, so that all go on from the last column.
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        drawn: dict[str, float | bool] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            drawn |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_new_tokens, pad_token_id=pad,
                eos_token_id=end, use_cache=True, **drawn,
            )  # fmt: skip
        made = []
        for row in out[:, width:].tolist():
            ended = end in row
            kept = row[: row.index(end)] if ended else row
            made.append((self.tokenizer.decode(kept, skip_special_tokens=True).strip(), not ended))
        return made

    def log_probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        """float64 (N,): summed over each answer's tokens, the end token among them."""
        encoded = [
            self._encoder.answer([{"role": "user", "content": prompt}], answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        parts = []
        with torch.no_grad():
            for start in range(0, len(encoded), _ROWS_AT_ONCE):
                inputs = answer_rows(encoded[start : start + _ROWS_AT_ONCE], self.tokenizer.pad_token_id)
                mask = inputs["answer_mask"]
                # Of the vocabulary's scores only those before answer tokens: they are most of the work and the memory.
                kept = min(mask.shape[1], mask.shape[1] - int(mask.int().argmax(dim=1).min()) + 1)
                logits = self.model(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=kept
                ).logits[:, :-1]
                chosen = logits.gather(2, inputs["input_ids"][:, 1 - kept :, None])[:, :, 0]
                log_p = (chosen - torch.logsumexp(logits, dim=-1)).double()
                parts.append((log_p * mask[:, 1 - kept :]).sum(dim=1))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
