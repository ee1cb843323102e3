"""Answers in OpenAI's form."""

import base64
import secrets
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confide_server.serving.port import Delta, Finish, TokenLogprob

PROSE = "unverified_prose"
"""Confide's own field of a message."""


@dataclass
class Choice:
    """One of the texts of an answer while it comes."""

    index: int
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: int = 0
    finish: Finish | None = None

    def take(self, delta: Delta) -> None:
        """Add what came."""
        self.text.append(delta.text)
        self.logprobs += delta.logprobs
        self.tokens, self.finish = delta.tokens, delta.finish


@dataclass(frozen=True)
class Head:
    """What every part of one answer says of itself."""

    kind: str
    """chat | completion"""
    model: str
    fingerprint: str
    """Of what computed it: base and adapter by content hash."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def document(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """A whole answer, or one chunk."""
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        found = {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        return found if usage is None else {**found, "usage": usage}

    @property
    def chunk_kind(self) -> str:
        """OpenAI's name of a stream's parts."""
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    @property
    def whole_kind(self) -> str:
        """OpenAI's name of a whole answer."""
        return "chat.completion" if self.kind == "chat" else "text_completion"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """What was read and written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_choice(choice: Choice, annotations: Sequence[dict[str, Any]] | None = None, prose: str = "") -> dict[str, Any]:
    """A finished answer of the assistant. prose: in a model's own words, unverified, beside the answer."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
    if annotations is not None:
        message["annotations"] = list(annotations)
    if prose:
        message[PROSE] = prose
    return {
        "index": choice.index,
        "message": message,
        "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": choice.finish,
    }


def chat_chunk(index: int, delta: Delta | None) -> dict[str, Any]:
    """A part of an answer; None for the one that begins it."""
    if delta is None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    return {
        "index": index,
        "delta": {"content": delta.text} if delta.text else {},
        "logprobs": chat_logprobs(delta.logprobs) if delta.logprobs else None,
        "finish_reason": delta.finish,
    }


def chat_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's form for chat."""
    items = [
        {**_token(one.text, one.logprob), "top_logprobs": [_token(text, value) for text, value in one.top]}
        for one in found
    ]
    return {"content": items, "refusal": None}


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    whole = "\N{REPLACEMENT CHARACTER}" not in text  # else a part of a character, whose bytes the text does not say
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def text_choice(choice: Choice, before: str = "") -> dict[str, Any]:
    """A finished text; `before`: the prompt, where it was to be echoed."""
    return {
        "index": choice.index,
        "text": before + "".join(choice.text),
        "logprobs": text_logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": choice.finish,
    }


def text_chunk(index: int, delta: Delta, begin: int = 0) -> dict[str, Any]:
    """A part of a text; begin: where in the whole its first token with a log-probability begins."""
    return {
        "index": index,
        "text": delta.text,
        "logprobs": text_logprobs(delta.logprobs, begin) if delta.logprobs else None,
        "finish_reason": delta.finish,
    }


def text_logprobs(found: Sequence[TokenLogprob], begin: int = 0) -> dict[str, Any]:
    """OpenAI's form for completions. Each token's own stands among the alternatives; offsets are counted from begin."""
    offsets, end = [], begin
    for one in found:
        offsets.append(end)
        end += len(one.text)
    return {
        "tokens": [one.text for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [None if one.logprob is None else dict([*one.top, (one.text, one.logprob)]) for one in found],
        "text_offset": offsets,
    }


def embeddings(model: str, vectors: list[list[float]], tokens: int, *, packed: bool) -> dict[str, Any]:
    """One vector a text; packed: little-endian float32 in base64."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": place, "embedding": _packed(vector) if packed else vector}
            for place, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
