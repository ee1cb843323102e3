"""`confide bench serving`: what the served endpoint gains by batching, and what it adds to the model's own time.

Peers run in turns in one process on one model, so that other work on the machine meets all of them alike:

    batching   8 answers together in one padded batch, against the same 8 one after another (both by the engine)
    bare       one answer by the engine, against `model.generate` of transformers on the same prompt
    overhead   a request through HTTP, key, rates, budget on disk and records, over an engine that answers at once
    waiting    growth of the process with 200 requests in the queue
"""

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

_QUESTIONS = (
    "Does a sole trader need a permit before the works begin?",
    "What is the capital of France?",
    "How thick must a brick wall be?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a sentence about the sea.",
    "How do I boil an egg?",
    "Who pays for the scaffold in a renovation?",
)
Result = dict[str, Any]


def serving(
    model_folder: Annotated[
        Path | None, typer.Option("--model-folder", help="A model to serve; default: SmolLM2-135M as packaged.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=4, help="Written for each answer.")] = 32,
    turns: Annotated[int, typer.Option(min=1, help="Of each peer.")] = 3,
    requests: Annotated[int, typer.Option(min=10, help="Through the endpoint, for its overhead.")] = 200,
    waiting: Annotated[int, typer.Option(min=1, help="Requests in the queue, for its memory.")] = 200,
    json: Annotated[Path | None, typer.Option(help="Write the result here.", dir_okay=False)] = None,
) -> None:
    """Compare batched answers with one at a time, the engine with bare generate, and time the endpoint itself."""
    from rich.console import Console
    from rich.table import Table

    from confide_simulations.assets import smollm2
    from confide_simulations.benchmarks.meta import meta, write_result

    console = Console()
    result = measure(model_folder or smollm2(console.print), tokens, turns, requests, waiting)
    table = Table("what", "figure", "peer", "ratio")
    for name in ("batching", "bare"):
        row = result[name]
        ours, theirs = (f"{row[key]:.1f} tokens a CPU second" for key in ("ours", "peer"))
        table.add_row(name, ours, theirs, f"{row['ratio']:.2f} (wall {row['ratio_wall']:.2f})")
    extra = result["overhead"]
    table.add_row(
        "overhead",
        f"{extra['cpu_ms']:.2f} CPU ms a request, {extra['median_ms']:.2f} ms by the clock",
        f"over {extra['bare_ms']:.2f} ms of a bare route",
        "",
    )
    table.add_row("waiting", f"{result['waiting']['mib']:.1f} MiB for {waiting} requests", "", "")
    console.print(table)
    if json is not None:
        config = {"model_folder": str(model_folder or "SmolLM2-135M"), "tokens": tokens, "turns": turns}
        write_result(json, {**result, "meta": meta(seed=0, config={**config, "requests": requests})})
        console.print(f"written: {json}")


def measure(folder: Path, tokens: int, turns: int, requests: int, waiting: int) -> Result:
    """All figures."""
    from confide_server.serving.engines.adapted_model import AdaptedModel
    from confide_server.serving.engines.local import LocalEngine, Room

    model = AdaptedModel(folder)
    many = LocalEngine(model, Room(rows=len(_QUESTIONS))).start()
    try:
        prompts = [many.prompts.chat([{"role": "user", "content": question}]) for question in _QUESTIONS]
        found = {
            "batching": _compare(_together(many, prompts, tokens), _apart(many, prompts, tokens), turns),
            "bare": _compare(_apart(many, prompts[:2], tokens), _bare(model, prompts[:2], tokens), turns),
        }
    finally:
        asyncio.run(many.close())
    return {**found, "overhead": overhead(requests), "waiting": {"mib": waiting_mib(model, waiting), "count": waiting}}


def _compare(ours: Callable[[], int], peer: Callable[[], int], turns: int) -> Result:
    """Tokens a CPU second and a second, of both, in turns; one turn of each is not counted."""
    ours(), peer()
    speeds: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for _ in range(turns):
        for name, work in (("ours", ours), ("peer", peer)):
            cpu, wall = time.process_time(), time.perf_counter()
            count = work()
            speeds[name].append((count / (time.process_time() - cpu), count / (time.perf_counter() - wall)))
    cpu_of, wall_of = ({n: statistics.median(one[i] for one in found) for n, found in speeds.items()} for i in (0, 1))
    return {
        **cpu_of,
        "ours_wall": wall_of["ours"],
        "peer_wall": wall_of["peer"],
        "ratio": cpu_of["ours"] / cpu_of["peer"],
        "ratio_wall": wall_of["ours"] / wall_of["peer"],
    }


async def _count(engine: Any, prompt: Sequence[int], tokens: int) -> int:
    """How many tokens were written; an answer that ends early counts as it is."""
    from confide_server.serving.port import Generation

    written = 0
    async for delta in engine.generate(Generation(prompt=tuple(prompt), max_tokens=tokens)):
        written = delta.tokens
    return written


def _together(engine: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Callable[[], int]:
    async def work() -> int:
        return sum(await asyncio.gather(*(_count(engine, prompt, tokens) for prompt in prompts)))

    return lambda: asyncio.run(work())


def _apart(engine: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Callable[[], int]:
    async def work() -> int:
        return sum([await _count(engine, prompt, tokens) for prompt in prompts])

    return lambda: asyncio.run(work())


def _bare(model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Callable[[], int]:
    import torch

    ends = sorted(model.ends)

    def work() -> int:
        written = 0
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            with torch.inference_mode():
                made = model.bare.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=model.tokenizer.pad_token_id,
                )
            written += made.shape[1] - ids.shape[1]
        return written

    return work


class _Instant:
    """An engine that answers at once, so that what is left is the endpoint's own time."""

    base_sha256, context, parameters = "0" * 64, 4096, 0

    @property
    def prompts(self) -> Any:
        return self

    def chat(self, messages: Any) -> tuple[int, ...]:
        return (1,) * 32

    def text(self, text: str) -> tuple[int, ...]:
        return (1,) * 32

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def plain(self, text: str) -> str:
        return text

    async def check(self) -> None: ...

    def together(self, longest: int) -> int:
        return 1

    def load(self) -> Any:
        from confide_server.serving.port import Load

        return Load()

    async def generate(self, generation: Any) -> AsyncGenerator[Any, None]:
        from confide_server.serving.port import Delta

        yield Delta("yes", 1, (), "stop")

    async def add_adapter(self, sha256: str, folder: str) -> None: ...

    async def remove_adapter(self, sha256: str) -> None: ...

    async def close(self) -> None: ...


def overhead(requests: int) -> Result:
    """Milliseconds a request, one after another over one connection, beyond what a bare route takes (/healthz).

    The difference leaves out client and HTTP server, which are in both. cpu_ms: of all threads, what is written after
    the answer included; median_ms: by the clock.
    """
    import httpx
    import uvicorn
    from confide_server.quota import listening
    from confide_server.serving.catalogue import Catalogue, Target
    from confide_server.serving.endpoint.app import Parts, build_app
    from confide_server.serving.keyed_access import KeyedAccess
    from confide_server.serving.process import open_database
    from confide_server.state.serving_keys import KeyTerms, add_key

    with tempfile.TemporaryDirectory() as temporary:
        database = open_database(Path(temporary), flushed=False)
        key = add_key(database, KeyTerms(name="bench", budget_tokens=10**9, requests_per_minute=10**6))
        access, catalogue = KeyedAccess(database, "bench"), Catalogue()
        catalogue.point(Target("instant", _Instant(), ""))
        listener = listening("127.0.0.1", 0, "the benchmark", "free one")
        app = build_app(Parts(catalogue, access))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        body = {"model": "instant", "messages": [{"role": "user", "content": "?"}], "max_tokens": 8}
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:

            def asked() -> None:
                client.post(url, json=body).raise_for_status()

            def bare() -> None:
                client.get(url.replace("/v1/chat/completions", "/healthz")).raise_for_status()

            figures = {name: _timed(work, requests) for name, work in (("asked", asked), ("bare", bare))}
        server.should_exit = True
        thread.join()
        access.close()
        database.close()
    asked_ms, bare_ms = figures["asked"], figures["bare"]
    found = {name: asked_ms[name] - bare_ms[name] for name in asked_ms}
    return {**found, "requests": requests, "bare_ms": bare_ms["median_ms"]}


def _timed(work: Callable[[], None], times: int) -> dict[str, float]:
    """Medians over so many calls, after some that are not counted."""
    for _ in range(max(5, times // 10)):
        work()
    cpu, walls = time.process_time(), []
    for _ in range(times):
        began = time.perf_counter()
        work()
        walls.append(1000 * (time.perf_counter() - began))
    cpu_ms = 1000 * (time.process_time() - cpu) / times
    return {"median_ms": statistics.median(walls), "cpu_ms": cpu_ms}


def waiting_mib(model: Any, count: int, prompt_tokens: int = 512) -> float:
    """Growth of the resident set with so many requests in the queue of an engine that does not begin."""
    import psutil
    from confide_server.serving.engines.local import LocalEngine, Room

    engine = LocalEngine(model, Room(rows=1, waiting=count))  # not started
    process = psutil.Process()

    async def crowd() -> int:
        tasks = [
            asyncio.create_task(_count(engine, [1000 + place * 7 + n for n in range(prompt_tokens)], 256))
            for place in range(count)
        ]
        while engine.load().waiting < count:
            await asyncio.sleep(0.01)
        held = process.memory_info().rss
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return int(held)

    before = process.memory_info().rss
    return float((asyncio.run(crowd()) - before) / 2**20)
