"""An engine that stands elsewhere: a vLLM server (or another that speaks its completions API), in its own environment.

Prompts are rendered and encoded here, by training's own code, and go out as token ids; models are asked for by their
content's hash only, so that an alias can never be answered by what another alias meant a moment ago. The base must be
served under its hash, and adapters are loaded under theirs:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve FOLDER --served-model-name SHA256 --enable-lora
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

import httpx
from confide.errors import ModelError, StateError
from confide.models.architecture import load_config, load_tokenizer
from confide.models.store import folder_digest
from confide.text import line

from confide_server.serving.engines.local import LocalPrompts
from confide_server.serving.port import (
    BASE,
    Delta,
    EngineFailed,
    Finish,
    Generation,
    Load,
    Overloaded,
    TokenLogprob,
    Unanswerable,
)

_CONNECT_S, _SILENCE_S = 5.0, 180.0
_PATIENCE_S = 60.0
_MAX_LINE_BYTES = 1 << 22
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class UpstreamEngine:
    """One server elsewhere, and the base model's folder here (its tokenizer and configuration; no weights)."""

    def __init__(self, base_folder: Path, url: str, key: str = "") -> None:
        """Raises StateError for a URL that is none, ModelError for a folder without a model."""
        if not url.startswith(("http://", "https://")):
            raise StateError(f"the upstream's URL is http://... or https://...; got {url!r}")
        self.base_sha256 = folder_digest(base_folder)
        tokenizer = load_tokenizer(base_folder)
        config = load_config(base_folder).get_text_config(decoder=True)
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self.prompts = LocalPrompts(tokenizer)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=_SILENCE_S)
        limits = httpx.Limits(max_connections=512, max_keepalive_connections=64)
        base_url = url.rstrip("/").removesuffix("/v1")
        # A proxy of the environment would see every question.
        self._client = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout, limits=limits, trust_env=False
        )
        self._adapters: set[str] = set()
        self._running = 0

    async def check(self) -> None:
        """Wait until it answers. Raises EngineFailed, ModelError where it does not serve the base under its hash."""
        until = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:
            try:
                models = await self._models()
                break
            except EngineFailed:
                if asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(1.0)
        if self.base_sha256 not in models:
            raise ModelError(
                f"the upstream does not serve this base model under its hash; start it with --served-model-name "
                f"{self.base_sha256}"
            )

    def load(self) -> Load:
        """As seen from here."""
        return Load(self._running, 0, tuple(sorted(self._adapters)))

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Deltas until the last; leaving early closes the connection, at which the upstream stops."""
        if generation.grammar is not None:
            raise Unanswerable("an engine elsewhere takes JSON schemas, and no other grammar")
        if len(generation.prompt) + generation.max_tokens > self.context:
            raise Unanswerable(
                f"the prompt has {len(generation.prompt)} tokens and {generation.max_tokens} more may be written; this "
                f"model holds {self.context} in all",
                param="messages",
                kind="context_length_exceeded",
            )
        if generation.adapter != BASE and generation.adapter not in self._adapters:
            raise Unanswerable(f"adapter {generation.adapter[:12]} is not loaded", param="model")
        self._running += 1
        try:
            async with aclosing(self._stream(generation)) as deltas:
                async for delta in deltas:
                    yield delta
        except httpx.HTTPError as error:
            raise EngineFailed(f"the engine behind this server cannot be reached ({type(error).__name__})") from error
        finally:
            self._running -= 1

    async def _stream(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        asked = self._request(generation)
        async with self._client.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code != 200:
                raise _failure(response.status_code, await _beginning(response), response.headers)
            finish: Finish | None = None
            tokens = 0
            async for document in _events(response):
                if "error" in document:
                    raise EngineFailed(f"the engine behind this server stopped: {line(_message(document), 200)}")
                tokens = _tokens(document, tokens)
                for choice in document.get("choices", []):
                    finish = _finish(choice.get("finish_reason")) or finish
                    text, logprobs = str(choice.get("text") or ""), _logprobs(choice.get("logprobs"))
                    yield Delta(text, tokens, logprobs)
            if finish is None:
                raise EngineFailed("the engine behind this server ended in mid-answer")
            yield Delta("", tokens, (), finish)

    def _request(self, generation: Generation) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "model": generation.adapter or self.base_sha256,
            "prompt": list(generation.prompt),
            "max_tokens": generation.max_tokens,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if generation.seed is not None:
            asked["seed"] = generation.seed
        if generation.stop:
            asked["stop"] = list(generation.stop)
        if generation.logprobs is not None:
            asked["logprobs"] = generation.logprobs
        if generation.echo:
            asked["echo"] = True
        if generation.schema is not None:
            named = {"name": "answer", "schema": generation.schema}
            asked["response_format"] = {"type": "json_schema", "json_schema": named}
        return asked

    async def add_adapter(self, sha256: str, folder: str) -> None:
        """Have it loaded from a folder that the upstream sees under the same path, and try it."""
        if sha256 not in await self._models():
            response = await self._post(_LOAD, {"lora_name": sha256, "lora_path": str(Path(folder).resolve())})
            if response.status_code != 200:
                said = line(response.text, 200)
                raise ModelError(f"the upstream does not load adapter {sha256[:12]}: {response.status_code} {said}")
        self._adapters.add(sha256)
        try:
            await self._probe(sha256)
        except BaseException:
            self._adapters.discard(sha256)
            raise

    async def _probe(self, sha256: str) -> None:
        """What it answers must differ from the base's: an adapter whose names do not match is ignored in silence."""
        prompt = self.prompts.text("The quick brown fox jumps over the lazy dog. 0123456789")
        found = []
        for adapter in (BASE, BASE, sha256):
            asked = Generation(prompt=prompt, adapter=adapter, max_tokens=4, logprobs=1)
            found.append([d async for d in self.generate(asked)])
        first, again, adapted = (_values(deltas) for deltas in found)
        noise = max((abs(a - b) for a, b in zip(first, again, strict=False)), default=0.0)
        effect = max((abs(a - b) for a, b in zip(first, adapted, strict=False)), default=0.0)
        same = "".join(d.text for d in found[0]) == "".join(d.text for d in found[2])
        if not first or (same and effect <= 10 * noise):
            raise ModelError(
                f"adapter {sha256[:12]} changes nothing at the upstream: its names do not match the model's"
            )

    async def remove_adapter(self, sha256: str) -> None:
        """Have it forgotten."""
        self._adapters.discard(sha256)
        await self._post(_UNLOAD, {"lora_name": sha256})

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def _models(self) -> set[str]:
        try:
            response = await self._client.get("/v1/models")
            document = response.json() if response.status_code == 200 else {}
            return {str(model["id"]) for model in document["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineFailed(
                f"the engine at {self._client.base_url} does not list its models ({type(error).__name__}); is it "
                "running, and is its key right?"
            ) from error

    async def _post(self, path: str, document: Mapping[str, Any]) -> httpx.Response:
        try:
            return await self._client.post(path, json=document)
        except httpx.HTTPError as error:
            raise EngineFailed(f"the engine behind this server cannot be reached ({type(error).__name__})") from error


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
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
            yield _document(data)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("choices", []), list):
        raise EngineFailed("the engine behind this server sent what is no chunk")
    if not all(isinstance(choice, dict) for choice in document.get("choices", [])):
        raise EngineFailed("the engine behind this server sent what is no chunk")
    return document


def _tokens(document: Mapping[str, Any], before: int) -> int:
    """Written until now: as the chunk says, else at least one more for each text."""
    said = document.get("usage")
    if isinstance(said, dict) and isinstance(said.get("completion_tokens"), int):
        return max(before, int(said["completion_tokens"]))
    return before + sum(1 for choice in document.get("choices", []) if choice.get("text"))


def _finish(said: object) -> Finish | None:
    if said is None:
        return None
    return said if said in get_args(Finish) else "stop"  # type: ignore[return-value]  # narrowed by the check


def _logprobs(found: object) -> tuple[TokenLogprob, ...]:
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


def _values(deltas: Sequence[Delta]) -> list[float]:
    return [one.logprob for delta in deltas for one in delta.logprobs if one.logprob is not None]


async def _beginning(response: httpx.Response) -> bytes:
    held = b""
    async for piece in response.aiter_bytes():
        held += piece
        if len(held) > 1 << 16:
            break
    return held


def _message(document: object) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else str(error)


def _failure(status: int, body: bytes, headers: Mapping[str, str]) -> Exception:
    try:
        said = line(_message(json.loads(body)), 300)
    except (ValueError, RecursionError):
        said = f"status {status}"
    if status == 429:
        seconds = headers.get("retry-after", "")
        return Overloaded(
            "the engine behind this server is busy; try again later", float(seconds) if seconds.isdigit() else 5.0
        )
    if status == 400:
        return Unanswerable(f"the engine behind this server refuses: {said}")
    return EngineFailed(f"the engine behind this server refuses (status {status}); its operator finds more in its log")
