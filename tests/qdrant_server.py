"""The process of tests/qdrant_front.py: Qdrant's engine, which can be refused, killed and started again."""

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confide.children import bound

from tests import qdrant_front
from tests.qdrant_front import Fault


class QdrantServer:
    """The process. It can be killed and started again over the same folder, at the same port."""

    def __init__(self, folder: Path, package: Path, **settings: Any) -> None:
        self._folder, self._package, self._settings = folder, package, settings
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """As `open_store` takes it."""
        return f"qdrant+http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it listens."""
        settings = json.dumps({**self._settings, "port": self.port})
        command = [sys.executable, qdrant_front.__file__, str(self._folder), str(self._package), settings]
        self._child = subprocess.Popen(bound(command), stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        with self._child.stdout as told:
            self.port = int(told.readline())

    def stop(self) -> None:
        """SIGKILL: nothing is written on the way out."""
        self._child.kill()
        self._child.wait()

    def died(self) -> bool:
        """Whether it was killed by a fault."""
        return self._child.wait(60) == -signal.SIGKILL

    def suffer(self, *faults: Fault) -> None:
        """What the next requests meet."""
        self._own("/faults", json.dumps([vars(one) for one in faults]).encode())

    def seen(self) -> list[dict[str, Any]]:
        """With record=True every request that got past the key: method, path with query, body."""
        found: list[dict[str, Any]] = json.loads(self._own("/seen", None))
        return found

    def _own(self, path: str, data: bytes | None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=60) as answer:
            content: bytes = answer.read()
            return content


@contextlib.contextmanager
def qdrant_server(folder: Path, package: Path, **settings: Any) -> Iterator[QdrantServer]:
    """One that ends with the block. settings: see qdrant_front.Server."""
    server = QdrantServer(folder, package, **settings)
    try:
        yield server
    finally:
        server.stop()
