"""The next token of one row, and its log-probability.

Drawing: softmax of logits / temperature, cut to the smallest set of tokens whose probabilities reach top_p (nucleus
sampling, Holtzman et al. 2020), from a generator of the row's own, so that rows of a batch do not disturb each other.
"""

import secrets

import torch

_GREEDY = 1e-5
"""A temperature below it takes the likeliest token: dividing by less leaves float32."""
_NUCLEUS = 512
"""Tokens among which a nucleus nearly always lies; else all of them are sorted."""


class Sampler:
    """One row's draws. A temperature of 0, or next to it, takes the likeliest token."""

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self.greedy = temperature < _GREEDY
        self._temperature = temperature
        self._top_p = top_p
        self._random = torch.Generator()
        self._random.manual_seed(secrets.randbits(63) if seed is None else seed)

    def choose(self, logits_V: torch.Tensor) -> int:
        """float32 logits, shape (vocabulary,), -inf for what is not allowed."""
        if self.greedy:
            return int(logits_V.argmax())
        weights = torch.softmax(logits_V.cpu() / self._temperature, dim=-1)
        if self._top_p >= 1:
            return int(torch.multinomial(weights, 1, generator=self._random))
        probabilities, tokens = self._nucleus(weights)
        return int(tokens[torch.multinomial(probabilities, 1, generator=self._random)])

    def _nucleus(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities, tokens = torch.topk(weights, min(_NUCLEUS, len(weights)))
        if float(probabilities.sum()) < self._top_p:
            probabilities, tokens = torch.sort(weights, descending=True)
        before = probabilities.cumsum(0) - probabilities
        kept = int((before < self._top_p).sum().clamp(min=1))
        return probabilities[:kept], tokens[:kept]


def logprobs_of(logits_V: torch.Tensor, token: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """(of this token, [(token, logprob)] of the likeliest), under temperature 1 and before any restriction."""
    logs = torch.log_softmax(logits_V.float(), dim=-1)
    values, tokens = torch.topk(logs, min(alternatives, len(logs)))
    return float(logs[token]), list(zip(tokens.tolist(), values.tolist(), strict=True))
