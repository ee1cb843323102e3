"""`confide serve` as a real process, and its commands in this one."""

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from confide_server.admin_cli.serve import app
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
_MAIN = "import sys; from confide_server.admin_cli.serve import app; app(sys.argv[1:])"
_SLOW = (
    "import time; from confide_server.serving.engines.adapted_model import AdaptedModel as Slow; step = Slow.forward; "
    "Slow.forward = lambda *given, **named: (time.sleep(0.02), step(*given, **named))[1]; "
)
"""A long answer takes seconds, so that a test can kill the process in the middle of it on a busy machine too."""
READY_S = 240.0


def command(*arguments: str) -> str:
    """What a subcommand prints. Raises what it raises."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


class ServeProcess:
    """One endpoint; `url` once it is ready."""

    def __init__(self, *arguments: str, log: Path, slow: bool = False) -> None:
        self._log = log.open("ab")
        paths = os.pathsep.join(str(ROOT / part) for part in ("server", "client", "common", "simulations"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SLOW + _MAIN if slow else _MAIN, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CONFIDE_PRECISION": "float32"},
        )
        self.url = self._ready(log)

    def _ready(self, log: Path) -> str:
        assert self.process.stdout is not None
        until = time.monotonic() + READY_S
        with selectors.DefaultSelector() as ready:  # select() itself knows no descriptor beyond 1023
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while time.monotonic() < until and not ready.select(1.0):
                pass
        line = self.process.stdout.readline().decode() if self.process.poll() is None else ""
        assert line.startswith("ready: "), log.read_text()[-3000:]
        return line.split()[1].removesuffix("/v1")

    def kill(self) -> None:
        """Without warning."""
        self.process.kill()
        self.end()

    def stop(self) -> int:
        """As an operator does; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> int:
        """Wait for it, and kill it where it does not end."""
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._log.close()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def __enter__(self) -> "ServeProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.end()
