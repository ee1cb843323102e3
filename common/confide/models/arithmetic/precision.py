"""In which arithmetic this process computes: float32, or bfloat16 where that is faster here.

A specification says what is stored and what travels. The arithmetic is the machine's: many processors have no unit for
bfloat16, and emulate its products at a tenth of float32's speed and less. So both products are measured once a process,
for a moment, when they are first needed.

    with precision.autocast(specification, device): loss = ...
    model = load_base(specification, folder, precision.base_dtype(specification, device))

`CONFIDE_PRECISION=float32` or `bfloat16` in the environment, or `prefer` (a node's node.json), settle it unmeasured.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from confide.errors import StateError
from confide.runs.specification import Specification

log = logging.getLogger(__name__)

Arithmetic = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]
VARIABLE = "CONFIDE_PRECISION"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_GLANCE, _LOOK = (32, 256), (256, 512)
"""Tokens and width of a layer. The first tells an emulated product, cheaply; the second one from the other unit's."""
_HOPELESS = 3.0
_TURNS = 5


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why in words for a log."""

    arithmetic: Arithmetic
    why: str


class _Chosen:
    """Of this process. Devices may differ; the setting holds for all."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.setting: Precision = "auto"
        self.by_device: dict[str, Choice] = {}


_chosen = _Chosen()


def prefer(setting: Precision) -> None:
    """This machine's setting, for the whole process. The environment's goes before it."""
    with _chosen.lock:
        if setting != _chosen.setting:
            _chosen.setting = setting
            _chosen.by_device.clear()


def default_device() -> str:
    """Where a model of this machine runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choice(device: torch.device | str = "cpu") -> Choice:
    """What this process computes in on a device, where a run leaves it open; logged once.

    Raises StateError for an environment variable that names no arithmetic.
    """
    kind = torch.device(device).type
    with _chosen.lock:
        if kind not in _chosen.by_device:
            made = _choose(_setting(), kind)
            log.info("computing in %s: %s", made.arithmetic, made.why)
            _chosen.by_device[kind] = made
        return _chosen.by_device[kind]


def _setting() -> Precision:
    named = os.environ.get(VARIABLE, "")
    for known in get_args(Precision):
        if named == known != "auto":
            return known  # type: ignore[no-any-return]
    if named not in ("", "auto"):
        raise StateError(f"{VARIABLE} is {named!r}; allowed are {', '.join(get_args(Precision))}. Correct or unset it")
    return _chosen.setting


def _choose(setting: Precision, kind: str) -> Choice:
    if setting != "auto":
        return Choice(setting, "as this machine is set")
    if kind == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return Choice("bfloat16", "the GPU has it") if able else Choice("float32", "the GPU has no bfloat16")
    if kind != "cpu":
        return Choice("float32", f"bfloat16 was not tried on {kind}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for each other where other work runs beside them
    try:
        speeds = _flop_per_s(*_GLANCE)
        if speeds["float32"] < _HOPELESS * speeds["bfloat16"]:
            speeds = _flop_per_s(*_LOOK)
    finally:
        torch.set_num_threads(threads)
    why = "a core makes " + ", ".join(f"{speed / 1e9:.3g} GFLOP/s in {name}" for name, speed in speeds.items())
    return Choice("bfloat16" if speeds["bfloat16"] > speeds["float32"] else "float32", why)


def _flop_per_s(rows: int, width: int) -> dict[str, float]:
    """By arithmetic: of a layer's forward product and the one that brings its gradient back.

    The two take different ways through torch: where one is merely slow, the other may be a hundred times slower.
    Arithmetics take turns, and the best turn counts, so that other work on the machine does not decide.
    """
    works: dict[tuple[str, str], Callable[[], object]] = {}
    generator = torch.Generator().manual_seed(0)
    for name, dtype in DTYPES.items():
        x = torch.randn(rows, width, generator=generator).to(dtype)
        weight = torch.randn(width, width, generator=generator).to(dtype)
        works[name, "forward"] = partial(F.linear, x, weight)
        works[name, "backward"] = partial(torch.mm, x, weight)
    best = dict.fromkeys(works, math.inf)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for turn in range(_TURNS):
            for key, work in works.items():
                began = time.perf_counter()
                work()
                if turn:  # the first call prepares kernels
                    best[key] = min(best[key], time.perf_counter() - began)
    return {name: 4.0 * rows * width**2 / (best[name, "forward"] + best[name, "backward"]) for name in DTYPES}


def used(specification: Specification, device: torch.device | str = "cpu") -> Arithmetic:
    """What a run's products are taken in here: bfloat16 only where the run allows it and this machine is faster so."""
    allowed = specification.model.dtype == "bfloat16" or specification.training.autocast
    return choice(device).arithmetic if allowed else "float32"


def base_dtype(specification: Specification, device: torch.device | str = "cpu") -> torch.dtype:
    """Of the frozen weights of a run's base in memory."""
    return DTYPES[specification.model.dtype] if used(specification, device) == "bfloat16" else torch.float32


def autocasts(specification: Specification, device: torch.device | str) -> bool:
    """Whether a run's forward passes take bfloat16 products of float32 tensors here."""
    return specification.training.autocast and used(specification, device) == "bfloat16"


def autocast(specification: Specification, device: torch.device | str) -> torch.autocast:
    """The context of a run's forward passes."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocasts(specification, device))
