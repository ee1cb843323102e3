"""What a node tells of its machine, as far as its policy lets it: for people who watch, nothing is decided by it.

    told(("cores", "memory"), uses_torch=False)       # cores: 2, memory_gib: 16

Nothing here follows from records, and nothing changes while the machine stays the same: free memory and load are not
told.
"""

import os
from collections.abc import Collection
from pathlib import Path

from confide.proto import fleet_pb2

from confide_client.policy.policy import HardwarePart

_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve", "bf16", "i8mm")
"""Names of Linux for what makes training quicker, of x86-64 and Arm."""
_PROCESSOR = Path("/proc/cpuinfo")


def told(parts: Collection[HardwarePart], *, uses_torch: bool) -> fleet_pb2.Hardware:
    """Those parts of this machine. uses_torch: it is loaded for the run, and so knows of accelerators."""
    said = fleet_pb2.Hardware()
    if "cores" in parts:
        said.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    if "memory" in parts:
        said.memory_gib = max(1, round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30))
    if "vector_units" in parts:
        said.vector_units.extend(vector_units(_PROCESSOR) or ["none"])
    if "accelerator" in parts and uses_torch:
        said.accelerator = _accelerator()
    return said


def vector_units(processor: Path) -> list[str]:
    """Those that the first core of Linux's list has, and that we name."""
    try:
        lines = processor.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [unit for unit in _UNITS if unit in flags]


def _accelerator() -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"{count} x {torch.cuda.get_device_name(0)}" if count else "none"
