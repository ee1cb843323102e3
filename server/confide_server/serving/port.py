"""What the endpoint asks of an engine. An engine knows tokens and hashes; aliases, keys and HTTP are not its matter.

    async for delta in engine.generate(Generation(prompt=ids, adapter=sha256, max_tokens=64)): ...

Leaving the iteration early (aclose, cancellation) stops the work; what was written until then has been counted.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from confide.errors import ConfideError

BASE = ""
"""The adapter of who asks the base model itself."""
Finish = Literal["stop", "length"]


class Overloaded(ConfideError):
    """There is no room for one more request now; `retry_after_s` says when there may be."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unanswerable(ConfideError):
    """This engine cannot do what was asked of it: too long, a grammar that is none, an unknown adapter."""

    def __init__(self, message: str, *, param: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.kind = kind


class EngineFailed(ConfideError):
    """The engine broke while it worked on a request."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One text to write.

    prompt: token ids, at least one. adapter: SHA-256 in hex, or BASE. max_tokens >= 1; with `echo` 0 is allowed.
    temperature 0 takes the likeliest token. top_p in (0, 1]. seed: the same request gives the same draws at one batch
    shape; None draws one. logprobs: how many alternatives beside each token's own; None for no logarithms at all.
    schema: a JSON schema (document) that the text obeys; grammar: llguidance's Lark form, in place of it.
    echo: the prompt's own log-probabilities come first. continues: the text goes on where the prompt ends.
    """

    prompt: tuple[int, ...]
    adapter: str = BASE
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: dict[str, Any] | None = None
    grammar: str | None = None
    echo: bool = False
    continues: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms. logprob is None for a prompt's first token. top: (text, logprob), the likeliest first."""

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one step added to a text.

    text may be empty: a character is not whole yet, or a stop text may have begun. tokens: written so far, which is
    what is paid for. finish: with the last delta.
    """

    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    running: int = 0
    waiting: int = 0
    adapters: tuple[str, ...] = field(default_factory=tuple)


class Prompts(Protocol):
    """Text to token ids, as training has it."""

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """A conversation up to where the assistant begins. Raises DataError where the model's template refuses it."""

    def text(self, text: str) -> tuple[int, ...]:
        """A text to go on with, begun as the tokenizer begins texts."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    def plain(self, text: str) -> str:
        """Somebody else's text in which nothing is a mark of the tokenizer's: in a turn it can only be words."""


class Engine(Protocol):
    """A base model with adapters by hash."""

    @property
    def base_sha256(self) -> str:
        """Of the base model's files."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def parameters(self) -> int:
        """Of the base model; 0 where its weights are elsewhere."""

    @property
    def prompts(self) -> Prompts:
        """How text becomes tokens here."""

    async def check(self) -> None:
        """Wait until it answers. Raises EngineFailed, or ModelError where it serves another base."""

    def generate(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Deltas, the last with `finish`. Raises Overloaded, Unanswerable, EngineFailed; at the first step at once."""

    def together(self, longest: int) -> int:
        """How many texts of so many tokens, prompt included, it writes at once; at least one."""

    def load(self) -> Load:
        """Now."""

    async def add_adapter(self, sha256: str, folder: str) -> None:
        """Make an adapter ready under its content's hash. Raises ModelError for one that is unfit."""

    async def remove_adapter(self, sha256: str) -> None:
        """Forget an adapter that nobody asks for any more; requests that run on it end first."""

    async def close(self) -> None:
        """End; whoever waits gets EngineFailed."""


class Embedder(Protocol):
    """Texts to vectors of length 1."""

    @property
    def sha256(self) -> str:
        """Of the model's files."""

    @property
    def dimensions(self) -> int:
        """Of a vector."""

    def count(self, text: str) -> int:
        """The tokens of a text, as they are paid for."""

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """(one vector a text, tokens read). Raises Unanswerable for a text that is too long, Overloaded."""

    async def close(self) -> None:
        """End."""
