"""The in-process engine: rows in one batch answer as they would alone, each under its own adapter."""

import asyncio
import gc
import json
import math
import shutil
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from confide.errors import ModelError
from confide.models.answering import answer, load_answering
from confide_server.serving.endpoint.answers import Answer
from confide_server.serving.engines import adapted_model
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.engines.sampling import Sampler
from confide_server.serving.port import BASE, Delta, EngineFailed, Generation, Overloaded, Unanswerable
from safetensors.torch import load_file, save_file

from tests.served_models import slow_steps, strong_adapter, strong_llama

QUESTIONS = (
    "How thick must the wall be?",
    "Who pays?",
    "Which mortar is right for an old brick wall, and does a sole trader need a permit before the works begin?",
    "Yes",
)
ADAPTERS = {"a" * 64: 1, "b" * 64: 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: strong_adapter(base, root / name[:1], seed) for name, seed in ADAPTERS.items()}


@pytest.fixture(scope="module")
def model(base: Path, adapters: dict[str, Path]) -> AdaptedModel:
    model = AdaptedModel(base, "cpu")
    for name, folder in adapters.items():
        model.add(name, folder)
    return model


@pytest.fixture
def engine(model: AdaptedModel) -> Iterator[LocalEngine]:
    engine = LocalEngine(model, Room(rows=8, tokens=4096, waiting=32)).start()
    yield engine
    run(engine.close())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def written(engine: LocalEngine, generation: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(generation)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def asked(engine: LocalEngine, question: str, adapter: str = BASE, **options: Any) -> Generation:
    prompt = engine.prompts.chat([{"role": "user", "content": question}])
    return Generation(prompt=prompt, adapter=adapter, **{"max_tokens": 12, **options})


def test_one_answer_is_the_terminal_s(engine: LocalEngine, base: Path, adapters: dict[str, Path]) -> None:
    for name in (BASE, *adapters):
        plain, tokenizer = load_answering(base, adapters.get(name), device="cpu")
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        expected = "".join(answer(plain, tokenizer, messages, max_tokens=12))
        got = text_of(run(written(engine, asked(engine, QUESTIONS[0], name))))
        assert expected and got.startswith(expected)


def test_interleaved_rows_of_two_adapters_answer_as_one_after_another(engine: LocalEngine) -> None:
    """Rows join while others write, at lengths of their own; the same questions under several adapters."""
    wanted = [
        asked(engine, question, adapter, max_tokens=5 + 3 * place)
        for place, question in enumerate(QUESTIONS)
        for adapter in (BASE, *ADAPTERS)
    ]

    async def apart() -> list[str]:
        return [text_of(await written(engine, one)) for one in wanted]

    async def together() -> list[str]:
        async def later(place: int, one: Generation) -> str:
            await asyncio.sleep(0.01 * (place % 5))
            return text_of(await written(engine, one))

        return await asyncio.gather(*(later(place, one) for place, one in enumerate(wanted)))

    alone = run(apart())
    assert run(together()) == alone
    assert len(set(alone)) > len(QUESTIONS), "the adapters say different things"


def test_logprobs_in_a_batch_are_those_alone(engine: LocalEngine) -> None:
    wanted = [asked(engine, question, name, logprobs=3) for question in QUESTIONS for name in (BASE, *ADAPTERS)]

    async def together() -> list[list[Delta]]:
        return await asyncio.gather(*(written(engine, one) for one in wanted))

    for one, deltas in zip(wanted, run(together()), strict=True):
        alone = run(written(engine, one))
        pairs = [
            (a, b) for x, y in zip(deltas, alone, strict=True) for a, b in zip(x.logprobs, y.logprobs, strict=True)
        ]
        assert pairs and all(abs((a.logprob or 0) - (b.logprob or 0)) < 1e-4 for a, b in pairs)
        assert all(a.text == b.text and a.logprob == pytest.approx(a.top[0][1]) for a, b in pairs)


def test_echoed_prompt_has_the_model_s_own_logprobs(engine: LocalEngine, base: Path) -> None:
    text = "The wall must be twelve centimetres thick. " * 6
    ids = engine.prompts.text(text)
    assert len(ids) > 64, "it is read in pieces"
    deltas = run(written(engine, Generation(prompt=ids, max_tokens=0, echo=True, logprobs=1)))
    plain, _ = load_answering(base, device="cpu")
    with torch.inference_mode():
        logs = torch.log_softmax(plain(torch.tensor([ids])).logits[0].float(), -1)
    expected = [float(logs[place, token]) for place, token in enumerate(ids[1:])]
    found = [one.logprob for delta in deltas for one in delta.logprobs]
    assert found[0] is None and found[1:] == pytest.approx(expected, abs=1e-4)
    assert deltas[-1].tokens == 0


def test_draws_follow_the_seed_and_the_nucleus(engine: LocalEngine) -> None:
    def drawn(**options: Any) -> str:
        return text_of(run(written(engine, asked(engine, QUESTIONS[1], temperature=1.5, **options))))

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    likeliest = text_of(run(written(engine, asked(engine, QUESTIONS[1]))))
    assert drawn(seed=3, top_p=1e-6) == likeliest


def test_stop_texts_are_not_shown(engine: LocalEngine) -> None:
    whole = text_of(run(written(engine, asked(engine, QUESTIONS[0], max_tokens=24))))
    stop = whole[5:8]
    deltas = run(written(engine, asked(engine, QUESTIONS[0], max_tokens=24, stop=("never there", stop))))
    assert text_of(deltas) == whole[: whole.index(stop)] and deltas[-1].finish == "stop"


def test_json_schema_is_obeyed(engine: LocalEngine) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"right": {"type": "boolean"}, "kind": {"enum": ["wall", "roof"]}},
        "required": ["right", "kind"],
        "additionalProperties": False,
    }
    deltas = run(written(engine, asked(engine, QUESTIONS[0], max_tokens=60, schema=schema, temperature=1.0, seed=4)))
    found = json.loads(text_of(deltas))
    assert set(found) == {"right", "kind"} and found["kind"] in ("wall", "roof") and deltas[-1].finish == "stop"
    quoted = run(written(engine, asked(engine, QUESTIONS[0], max_tokens=60, grammar='start: "lime" | "sand"')))
    assert text_of(quoted) in ("lime", "sand")
    for bad in ({"type": "nonsense"}, {"type": "string", "pattern": "("}):
        with pytest.raises(Unanswerable, match="JSON schema cannot be used"):
            run(written(engine, asked(engine, "Who?", schema=bad)))


def test_who_leaves_frees_the_place(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_steps(monkeypatch)

    async def leave() -> None:
        stream = engine.generate(asked(engine, QUESTIONS[0], max_tokens=300, stop=("zzzzzz",)))
        async for delta in stream:
            if delta.tokens == 2:
                break
        await stream.aclose()
        for _ in range(6000):
            if engine.load().running == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the row goes on")

    run(leave())


def test_a_full_queue_is_said_at_once(model: AdaptedModel) -> None:
    engine = LocalEngine(model, Room(rows=1, tokens=4096, waiting=2))  # not started: nothing leaves the queue

    async def crowd() -> list[Any]:
        tasks = [asyncio.create_task(written(engine, asked(engine, "Who?"))) for _ in range(5)]
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0.01)
        done, pending = await asyncio.wait(tasks, timeout=0.1)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return [task.exception() for task in done]

    refused = run(crowd())
    assert len(refused) == 3 and all(isinstance(one, Overloaded) and one.retry_after_s >= 1 for one in refused)


def test_more_texts_than_the_queue_holds_are_written_for_one_request(model: AdaptedModel) -> None:
    """Behind its own like a text waits as long as it takes: only others' work makes a server busy."""
    engine = LocalEngine(model, Room(rows=2, tokens=200, waiting=2)).start()
    assert (engine.together(40), engine.together(150), engine.together(10**6)) == (2, 1, 1)
    answer = Answer(engine, [asked(engine, "Who?", max_tokens=30)] * 8)
    run(answer.whole())
    assert len({"".join(choice.text) for choice in answer.choices}) == 1 and answer.tokens >= 8
    run(engine.close())


def test_who_left_the_queue_takes_no_place_in_it(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_steps(monkeypatch)
    engine = LocalEngine(model, Room(rows=1, tokens=4096, waiting=3)).start()

    async def crowd() -> str:
        long = asyncio.create_task(written(engine, asked(engine, QUESTIONS[0], max_tokens=200, stop=("zzzzzz",))))
        while not engine.load().running:
            await asyncio.sleep(0.005)
        gone = [asyncio.create_task(written(engine, asked(engine, "Who?"))) for _ in range(3)]
        await asyncio.sleep(0.02)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        while engine.load().waiting:
            await asyncio.sleep(0.005)
        assert not long.done(), "they left the queue while the first one was written"
        answer = asyncio.create_task(written(engine, asked(engine, "Who?")))
        long.cancel()
        return text_of(await answer)

    assert run(crowd())
    run(engine.close())


def test_an_engine_that_breaks_tells_everybody_and_goes_on(
    model: AdaptedModel, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = text_of(run(written(engine, asked(engine, "Who?"))))
    with monkeypatch.context() as broken:
        broken.setattr(engine, "_has_room", lambda *_: 1 / 0)
        with pytest.raises(EngineFailed, match="the model failed"):
            run(written(engine, asked(engine, "Who?")))
    with monkeypatch.context() as broken:
        broken.setattr(model, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(EngineFailed, match="the model failed"):
            run(written(engine, asked(engine, "Who?")))
    assert text_of(run(written(engine, asked(engine, "Who?")))) == good


def test_a_temperature_next_to_nothing_takes_the_likeliest_token(engine: LocalEngine) -> None:
    """Dividing by it leaves float32, and what cannot be drawn from ended everybody's answers in the batch."""
    plain = text_of(run(written(engine, asked(engine, "Who?"))))
    for temperature in (1e-6, 1e-40, 1e-300):
        assert text_of(run(written(engine, asked(engine, "Who?", temperature=temperature, seed=1)))) == plain
    assert run(written(engine, asked(engine, "Who?", temperature=1e-5, top_p=0.5, seed=1)))[-1].finish


def test_an_answer_that_fails_leaves_the_rest_of_its_batch(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = text_of(run(written(engine, asked(engine, "Who?", temperature=0.7, seed=1))))
    plain = Sampler.choose

    def choose(sampler: Sampler, logits_V: torch.Tensor) -> int:
        if sampler._top_p == 0.125:
            raise RuntimeError("drawn from nothing")
        return plain(sampler, logits_V)

    monkeypatch.setattr(Sampler, "choose", choose)

    async def together() -> list[Any]:
        bad = asked(engine, "Who?", temperature=0.7, top_p=0.125)
        good = asked(engine, "Who?", temperature=0.7, seed=1)
        return await asyncio.gather(*(written(engine, one) for one in (good, bad, good)), return_exceptions=True)

    first, failed, second = run(together())
    assert text_of(first) == alone == text_of(second)
    assert isinstance(failed, EngineFailed) and "drawn" not in str(failed)


def test_what_cannot_be_answered_is_named(engine: LocalEngine) -> None:
    for generation, said in (
        (Generation(prompt=()), "prompt is empty"),
        (Generation(prompt=(10**6,)), "this model knows 0 to"),
        (Generation(prompt=(1,), adapter="c" * 64), "is not loaded"),
        (Generation(prompt=(1,) * 500, max_tokens=100), "this model holds 512"),
    ):
        with pytest.raises(Unanswerable, match=said):
            run(written(engine, generation))


def test_unfit_adapters_are_refused_and_leave_nothing(base: Path, model: AdaptedModel, tmp_path: Path) -> None:
    swapped = strong_adapter(base, tmp_path / "swapped", 3)
    config = json.loads((swapped / "adapter_config.json").read_text())
    (swapped / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["o_proj", "k_proj"]}))
    with pytest.raises(ModelError, match="no counterpart"):
        model.add("d" * 64, swapped)
    (swapped / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ModelError, match="use_dora = True"):
        model.add("d" * 64, swapped)
    assert model.adapters == set(ADAPTERS)
    gc.collect()


def weak_adapter(base: Path, folder: Path) -> Path:
    """As after a short training."""
    weights = strong_adapter(base, folder, 8) / "adapter_model.safetensors"
    save_file({name: 0.02 * tensor for name, tensor in load_file(weights).items()}, weights)
    return folder


def test_rounding_between_two_shapes_hides_no_adapter_and_ends_no_batching(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16: SmolLM2 was taken to be disturbed by padding, and short trainings to change nothing."""
    plain = AdaptedModel.forward

    def rounded(self: AdaptedModel, ids: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        return plain(self, ids, *more, **options) * (1 + 0.03 * (len(ids) > 1))

    monkeypatch.setattr(AdaptedModel, "forward", rounded)
    monkeypatch.setitem(adapted_model._ROUNDING, torch.float32, adapted_model._ROUNDING[torch.bfloat16])
    model = AdaptedModel(base, "cpu")
    model.add("f" * 64, weak_adapter(base, tmp_path / "weak"))
    assert model.plain and model.adapters == {"f" * 64}


def test_an_adapter_that_a_batch_does_not_keep_apart_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AdaptedModel.forward

    def mixed(
        self: AdaptedModel, ids: torch.Tensor, batch: Any, adapters: Any, *more: Any, **options: Any
    ) -> torch.Tensor:
        return plain(self, ids, batch, [BASE] * len(ids) if len(ids) > 1 else adapters, *more, **options)

    model, folder = AdaptedModel(base, "cpu"), strong_adapter(base, tmp_path / "strong", 9)
    monkeypatch.setattr(AdaptedModel, "forward", mixed)
    with pytest.raises(ModelError, match="answer differently in one batch than alone"):
        model.add("f" * 64, folder)
    assert not model.adapters


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("changed", [{"lora_alpha": "x"}, {"r": 3}, {"target_modules": "("}, {"lora_alpha": math.nan}])
def test_a_load_that_fails_in_the_middle_leaves_nothing(
    base: Path, adapters: dict[str, Path], tmp_path: Path, loaded: bool, changed: dict[str, Any]
) -> None:
    """PEFT gives up between two layers; what it had put in made the next good adapter be refused."""
    (first, good), (_, second) = adapters.items()
    model = AdaptedModel(base, "cpu")
    if loaded:
        model.add(first, good)
    before = model._logits(BASE)
    unfit = Path(shutil.copytree(second, tmp_path / "unfit"))
    config = json.loads((unfit / "adapter_config.json").read_text())
    (unfit / "adapter_config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ModelError):
        model.add("d" * 64, unfit)
    assert model.adapters == ({first} if loaded else set())
    assert not any("d" * 64 in name for name, _ in model.bare.named_modules())
    model.add("e" * 64, second)
    assert bool((model._logits(BASE) == before).all()) and model.adapters >= {"e" * 64}
    for name in list(model.adapters):
        model.remove(name)
    assert bool((model._logits(BASE) == before).all()) and not any("lora" in n for n, _ in model.bare.named_modules())


def test_an_adapter_comes_and_goes_between_steps(engine: LocalEngine, base: Path, tmp_path: Path) -> None:
    folder, name = strong_adapter(base, tmp_path / "late", 5, rank=2), "e" * 64

    async def live() -> tuple[str, str, str]:
        long = asyncio.create_task(written(engine, asked(engine, QUESTIONS[2], max_tokens=40)))
        await asyncio.sleep(0.01)
        await engine.add_adapter(name, str(folder))
        late = text_of(await written(engine, asked(engine, QUESTIONS[0], name)))
        whole = text_of(await long)
        await engine.remove_adapter(name)
        return late, whole, text_of(await written(engine, asked(engine, QUESTIONS[2], max_tokens=40)))

    late, whole, again = run(live())
    assert whole == again and late
    assert late != text_of(run(written(engine, asked(engine, QUESTIONS[0]))))
