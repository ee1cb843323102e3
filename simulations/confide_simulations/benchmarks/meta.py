"""What every benchmark result carries, and how CPU time and memory are taken.

CPU time, not wall time: other work on the machine then inflates a figure less. It still inflates it (shared caches
and memory), so compare only figures of one run.

>>> sorted(meta(seed=0, config={}))
['config', 'date', 'hardware', 'seed', 'versions']
"""

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from confide import __version__
from confide.files import write_atomic

_PACKAGES = (
    "flwr",
    "numpy",
    "numba",
    "cryptography",
    "blake3",
    "torch",
    "transformers",
    "peft",
    "opacus",
    "ray",
    "tenseal",
)
_TELLING = frozenset({"avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "sha_ni", "vaes"})
"""Flags of a processor by which figures differ by more than its clock explains."""
_EMULATION = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "CONFIDE_PRECISION")
_MIB = 2**20


def meta(*, seed: int, config: Mapping[str, object]) -> dict[str, object]:
    """Date, hardware, versions, seed and full configuration of a run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
            "cpu_family": _cpu_field("cpu family"),
            "cpu_flags": sorted(_TELLING & set(_cpu_field("flags").split())),
            "environment": {name: os.environ[name] for name in _EMULATION if name in os.environ},
            "logical_cpus": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_average_1min": round(os.getloadavg()[0], 2),
            "platform": platform.platform(),
        },
        "versions": {"confide": __version__, "python": platform.python_version()} | _versions(),
        "seed": seed,
        "config": dict(config),
    }


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """Write a benchmark's JSON, readable and with its keys in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode(), mode=0o644)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time, user and system, of all threads of this process while `work` runs."""
    start = time.process_time()
    work()
    return time.process_time() - start


def median_cpu_seconds(work: Callable[[], Any], repetitions: int) -> float:
    """Median of several runs, after one that is not counted (compilation, caches)."""
    work()
    return statistics.median(cpu_seconds(work) for _ in range(repetitions))


def peak_mib(work: Callable[[], Any]) -> float | None:
    """Growth of the resident set at its highest while `work` runs; None where the kernel does not say (not Linux)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_mib("VmRSS")
        work()
        return round(_status_mib("VmHWM") - before, 1)
    except OSError:
        return None


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / _MIB
    raise OSError(f"/proc/self/status has no {field}")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_field(name: str) -> str:
    """Of the first processor in /proc/cpuinfo; empty where that does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name), "")
