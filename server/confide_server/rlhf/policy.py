"""A policy: a base model with perhaps an adapter, asked to write answers, and to say how likely answers are.

policy = Policy(base_folder, adapter=folder)
answers = policy.sample(["Why is lime mortar used?"], count=4, seed=7)
policy.log_probabilities(answers)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from confide.errors import DataError
from confide.methods.preference import Answer, PairEncoder, answer_rows
from confide.models.answering import check_adapter, with_adapter
from confide.models.architecture import load_tokenizer
from confide.models.pretrained import load_pretrained

from confide_server.rlhf.prompted import read_prompts, write

_ROWS_AT_ONCE = 32
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
        model = load_pretrained(transformers.AutoModelForCausalLM, base, getattr(torch, dtype))
        if adapter is not None:
            check_adapter(adapter, base)
            # Merged: it only answers, and every token then costs what the base's does.
            model = with_adapter(model, adapter).merge_and_unload()
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
        found: list[list[Completion]] = []
        at_once = max(1, _ANSWERS_AT_ONCE // count)
        for start in range(0, len(prompts), at_once):
            part = prompts[start : start + at_once]
            texts = iter(self._generate([self._prompt(prompt) for prompt in part], count, sampling))
            found += [[Completion(prompt, *next(texts)) for _ in range(count)] for prompt in part]
        return found

    def _generate(self, prompts: list[list[int]], count: int, sampling: Sampling) -> list[tuple[str, bool]]:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        with torch.no_grad():
            rows = read_prompts(self.model, prompts, pad)
            rows.spread([number for number in range(len(prompts)) for _ in range(count)])
            written = write(
                self.model, rows, most=sampling.max_new_tokens, end=end, temperature=sampling.temperature,
                top_p=sampling.top_p,
            )  # fmt: skip
        return [
            (self.tokenizer.decode(row, skip_special_tokens=True).strip(), not row or row[-1] != end) for row in written
        ]

    def log_probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        """float64 (N,): summed over each answer's tokens, the end token among them."""
        encoded = [
            self._encoder.answer([{"role": "user", "content": prompt}], answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        parts = [torch.zeros(0, dtype=torch.float64)]
        with torch.no_grad():
            for start in range(0, len(encoded), _ROWS_AT_ONCE):
                parts.append(self._likely(encoded[start : start + _ROWS_AT_ONCE]))
        return torch.cat(parts)

    def counted(self, text: str) -> int:
        """Of how many tokens `log_probabilities` is the sum for a text to no prompt: to max_length, with its end."""
        encoded = self._encoder.answer([{"role": "user", "content": ""}], text)
        return len(encoded.ids) - max(1, encoded.start)

    def _likely(self, answers: Sequence[Answer]) -> torch.Tensor:
        """float64 (N,). Without a prompt the first token has nothing to follow from, and does not count."""
        starts = [max(1, one.start) for one in answers]
        prompts = [tuple(one.ids[:start].tolist()) for one, start in zip(answers, starts, strict=True)]
        places = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        pad = self.tokenizer.pad_token_id
        rows = read_prompts(self.model, list(places), pad)
        rows.spread([places[prompt] for prompt in prompts])
        after = answer_rows([Answer(one.ids[start:], 0) for one, start in zip(answers, starts, strict=True)], pad)
        ids, mask, first = after["input_ids"], after["answer_mask"], rows.last[:, None]
        # What is padding comes after everything that counts, so nothing that counts sees it.
        rest = rows.forward(self.model, ids[:, :-1]) if ids.shape[1] > 1 else first[:, :0]
        logits = torch.cat([first, rest], dim=1)[:, : ids.shape[1]]
        log_p = logits.gather(2, ids[:, :, None])[:, :, 0] - torch.logsumexp(logits, dim=-1)
        return (log_p.double() * mask).sum(dim=1)
