"""Whatever an endpoint answers, and whatever lies in an adapter's folder, is used or refused by name."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from confide.errors import ConfideError, TransportError
from confide_client.endpoint import Endpoint
from confide_server.serving.adapters import AdapterStore
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.coordinator_world import World
from tests.served_models import served, signed_adapter, strong_llama

SENT: list[bytes] = [b""]
_FIELDS = [
    "choices",
    "delta",
    "content",
    "annotations",
    "url_citation",
    "title",
    "url",
    "error",
    "message",
    "data",
    "id",
]
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = FastAPI()

    async def reply(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield SENT[0]

        return StreamingResponse(body())

    app.add_route("/v1/{path:path}", reply, methods=["GET", "POST"])
    with served(app) as url:
        yield url


def events(documents: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in documents) + b"data: [DONE]\n\n"


@settings(max_examples=40)
@given(sent=st.binary(max_size=60) | st.lists(_JUNK, max_size=3).map(events) | _JUNK.map(json.dumps).map(str.encode))
def test_whatever_an_endpoint_sends_is_an_answer_or_a_named_failure(url: str, sent: bytes) -> None:
    SENT[0] = sent
    endpoint = Endpoint(f"{url}/v1")
    for ask in (endpoint.models, lambda: list(endpoint.answer("m", [{"role": "user", "content": "?"}]))):
        try:
            assert all(isinstance(piece, str) for piece in ask())
        except TransportError:
            continue


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterStore, bytes]:
    root = tmp_path_factory.mktemp("export")
    world, base = World.create(root / "world", nodes=1), strong_llama(root)
    folder = signed_adapter(world, base, root / "adapter", 1)
    return folder, AdapterStore(root / "store", base), world.consortium.root.public


def _same_document(one: bytes, other: bytes) -> bool:
    """A manifest that is written otherwise says the same."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


_VALUES = (
    st.none() | st.booleans() | st.integers(-3, 99) | st.text(max_size=4) | st.lists(st.integers(0, 3), max_size=2)
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_altered_folder_is_refused_by_name(
    export: tuple[Path, AdapterStore, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    """One field, or some bytes, of one file."""
    folder, store, root = export
    altered = tmp_path / "altered"
    shutil.rmtree(altered, ignore_errors=True)
    shutil.copytree(folder, altered)
    name = data.draw(st.sampled_from(["manifest.json", "adapter_config.json", "adapter_model.safetensors"]))
    whole = (folder / name).read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        document = json.loads(whole)
        field = data.draw(st.sampled_from(sorted(document)))
        value = data.draw(_VALUES)
        if document[field] == value:
            return
        changed = json.dumps({**document, field: value}).encode()
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        changed = whole[:place] + data.draw(st.binary(max_size=3)) + whole[place + 1 :]
    (altered / name).write_bytes(changed)
    if changed != whole and not _same_document(changed, whole):
        with pytest.raises(ConfideError):
            store.keep(altered, root)
