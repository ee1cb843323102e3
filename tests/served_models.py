"""Tiny models with strong random weights, adapters to them, and what is served of them."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from confide.codec.tensors import model_digest
from confide.identity.keys import SigningKey
from confide.identity.submission import sign_submission
from confide.models.export import write_adapter, write_merged
from confide.models.store import folder_digest
from confide.models.trainable import initial_state, schema_of
from confide.runs.specification import Specification
from confide.sealing.manifest import sign_manifest
from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.process import Serving, Settings

from tests.coordinator_world import World
from tests.tiny_models import tiny_llama
from tests.training_specs import specification


def strong_llama(root: Path, **options: Any) -> Path:
    """A Llama whose answers vary: the small weights of a fresh model would only repeat the last token."""
    fresh, spec = tiny_llama(root / "fresh", **options), specification(adapter={"kind": "full"})
    noise = torch.Generator().manual_seed(2)
    state = {name: t + 0.3 * torch.randn(t.shape, generator=noise) for name, t in initial_state(spec, fresh).items()}
    return write_merged(root / "llama", state, {}, spec, fresh)


def strong_adapter(base: Path, folder: Path, seed: int, **adapter: Any) -> Path:
    """An adapter of this base that changes what it says."""
    spec = specification(model={"sha256": folder_digest(base)}, adapter=adapter)
    noise = torch.Generator().manual_seed(seed)
    state = {name: t + torch.randn(t.shape, generator=noise) for name, t in initial_state(spec, base).items()}
    return write_adapter(folder, state, {}, spec, base)


def slow_steps(patch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """In this process: a long answer takes many times what a test needs to leave it, on a busy machine too."""
    forward = AdaptedModel.forward

    def slow(self: AdaptedModel, *given: Any, **named: Any) -> torch.Tensor:
        time.sleep(seconds)
        return forward(self, *given, **named)

    patch.setattr(AdaptedModel, "forward", slow)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application on a free port of this machine; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive(), "the server ends"


@contextmanager
def running(settings: Settings) -> Iterator[tuple[Serving, int]]:
    """A serving process's parts in a thread of this one."""
    serving, ready, ports = Serving(settings), threading.Event(), []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(serving.run(lambda port: (ports.append(port), ready.set())))  # type: ignore[func-returns-value]
        except BaseException as error:
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(120) and not failure, failure
    try:
        yield serving, ports[0]
    finally:
        assert serving.server is not None
        serving.server.should_exit = True
        thread.join(60)
        assert not thread.is_alive() and not failure


def signed_manifest(world: World, spec: Specification, state: Mapping[str, torch.Tensor], base: Path) -> dict[str, Any]:
    """What the coordinator exports of a run that ended with its first model: signed by everybody who has to."""
    data = schema_of(spec, base).encode(state)
    digest, body = model_digest(data), spec.canonical_bytes()
    administrator = SigningKey.load(world.of("administrator") / "identity.key")
    submission = sign_submission(administrator, "administrator", body, digest)
    manifest = {
        "run_id": submission.run_id,
        "nonce": submission.nonce.hex(),
        "expires_at": submission.expires_at,
        "administrator": "administrator",
        "signature": submission.signature.hex(),
        "specification": json.loads(body),
        "specification_sha256": spec.digest,
        "base_model_sha256": spec.model.sha256,
        "sealing": spec.sealing.kind,
        "round": 0,
        "rounds": [],
        "chain": [digest.hex()],
        "model_sha256": digest.hex(),
        "rosters": [json.loads(world.consortium.roster.signed)],
        "receipts": [],
    }
    return sign_manifest(manifest, "coordinator", SigningKey.load(world.server / "identity.key"))


def signed_adapter(world: World, base: Path, folder: Path, seed: int, **adapter: Any) -> Path:
    """An export with strong random tensors, whose manifest holds under the world's root."""
    spec = specification(model={"sha256": folder_digest(base)}, adapter=adapter)
    noise = torch.Generator().manual_seed(seed)
    state = {name: t + torch.randn(t.shape, generator=noise) for name, t in initial_state(spec, base).items()}
    return write_adapter(folder, state, signed_manifest(world, spec, state, base), spec, base)
