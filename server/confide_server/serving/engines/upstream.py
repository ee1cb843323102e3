"""An engine that stands elsewhere: a vLLM server (or another that speaks its completions API), in its own environment.

Prompts are rendered and encoded here, by training's own code, and go out as token ids; models are asked for by their
content's hash only, so that an alias can never be answered by what another alias meant a moment ago. The base must be
served under its hash, and adapters are loaded under theirs:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve FOLDER --served-model-name SHA256 --enable-lora

Tried with vLLM 0.32 on a CPU (tests/integration/test_serving_vllm.py), which decides four things here:

- a question to the base in one batch with adapters' is answered by the adapter in the last place (the base's index, -1,
  names that one): with every adapter it is tried whether that happens, and if so base and adapters take turns;
- an adapter whose names do not match the model is loaded in silence: every one is tried;
- a server that was started anew has forgotten its adapters and answers 404: they are loaded again;
- what the model's generation_config.json says of sampling holds for what a request leaves out: nothing is left out.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from confide.errors import ModelError, StateError
from confide.models.architecture import load_config, load_tokenizer
from confide.models.store import folder_digest
from confide.text import line

from confide_server.serving.engines.local import LocalPrompts
from confide_server.serving.engines.turns import Turns
from confide_server.serving.engines.upstream_wire import (
    ServedModel,
    beginning,
    events,
    failure_of,
    finish_of,
    logprob_values,
    logprobs_of,
    message_of,
    said_of,
    served_model,
    tokens_written,
)
from confide_server.serving.port import BASE, Delta, EngineFailed, Finish, Generation, Load, Unanswerable

log = logging.getLogger(__name__)

_CONNECT_S, _SILENCE_S = 5.0, 180.0
_IDLE_S = 2.0
"""A connection kept longer may be closed by the other side (vLLM: after 5 s) just as a request goes out on it."""
_PATIENCE_S = 60.0
_TEXTS_AT_ONCE = 64
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_TOGETHER, _SPOILED = 3, 0.3
"""How often base and adapter are asked at once, and from which part of an adapter's effect on the base is spoiled."""
_NEUTRAL: Mapping[str, float] = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What a request says of sampling where the base's generation_config.json would change it."""


class _Forgotten(Exception):
    """The upstream does not know a model that it served."""


class _Probed(NamedTuple):
    text: str
    logprobs: list[float]


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
        self.parameters = 0
        self.prompts = LocalPrompts(tokenizer)
        self._neutral = _neutral(base_folder)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=_SILENCE_S)
        limits = httpx.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=_IDLE_S)
        base_url = url.rstrip("/").removesuffix("/v1")
        # A proxy of the environment would see every question.
        self._client = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout, limits=limits, trust_env=False
        )
        self._adapters: dict[str, str] = {}
        """The folder of each by its hash."""
        self._loading = asyncio.Lock()
        self._turns: Turns | None = None
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
        self.context = min(self.context, models[self.base_sha256].context or self.context)

    def together(self, longest: int) -> int:
        """It has a queue of its own; one request fills no more of it than this."""
        return _TEXTS_AT_ONCE

    def load(self) -> Load:
        """As seen from here."""
        return Load(self._running, 0, tuple(sorted(self._adapters)))

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Deltas until the last; leaving early closes the connection, at which the upstream stops."""
        if generation.grammar is not None:
            raise Unanswerable("an engine elsewhere takes JSON schemas, and no other grammar")
        if self._turns is not None and generation.echo and generation.logprobs is not None:
            # Beside any other request they end the engine of the build that mixes base and adapters.
            raise Unanswerable("the engine behind this server takes no log-probabilities of prompts", param="echo")
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
            async with aclosing(self._answered(generation)) as deltas:
                async for delta in deltas:
                    yield delta
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        finally:
            self._running -= 1

    def _turn(self, adapter: str) -> AbstractAsyncContextManager[None]:
        return contextlib.nullcontext() if self._turns is None else self._turns.taken(adapter != BASE)

    async def _answered(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        for again in (False, True):
            try:
                async with self._turn(generation.adapter), aclosing(self._stream(generation)) as deltas:
                    async for delta in deltas:
                        yield delta
                return
            except _Forgotten as error:
                if again or generation.adapter == BASE:
                    raise EngineFailed(f"the engine behind this server does not know its model: {error}") from error
                await self._load_again(generation.adapter)

    async def _load_again(self, sha256: str) -> None:
        """After the upstream was started anew. Raises EngineFailed."""
        folder = self._adapters.get(sha256)
        if folder is None:
            raise EngineFailed(f"adapter {sha256[:12]} is not loaded any more")
        async with self._loading:
            try:
                await self._load_and_probe(sha256, folder)
            except ModelError as error:
                raise EngineFailed(f"the engine behind this server was started anew: {error}") from error

    async def _stream(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        asked = self._request(generation)
        async with self._client.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code != 200:
                body = await beginning(response)
                if response.status_code == 404:
                    raise _Forgotten(said_of(body, 404))
                raise failure_of(response.status_code, body, response.headers)
            finish: Finish | None = None
            tokens = 0
            async for document in events(response):
                if "error" in document:
                    raise EngineFailed(f"the engine behind this server stopped: {line(message_of(document), 200)}")
                tokens = tokens_written(document, tokens)
                for choice in document.get("choices", []):
                    finish = finish_of(choice.get("finish_reason")) or finish
                    text, logprobs = str(choice.get("text") or ""), logprobs_of(choice.get("logprobs"))
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
            **self._neutral,
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
        """Have it loaded from a folder that the upstream sees under the same path, and try it. Raises ModelError."""
        async with self._loading:
            await self._load_and_probe(sha256, str(Path(folder).resolve()))

    async def _load_and_probe(self, sha256: str, folder: str) -> None:
        there = (await self._models()).get(sha256)
        if there is not None and there.folder not in ("", folder):
            await self._post(_UNLOAD, {"lora_name": sha256})  # of another folder, which nobody checked
            there = None
        if there is None:
            response = await self._post(_LOAD, {"lora_name": sha256, "lora_path": folder})
            if response.status_code != 200:
                said = said_of(response.content, response.status_code)
                raise ModelError(f"the upstream does not load adapter {sha256[:12]}: {said}")
        try:
            await self._probe(sha256)
        except BaseException:
            with contextlib.suppress(EngineFailed):
                await self._post(_UNLOAD, {"lora_name": sha256})
            raise
        self._adapters[sha256] = folder

    async def _probe(self, sha256: str) -> None:
        """What it answers must differ from the base's: an adapter whose names do not match is ignored in silence."""
        first, again, adapted = [await self._probed(adapter) for adapter in (BASE, BASE, sha256)]
        noise, effect = _furthest(first, again), _furthest(first, adapted)
        if not first.logprobs or (first.text == adapted.text and effect <= 10 * noise):
            raise ModelError(
                f"adapter {sha256[:12]} changes nothing at the upstream: its names do not match the model's"
            )
        if self._turns is None:
            together = await asyncio.gather(*(self._probed(adapter) for adapter in (BASE, sha256) * _TOGETHER))
            spoiled = max(_furthest(first, found) for found in together[::2])
            if spoiled > max(10 * noise, _SPOILED * effect):
                log.warning(
                    "the upstream answers for the base by an adapter when both are asked at once: they take turns"
                )
                self._turns = Turns()

    async def _probed(self, adapter: str) -> _Probed:
        prompt = self.prompts.text("The quick brown fox jumps over the lazy dog. 0123456789")
        asked = Generation(prompt=prompt, adapter=adapter, max_tokens=4, logprobs=1)
        try:
            async with self._turn(adapter):
                deltas = [delta async for delta in self._stream(asked)]
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        except _Forgotten as error:
            raise EngineFailed(f"the engine behind this server does not know its model: {error}") from error
        return _Probed("".join(delta.text for delta in deltas), logprob_values(deltas))

    async def remove_adapter(self, sha256: str) -> None:
        """Have it forgotten."""
        self._adapters.pop(sha256, None)
        await self._post(_UNLOAD, {"lora_name": sha256})

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def _models(self) -> dict[str, ServedModel]:
        try:
            response = await self._client.get("/v1/models")
            document = response.json() if response.status_code == 200 else {}
            return {str(model["id"]): served_model(model) for model in document["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineFailed(
                f"the engine at {self._client.base_url} does not list its models ({type(error).__name__}); is it "
                "running, and is its key right?"
            ) from error

    async def _post(self, path: str, document: Mapping[str, Any]) -> httpx.Response:
        try:
            return await self._client.post(path, json=document)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error


def _furthest(first: _Probed, second: _Probed) -> float:
    return max((abs(a - b) for a, b in zip(first.logprobs, second.logprobs, strict=False)), default=0.0)


def _neutral(base_folder: Path) -> dict[str, float]:
    """Of `_NEUTRAL`, what the folder's generation_config.json names."""
    try:
        named = json.loads((base_folder / "generation_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{base_folder / 'generation_config.json'} cannot be read; restore or remove it") from error
    return {name: value for name, value in _NEUTRAL.items() if isinstance(named, dict) and named.get(name) is not None}


def _unreachable(error: httpx.HTTPError) -> EngineFailed:
    return EngineFailed(f"the engine behind this server cannot be reached ({type(error).__name__})")
