"""One answer in the making: what was asked, what is written, and who waits for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from confide_server.serving.engines.grammar import Grammar
from confide_server.serving.engines.sampling import Sampler, logprobs_of
from confide_server.serving.engines.text_stream import TextStream
from confide_server.serving.port import Delta, Finish, Generation, TokenLogprob

Deliver = Callable[["Delta | Exception"], None]


@dataclass(eq=False)
class Row:
    """Lives in the engine's thread; `cancelled` is set from outside."""

    generation: Generation
    deliver: Deliver
    text: TextStream
    sampler: Sampler
    grammar: Grammar | None
    written: int = 0
    last: int = 0
    """The newest token, which the next step reads."""
    cancelled: bool = False
    done: bool = False
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @classmethod
    def of(cls, generation: Generation, deliver: Deliver, tokenizer: Any, grammar: Grammar | None) -> "Row":
        """A row that has written nothing."""
        before = generation.prompt if generation.continues else ()
        text = TextStream(tokenizer, generation.stop, before)
        sampler = Sampler(generation.temperature, generation.top_p, generation.seed)
        return cls(generation, deliver, text, sampler, grammar)

    @property
    def most(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.generation.prompt) + self.generation.max_tokens

    @property
    def plainly_greedy(self) -> bool:
        """Whether the likeliest token is all that is needed of the logits."""
        return self.sampler.greedy and self.grammar is None and self.generation.logprobs is None

    def choose(self, logits_V: torch.Tensor, tokenizer: Any) -> tuple[int, tuple[TokenLogprob, ...]]:
        """The next token, and its log-probability where it was asked for."""
        allowed = logits_V if self.grammar is None else self.grammar.restrict(logits_V)
        token = self.sampler.choose(allowed)
        if self.generation.logprobs is None:
            return token, ()
        own, top = logprobs_of(logits_V, token, self.generation.logprobs)
        return token, (named(tokenizer, token, own, top),)

    def take(self, token: int, ends: frozenset[int], logprobs: tuple[TokenLogprob, ...]) -> None:
        """Write a token and tell who waits; `done` when it was the last."""
        self.written += 1
        self.last = token
        finish: Finish | None = None
        if token in ends:
            text, finish, logprobs = self.text.end(), "stop", ()
        else:
            text = self.text.push(token)
            ended = self.grammar is not None and self.grammar.take(token)
            if self.text.stopped:
                finish = "stop"
            elif ended or self.written >= self.generation.max_tokens:
                text += self.text.end()
                finish = "stop" if ended or self.text.stopped else "length"
        self.finish(Delta(text, self.written, self._with_prompt(logprobs), finish))

    def end_of_prompt(self) -> None:
        """Nothing is to be written: only the prompt's log-probabilities were asked for."""
        self.finish(Delta("", 0, self._with_prompt(()), "length"))

    def finish(self, delta: Delta) -> None:
        """Tell who waits."""
        self.done = delta.finish is not None
        self.deliver(delta)

    def _with_prompt(self, logprobs: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
        prompt, self.prompt_logprobs = tuple(self.prompt_logprobs), []
        return prompt + logprobs


def named(tokenizer: Any, token: int, own: float | None, top: list[tuple[int, float]]) -> TokenLogprob:
    """A token's log-probability with texts in place of numbers."""
    return TokenLogprob(_text(tokenizer, token), own, tuple((_text(tokenizer, one), value) for one, value in top))


def _text(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text
