"""What an upstream says, read with suspicion: streams of chunks, lists of models, refusals.

Whatever comes is an answer or a named failure.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import httpx
from confide.text import line

from confide_server.serving.port import Delta, EngineFailed, Finish, Overloaded, TokenLogprob, Unanswerable

_MAX_LINE_BYTES = 1 << 22


@dataclass(frozen=True)
class ServedModel:
    """What the upstream says of one. folder: of an adapter, "" where it says none; context: 0 where it says none."""

    folder: str
    context: int


def served_model(card: Mapping[str, Any]) -> ServedModel:
    """Of one entry of /v1/models."""
    folder, context = card.get("root"), card.get("max_model_len")
    is_adapter = card.get("parent") is not None
    return ServedModel(
        folder if is_adapter and isinstance(folder, str) else "",
        context if type(context) is int and context > 0 else 0,
    )


async def events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The documents of a stream of server-sent events. Raises EngineFailed for what is none."""
    held = b""
    async for piece in response.aiter_bytes():
        held += piece
        *lines, held = held.split(b"\n")
        if len(held) > _MAX_LINE_BYTES:
            raise EngineFailed("the engine behind this server sent a line without end")
        for one in lines:
            data = one.strip()
            if not data.startswith(b"data:"):
                continue
            data = data[5:].strip()
            if data == b"[DONE]":
                return
            yield document_of(data)


def document_of(data: bytes) -> dict[str, Any]:
    """One chunk. Raises EngineFailed for what is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("choices", []), list):
        raise EngineFailed("the engine behind this server sent what is no chunk")
    if not all(isinstance(choice, dict) for choice in document.get("choices", [])):
        raise EngineFailed("the engine behind this server sent what is no chunk")
    return document


def tokens_written(document: Mapping[str, Any], before: int) -> int:
    """Written until now: as the chunk says, else at least one more for each text."""
    said = document.get("usage")
    if isinstance(said, dict) and isinstance(said.get("completion_tokens"), int):
        return max(before, int(said["completion_tokens"]))
    return before + sum(1 for choice in document.get("choices", []) if choice.get("text"))


def finish_of(said: object) -> Finish | None:
    """Why it ended; None while it goes on. Raises EngineFailed where it was given up."""
    if said is None:
        return None
    if said in ("abort", "error"):
        raise EngineFailed("the engine behind this server gave up in mid-answer")
    return said if said in get_args(Finish) else "stop"  # type: ignore[return-value]  # narrowed by the check


def logprobs_of(found: object) -> tuple[TokenLogprob, ...]:
    """Of one choice. Raises EngineFailed for what are none."""
    if not isinstance(found, dict):
        return ()
    tokens, values, tops = (found.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    try:
        return tuple(
            TokenLogprob(
                str(token),
                None if value is None else float(value),
                tuple(sorted(((str(t), float(v)) for t, v in (top or {}).items()), key=lambda one: -one[1])),
            )
            for token, value, top in zip(tokens, values, tops or [None] * len(tokens), strict=True)
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise EngineFailed("the engine behind this server sent log-probabilities that are none") from error


def logprob_values(deltas: Sequence[Delta]) -> list[float]:
    """Of an answer's tokens in order, without those that have none."""
    return [one.logprob for delta in deltas for one in delta.logprobs if one.logprob is not None]


async def beginning(response: httpx.Response) -> bytes:
    """The first 64 KiB of a body and little more."""
    held = b""
    async for piece in response.aiter_bytes():
        held += piece
        if len(held) > 1 << 16:
            break
    return held


def message_of(document: object) -> str:
    """What an error in OpenAI's form says."""
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else str(error)


def said_of(body: bytes, status: int) -> str:
    """A refusal's message in one line, else its status."""
    try:
        return line(message_of(json.loads(body)), 300)
    except (ValueError, RecursionError):
        return f"status {status}"


def failure_of(status: int, body: bytes, headers: Mapping[str, str]) -> Exception:
    """A refusal as ours."""
    said = said_of(body, status)
    if status == 429:
        seconds = headers.get("retry-after", "")
        return Overloaded(
            "the engine behind this server is busy; try again later", float(seconds) if seconds.isdigit() else 5.0
        )
    if status == 400:
        return Unanswerable(f"the engine behind this server refuses: {said}")
    return EngineFailed(f"the engine behind this server refuses (status {status}); its operator finds more in its log")
