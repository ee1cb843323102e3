"""The routes, asked by the official openai client."""

import asyncio
import json
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from confide.errors import PolicyRefusal, StateError
from confide.models.answering import answer, load_answering
from confide.text import paragraph
from confide_server.serving.access import Caller, OpenAccess
from confide_server.serving.catalogue import Catalogue, Target
from confide_server.serving.documents import Cited
from confide_server.serving.endpoint.app import Limits, Parts, build_app
from confide_server.serving.endpoint.wire import ChatRequest, CompletionRequest, EmbeddingRequest
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.embedding import LocalEmbedder
from confide_server.serving.engines.local import LocalEngine, Room
from confide_server.serving.port import BASE
from pydantic import ValidationError

from tests.served_models import served, strong_adapter, strong_llama
from tests.tiny_models import tiny_bert

QUESTION: list[Any] = [{"role": "user", "content": "How thick must the wall be?"}]
ADAPTER = "a" * 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_adapter(base, tmp_path_factory.mktemp("adapter"), 1)


@pytest.fixture(scope="module")
def url(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = AdaptedModel(base, "cpu")
    model.add(ADAPTER, adapter)
    engine = LocalEngine(model, Room(rows=8, tokens=8192, waiting=16)).start()
    catalogue = Catalogue()
    catalogue.point(Target("wall", engine, BASE))
    catalogue.point(Target("wall-tuned", engine, ADAPTER))
    catalogue.embedders["sentences"] = LocalEmbedder(tiny_bert(tmp_path_factory.mktemp("bert"), head=False), "cpu")
    limits = Limits(body_bytes=1 << 16, tokens=32, hosts=frozenset({"127.0.0.1"}))
    with served(build_app(Parts(catalogue, OpenAccess(), limits))) as url:
        yield url
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_chat_says_what_the_terminal_says(client: openai.OpenAI, base: Path, adapter: Path) -> None:
    for alias, folder in (("wall", None), ("wall-tuned", adapter)):
        model, tokenizer = load_answering(base, folder, device="cpu")
        expected = "".join(answer(model, tokenizer, QUESTION, max_tokens=12))
        made = client.chat.completions.create(model=alias, messages=QUESTION, temperature=0, max_tokens=12)
        said = made.choices[0].message.content or ""
        assert said.startswith(expected) and made.model == alias and made.object == "chat.completion"
        assert made.usage and made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
        assert made.usage.completion_tokens <= 12 and made.choices[0].finish_reason in ("stop", "length")


def test_a_stream_is_the_same_text_with_its_usage(client: openai.OpenAI) -> None:
    options: Any = {"model": "wall", "messages": QUESTION, "temperature": 0.7, "seed": 3, "max_tokens": 20}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[-1].choices
    assert chunks[-1].usage == whole.usage and len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_several_answers_differ_and_repeat_by_seed(client: openai.OpenAI) -> None:
    options: Any = {"model": "wall", "messages": QUESTION, "n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 8}
    first, second = (client.chat.completions.create(**options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert texts == [choice.message.content for choice in second.choices]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_logprobs_of_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="wall", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    found = made.choices[0].logprobs
    assert found and found.content and len(found.content) == 5
    for token in found.content:
        assert len(token.top_logprobs) == 2 and token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_a_schema_is_obeyed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["wall", "roof"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "kind", "schema": schema, "strict": True}}
    made = client.chat.completions.create(model="wall", messages=QUESTION, response_format=form, max_tokens=40, seed=1)
    assert json.loads(made.choices[0].message.content or "")["kind"] in ("wall", "roof")


def test_completions_go_on_with_texts_and_tokens(client: openai.OpenAI, base: Path) -> None:
    _, tokenizer = load_answering(base, device="cpu")
    text = "The wall must be"
    options: Any = {"model": "wall", "temperature": 0, "max_tokens": 6}
    one = client.completions.create(prompt=text, **options)
    tokens = client.completions.create(prompt=tokenizer(text)["input_ids"], **options)
    both = client.completions.create(prompt=[text, "Who pays"], echo=True, **options)
    assert one.choices[0].text == tokens.choices[0].text
    assert both.choices[0].text == text + one.choices[0].text and both.choices[1].text.startswith("Who pays")
    stopped = client.completions.create(prompt=text, stop=one.choices[0].text[2:4], **options)
    assert stopped.choices[0].text == one.choices[0].text[: one.choices[0].text.index(one.choices[0].text[2:4])]
    streamed = client.completions.create(prompt=text, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text
    scored = client.completions.create(prompt=text, echo=True, logprobs=1, model="wall", max_tokens=0)
    found = scored.choices[0].logprobs
    assert found
    values: list[Any] = list(found.token_logprobs or [])
    assert len(values) > 2 and values[0] is None and all(value < 0 for value in values[1:])
    chunks = list(client.completions.create(prompt=[text, "Who"], stream=True, logprobs=1, echo=True, **options))
    whole = client.completions.create(prompt=[text, "Who"], logprobs=1, echo=True, **options)
    for choice in whole.choices:
        parts = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].index == choice.index]
        offsets = [offset for part in parts if part for offset in part.text_offset or []]
        assert choice.logprobs and offsets == choice.logprobs.text_offset and offsets[0] == 0 < offsets[-1]
    assert scored.choices[0].text == text and "".join(found.tokens or []) == text


def test_embeddings_have_length_one(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="sentences", input=["a wall", "a roof", "a wall"])
    plain = client.embeddings.create(model="sentences", input="a wall", encoding_format="float")
    assert made.data[0].embedding == pytest.approx(made.data[2].embedding, abs=1e-6)
    assert made.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1, abs=1e-5) and made.usage.prompt_tokens > 6


def test_models_are_listed_with_their_hashes(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["wall", "wall-tuned", "sentences"]
    assert client.models.retrieve("wall-tuned").model_dump()["adapter_sha256"] == ADAPTER


def test_refusals_are_openai_s(client: openai.OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], **options: Any) -> dict[str, Any]:
        given: Any = {"model": "wall", "messages": QUESTION, "max_tokens": 4, **options}
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**given)
        body: Any = caught.value.body
        assert set(body) == {"message", "type", "param", "code"} and body["message"]
        return dict(body)

    assert refused(openai.NotFoundError, model="roof")["code"] == "model_not_found"
    assert refused(openai.BadRequestError, temperature=3)["param"] == "temperature"
    assert refused(openai.BadRequestError, frequency_penalty=1)["param"] == "frequency_penalty"
    assert refused(openai.BadRequestError, extra_body={"top_k": 3})["code"] == "unknown_parameter"
    assert refused(openai.BadRequestError, messages=[])["param"] == "messages"
    assert refused(openai.BadRequestError, messages=[{"role": "tool", "content": "x"}])["param"] == "messages.0.role"
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
    assert refused(openai.BadRequestError, messages=[image])["param"] == "messages.0.content.0.type"
    assert "at most 16 items" in refused(openai.BadRequestError, stop=["a"] * 17)["message"]
    asks_usage = refused(openai.BadRequestError, stream_options={"include_usage": True})
    assert "stream_options goes with stream" in asks_usage["message"]
    with pytest.raises(openai.BadRequestError, match="input: List should have at most 256 items"):
        client.embeddings.create(model="sentences", input=["x"] * 300)
    with pytest.raises(openai.BadRequestError, match=r"input\.1: Input should be a valid string; got 2"):
        client.embeddings.create(model="sentences", input=["x", 2])  # type: ignore[list-item]  # what is refused
    assert refused(openai.BadRequestError, max_tokens=4000)["code"] == "context_length_exceeded"
    assert refused(openai.BadRequestError, max_tokens=4000, stream=True)["code"] == "context_length_exceeded"
    assert refused(openai.BadRequestError, tools=[{"type": "function", "function": {"name": "f"}}])["param"] == "tools"
    too_long = refused(openai.APIStatusError, messages=[{"role": "user", "content": "x" * (1 << 17)}])
    assert "larger than 65536 bytes" in too_long["message"]


def test_what_is_no_route_or_no_json_is_told_in_the_same_form(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as plain:
        assert plain.get("/healthz").json() == {"status": "ok"}
        assert plain.get("/v1/nothing").json()["error"]["code"] == "unknown_url"
        assert plain.get("/openapi.json").status_code == 404 == plain.get("/docs").status_code
        assert plain.get("/v1/chat/completions").status_code == 405
        assert plain.post("/v1/chat/completions", content=b"{}").status_code == 415
        json_type = {"Content-Type": "application/json"}
        assert "no JSON" in plain.post("/v1/completions", content=b"{", headers=json_type).json()["error"]["message"]
        assert plain.post("/v1/completions", content=b"\xff", headers=json_type).status_code == 400
        assert plain.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
        metrics = plain.get("/metrics").text
        assert 'confide_serving_tokens_total{kind="completion",model="wall"}' in metrics


@pytest.mark.parametrize("junk", [b"null", b"[]", b"{}", b'"a"', b"-1", b"[-1]"])
def test_a_malformed_body_is_not_listed_to_its_end(junk: bytes) -> None:
    """A megabyte of it kept the process busy for seconds, in which nobody was answered."""
    many = b"[" + b",".join([junk] * 50_000) + b"]"
    for kind, field in ((CompletionRequest, b"prompt"), (ChatRequest, b"messages"), (EmbeddingRequest, b"input")):
        with pytest.raises(ValidationError) as refused:
            kind.model_validate_json(b'{"model":"m","' + field + b'":' + many + b"}")
        assert refused.value.error_count() < 20


class Leaflets:
    """Documents of one organization: the text of one leaflet. (The real ones are in confide_server.rag.)"""

    def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
        if question == "damaged":
            raise StateError("/srv/library/catalogue.json is damaged")
        if (organization, set(collections)) != ("clinic", {"leaflets"}):
            raise PolicyRefusal("not there")
        cited = {"start_index": 0, "end_index": 13, "title": "fees", "url": "confide:clinic/leaflets/1#char=0,9"}
        return Cited('"Nine euros" [1]', [{"type": "url_citation", "url_citation": cited}])


class OneReader(OpenAccess):
    """A key for one collection that is there, and one that is not."""

    async def caller(self, authorization: str | None, address: str) -> Caller:
        return Caller("1", "desk", ("*",), ("clinic/leaflets", "clinic/gone"))


def test_answers_from_documents_have_citations_for_readers_only(base: Path) -> None:
    engine = LocalEngine(AdaptedModel(base, "cpu")).start()
    catalogue = Catalogue()
    catalogue.point(Target("wall", engine, BASE))
    app = build_app(Parts(catalogue, OneReader(), documents=Leaflets()))
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        def ask(*collections: str, **options: Any) -> Any:
            more = {"collections": list(collections)}
            return client.chat.completions.create(model="wall", messages=QUESTION, extra_body=more, **options)

        message = ask("clinic/leaflets").choices[0].message
        assert message.content == '"Nine euros" [1]' and message.annotations
        assert message.annotations[0].url_citation.url.startswith("confide:clinic/leaflets/")
        chunks = list(ask("clinic/leaflets", stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == message.content
        assert chunks[-1].choices[0].delta.model_dump()["annotations"] == [a.model_dump() for a in message.annotations]
        refusals = []
        for names in (["clinic/gone"], ["bank/accounts"], ["clinic/leaflets", "bank/accounts"]):
            with pytest.raises(openai.NotFoundError) as refused:
                ask(*names)
            refusals.append(str(refused.value).replace(names[-1], ""))
        assert len(set(refusals)) == 1, "what is there is not told"
        with pytest.raises(openai.BadRequestError, match="no ORGANIZATION/COLLECTION"):
            ask("leaflets")
        with pytest.raises(openai.BadRequestError, match="collections: List should have at least 1 item"):
            ask()  # left to the model, the answer would be words of no document
        with pytest.raises(openai.NotFoundError, match="is not there, or this key"):
            ask(f"clinic/{'x' * 64}")
        with pytest.raises(openai.BadRequestError, match="stop out"):
            ask("clinic/leaflets", stop=["euros"])
        spoken = [*QUESTION, {"role": "assistant", "content": "Nine euros."}]
        with pytest.raises(openai.BadRequestError, match="the last message is the question"):
            body = {"collections": ["clinic/leaflets"]}
            client.chat.completions.create(model="wall", messages=spoken, extra_body=body)
        with pytest.raises(openai.InternalServerError, match="cannot be read now") as down:
            damaged: Any = [{"role": "user", "content": "damaged"}]
            client.chat.completions.create(model="wall", messages=damaged, extra_body=body)
        assert down.value.status_code == 503 and "/srv" not in str(down.value)
    asyncio.run(engine.close())


def test_questions_to_slow_documents_hold_up_nobody_else(base: Path) -> None:
    """Two hundred wait for documents that do not answer: the rest is refused, and other routes answer."""
    release = threading.Event()

    class Slow:
        def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
            assert release.wait(60)
            return Cited("late")

    async def crowd(url: str) -> tuple[int, int]:
        body = {"model": "wall", "messages": QUESTION, "collections": ["clinic/leaflets"]}
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=250), timeout=60) as client:
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(200)]
            refused = 0
            for done in asyncio.as_completed(asked):
                reply = await done
                refused += reply.status_code == 429 and reply.headers["Retry-After"] == "5"
                if refused == 200 - 64:
                    break
            plain = await client.post("/v1/completions", json={"model": "wall", "prompt": "x", "max_tokens": 2})
            release.set()
            replies = await asyncio.gather(*asked)
            return plain.status_code, sum(reply.status_code == 200 for reply in replies)

    engine = LocalEngine(AdaptedModel(base, "cpu")).start()
    catalogue = Catalogue()
    catalogue.point(Target("wall", engine, BASE))
    with served(build_app(Parts(catalogue, OneReader(), documents=Slow()))) as url:
        assert asyncio.run(crowd(url)) == (200, 64)
    asyncio.run(engine.close())


def test_the_terminal_asks_an_endpoint(url: str, tmp_path: Path) -> None:
    from confide_client.commands.chat import chat
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(chat)

    def said(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--prompt", QUESTION[0]["content"], "--max-tokens", "12"])

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        made = client.chat.completions.create(model="wall", messages=QUESTION, temperature=0, max_tokens=12)
    (tmp_path / "key").write_text("confide-none\n")
    answered = said("--url", f"{url}/v1", "--key-file", str(tmp_path / "key"))
    assert answered.exit_code == 0 and paragraph(made.choices[0].message.content) in answered.output
    assert "does not exist here" in str(said("--url", f"{url}/v1", "--model", "roof").exception)
    assert "cannot be reached" in str(said("--url", "http://127.0.0.1:9/v1").exception)
    assert "name a model here" in str(said().exception)


def test_another_client_is_understood_too(url: str, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's InferenceClient sends requests of its own making."""
    from huggingface_hub import InferenceClient, constants
    from huggingface_hub.errors import HfHubHTTPError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it asks the endpoint that it is given, and no hub
    expected = client.chat.completions.create(model="wall", messages=QUESTION, temperature=0, max_tokens=10)
    with InferenceClient(base_url=f"{url}/v1", api_key="none", timeout=60) as other:
        options: Any = {"model": "wall", "messages": QUESTION, "temperature": 0.0, "max_tokens": 10, "logprobs": True}
        whole = other.chat_completion(**options)
        assert whole.choices[0].message.content == expected.choices[0].message.content
        assert whole.usage.completion_tokens == expected.usage.completion_tokens  # type: ignore[union-attr]
        streamed = "".join(c.choices[0].delta.content or "" for c in other.chat_completion(stream=True, **options))
        assert streamed == expected.choices[0].message.content
        with pytest.raises(HfHubHTTPError, match="404"):
            other.chat_completion(messages=QUESTION, model="roof")
