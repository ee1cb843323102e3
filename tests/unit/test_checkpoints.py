"""Checkpoints: one conformance suite over a folder, fsspec's memory and S3; and which files are never removed.

S3 is moto's server, in an environment of its own, since it pins what ours pins otherwise: CONFIDE_TEST_MOTO names its
`moto_server` (python -m venv DIR && DIR/bin/pip install "moto[server]"). Without it those tests are skipped.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import numpy as np
import pytest
from confide.errors import StateError
from confide.files import mapped
from confide_server.admin_cli import server as command
from confide_server.coordinator.process import Coordinator, Settings, at_rest, write_settings
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Checkpoint, Round, Run
from confide_server.state.garbage import collect, find
from sqlalchemy import select
from typer.testing import CliRunner

from tests.coordinator_world import World, specification
from tests.fleet_node import FleetNode
from tests.integration.test_fleet_run import SIZE, wait_end

KINDS = ("folder", "memory", "s3")
MOTO = os.environ.get("CONFIDE_TEST_MOTO") or shutil.which("moto_server") or ""


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The endpoint of an S3 of our own, with a bucket."""
    if not MOTO:
        pytest.skip("no moto_server; see this module's docstring")
    pytest.importorskip("s3fs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{endpoint}/moto-api/", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty place of each kind."""
    name = uuid.uuid4().hex
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    if request.param == "memory":
        return f"memory://{name}"
    endpoint = request.getfixturevalue("moto")
    for key, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(key, value)
    fsspec.filesystem("s3").mkdir(f"confide-{name}")
    return f"s3://confide-{name}/checkpoints"


def test_what_is_put_is_there_under_its_hash_once(url: str) -> None:
    store, data = CheckpointStore(url), os.urandom(300_000)
    assert store.stored() == []
    name = store.put(data, "bin")
    assert name == f"{hashlib.sha256(data).hexdigest()}.bin"
    assert store.put(data, "bin") == name
    assert [(one.name, one.bytes) for one in store.stored()] == [(name, 300_000)]
    again = CheckpointStore(url)
    assert (again.get(name), again.size(name)) == (data, len(data))
    assert b"".join(again.chunks(name, 1 << 16)) == data
    assert max(len(chunk) for chunk in again.chunks(name, 1 << 16)) == 1 << 16


def test_empty_files_and_many_parts(url: str) -> None:
    store, big = CheckpointStore(url), os.urandom(1 << 20) * 12  # more than S3 takes in one part
    for data in (b"", big):
        name = store.put(memoryview(data), "safetensors")
        assert b"".join(store.chunks(name, 1 << 20)) == store.get(name) == data


def test_memory_does_not_grow_with_what_is_stored_and_read(url: str, tmp_path: Path) -> None:
    if url.startswith("memory:"):
        pytest.skip("it keeps files in memory")
    most = 12 << 20 if "://" not in url else 80 << 20  # of S3 some parts of 16 MiB are on their way
    size = 2 * most
    with (tmp_path / "big").open("w+b") as file:
        file.truncate(size)  # takes no space
        file.write(b"begins")
        store = CheckpointStore(url)
        tracemalloc.start()
        try:
            name = store.put(mapped(file), "bin")
            assert sum(len(chunk) for chunk in store.chunks(name, 1 << 20)) == size
            view = store.view(name)
            assert (len(view), bytes(view[:6])) == (size, b"begins")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < most, f"{peak >> 20} MiB for {size >> 20} MiB"


def test_what_is_missing_or_damaged_is_named(url: str) -> None:
    store = CheckpointStore(url)
    missing = f"{'0' * 64}.bin"
    for read in (store.get, store.size, lambda name: list(store.chunks(name, 10))):
        with pytest.raises(StateError, match="cannot be read"):
            read(missing)
    name = store.put(b"weights", "bin")
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/{name}", b"WEIGHTS")
    with pytest.raises(StateError, match="damaged"):
        store.get(name)
    sent = []
    with pytest.raises(StateError, match="damaged"):
        sent += list(store.chunks(name, 3))


def test_what_is_removed_is_gone_and_may_be_removed_again(url: str) -> None:
    store = CheckpointStore(url)
    name = store.put(b"weights", "bin")
    store.remove(name)
    store.remove(name)
    assert store.stored() == []


# --- garbage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    """A coordinator's folder after a run of three rounds."""
    world = World.create(tmp_path_factory.mktemp("garbage"), nodes=2)
    coordinator = Coordinator(world.server)
    coordinator.start()
    nodes = [FleetNode(world.of(name), coordinator.fleet_port).start() for name in world.node_names]
    run_id = coordinator.book.submit(world.submission(specification(rounds=3), np.zeros(SIZE, dtype="<f4")))
    assert wait_end(coordinator, run_id)[-1].kind == "run_finished"
    for node in nodes:
        node.stop()
    with coordinator.database.transaction() as session:  # as a run with momentum leaves it
        for row in session.scalars(select(Checkpoint).where(Checkpoint.round > 0)):
            row.outer_file = coordinator.book.checkpoints.put(b"state %d" % row.round, "safetensors")
    coordinator.stop()
    yield world, run_id


@pytest.fixture
def world(made: tuple[World, str], tmp_path: Path) -> tuple[Path, str]:
    """A copy of it: (the coordinator's folder, the run's id)."""
    folder = tmp_path / "coordinator"
    shutil.copytree(made[0].server, folder, ignore=shutil.ignore_patterns(".running"))
    return folder, made[1]


def run_gc(folder: Path, *options: str) -> str:
    done = CliRunner().invoke(command.app, ["gc", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_only_what_no_round_names_goes(world: tuple[Path, str]) -> None:
    folder, _ = world
    with at_rest(folder) as (database, store):
        before = {one.name for one in store.stored()}
        orphan = store.put(b"of a crash before its commit", "bin")
        (folder / "checkpoints" / f".{'0' * 64}.bin.1.part").write_bytes(b"half")
        assert {one.name for one in find(database, store).orphans} == {orphan, f".{'0' * 64}.bin.1.part"}
    assert "2 files that no round names and 0 of work would be removed: 32 bytes" in run_gc(folder, "--dry-run")
    with at_rest(folder) as (database, store):
        assert len(store.stored()) == len(before) + 2, "a dry run removes nothing"
    assert "were removed" in run_gc(folder)
    with at_rest(folder) as (database, store):
        assert {one.name for one in store.stored()} == before
    assert "0 files that no round names and 0 of work" in run_gc(folder)


def test_of_a_run_that_ended_long_ago_the_work_goes_and_every_model_stays(world: tuple[Path, str]) -> None:
    folder, run_id = world
    assert "0 of work" in run_gc(folder, "--work-older-days", "30"), "it ended just now"
    assert "6 of work were removed" in run_gc(folder, "--work-older-days", "0")
    with at_rest(folder) as (database, store):
        with database.reading() as session:
            models = session.scalars(select(Checkpoint.model_file).where(Checkpoint.run_id == run_id)).all()
            assert set(session.scalars(select(Checkpoint.outer_file))) == {""}
            assert set(session.scalars(select(Round.mean_file))) == {""}
            assert all(session.scalars(select(Round.record))), "what was signed stays"
        assert len(models) == 4
        assert {one.name for one in store.stored()} == set(models)
        for name in models:
            store.get(name)


def test_a_file_that_is_a_model_and_somebodys_work_stays(world: tuple[Path, str]) -> None:
    folder, run_id = world
    with at_rest(folder) as (database, store):
        with database.transaction() as session:
            model = session.get_one(Checkpoint, (run_id, 1)).model_file
            session.get_one(Round, (run_id, 1)).mean_file = model
        found = find(database, store, work_older_s=0.0, now=time.time() + 1)
        assert model not in {one.name for one in found.files}
        collect(database, store, found)
        store.get(model)


def test_an_open_runs_work_stays(world: tuple[Path, str]) -> None:
    folder, run_id = world
    with at_rest(folder) as (database, store):
        with database.transaction() as session:
            run = session.get_one(Run, run_id)
            run.status, run.ended_at = "running", None
        assert not find(database, store, work_older_s=0.0, now=time.time() + 1e9).files


def test_a_coordinator_that_runs_is_left_alone(tmp_path: Path) -> None:
    world = World.create(tmp_path, nodes=1)
    coordinator = Coordinator(world.server)
    try:
        with pytest.raises(StateError, match="runs on"), at_rest(world.server):
            pass
    finally:
        coordinator.stop()
    with at_rest(world.server) as (database, store):
        assert not find(database, store).files


def test_a_crash_while_collecting_leaves_files_and_never_a_gap(
    world: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = world
    with at_rest(folder) as (database, store):
        found = find(database, store, work_older_s=0.0, now=time.time() + 1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(store, "remove", _interrupt)
            collect(database, store, found)
        left = find(database, store)
        assert {one.name for one in left.orphans} == {one.name for one in found.work}, "the next one takes them"


def _interrupt(name: str) -> None:
    raise KeyboardInterrupt


def test_settings_name_where_checkpoints_are(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "somewhere"
    folder.mkdir()
    write_settings(folder, Settings(checkpoints=url))
    with at_rest(folder) as (_, store):
        assert store.url == url
        store.put(b"x", "bin")
