"""How fast this machine is for a run, measured once and remembered: `speed.json` in the state folder.

The key is all that the figure depends on: the shape of the local step, the node's settings, the processor and the
libraries. Nothing in it comes from records. The file is a cache: without it, or damaged, it is measured again.
"""

import hashlib
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from confide import __version__, canonical
from confide.errors import StateError
from confide.files import write_atomic
from confide.runs.deadline import Speed
from confide.runs.specification import Specification

from confide_client.state import Settings, read_json

MOST_KEPT = 64
_TRAINING = ("batch_size", "micro_batch_size", "optimizer", "gradient_checkpointing", "compile", "autocast")
_PROCESSOR = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""Environment variables that decide how fast torch is."""


@runtime_checkable
class Timed(Protocol):
    """A trainer that can say how fast it is."""

    def measure(self) -> Speed | None:
        """On made-up records; None where it cannot tell."""


class Speeds:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, specification: Specification, settings: Settings) -> Speed | None:
        """What was measured for such a step on this machine, or None."""
        found = self._read().get(shape_of(specification, settings))
        return None if found is None else Speed(step_s=found["step_s"], evaluation_s=found["evaluation_s"])

    def _read(self) -> dict[str, Any]:
        try:
            return read_json(self._path)
        except StateError:
            return {}

    def keep(self, specification: Specification, settings: Settings, speed: Speed) -> None:
        """Remember it; the oldest ones are forgotten."""
        known = self._read()
        entry = {"step_s": speed.step_s, "evaluation_s": speed.evaluation_s, "at": time.time()}
        known[shape_of(specification, settings)] = entry
        newest = sorted(known.items(), key=lambda item: -item[1]["at"])[:MOST_KEPT]
        write_atomic(self._path, canonical.encode(dict(newest)))


def shape_of(specification: Specification, settings: Settings) -> str:
    """64 hex characters: all that a step's time depends on, and nothing else."""
    document = specification.model_dump(mode="json", include={"model", "adapter", "method"})
    document["training"] = specification.training.model_dump(mode="json", include=set(_TRAINING))
    document["trains"] = specification.training.local_steps > 0
    document["privacy"] = specification.privacy.unit
    document["settings"] = settings.model_dump(mode="json", exclude={"models", "coordinator", "proxy"})
    document["machine"] = [_processor(), os.cpu_count(), *(os.environ.get(name, "") for name in _PROCESSOR)]
    document["release"] = [__version__, importlib.metadata.version("torch")]
    return hashlib.sha256(canonical.encode(document)).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
