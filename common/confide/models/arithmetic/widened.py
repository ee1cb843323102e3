"""A float32 copy of a base model that is stored narrower, made once on a machine and shared by its processes.

What computes in float32 needs the weights in float32. Read from a file that holds them so, they stay pages of that
file: mapped, in memory once however many processes use them, and dropped when memory is short. The copy lies in
`$XDG_CACHE_HOME/confide/float32/<hash of the model>`, private to the user, and is checked against its own hashes.

    folder = widened(base_folder)  # the folder itself where it is float32 already, or no copy can be kept
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from confide.files import cache_folder, fsync_folder, private_folder, sha256_file, write_atomic
from confide.models.store import float32_copy, folder_digest, model_files

log = logging.getLogger(__name__)

_HASHES = "hashes.json"
_NARROW = {"BF16", "F16"}
_SPARE_BYTES = 1 << 30
"""Of the disk, that a copy must leave free."""


def widened(base_folder: Path) -> Path:
    """A folder with the same model, its weights in float32. `base_folder` where that is needless or cannot be done."""
    if not is_narrow(base_folder):
        return base_folder
    try:
        return _copy_of(base_folder)
    except (OSError, RuntimeError) as error:
        # Home may be read-only or full: each process then has its own float32 weights, in memory.
        log.info("no float32 copy of the base can be kept in %s: %s", cache_folder(), error)
        return base_folder


def is_narrow(base_folder: Path) -> bool:
    """Whether a tensor of a model is stored in 16 bits."""
    return any(tensor["dtype"] in _NARROW for path in _weights(base_folder) for tensor in _header(path).values())


def _weights(base_folder: Path) -> list[Path]:
    return [path for name, path in model_files(base_folder).items() if name.endswith(".safetensors")]


def _header(path: Path) -> dict[str, dict[str, str]]:
    """Name to {dtype, ...} of a safetensors file; empty for one that is damaged, which loading then refuses by name."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, path.stat().st_size)))
        return {name: tensor for name, tensor in header.items() if name != "__metadata__" and "dtype" in tensor}
    except (OSError, ValueError, struct.error, AttributeError, TypeError):
        return {}


def _copy_of(base_folder: Path) -> Path:
    target = float32_copy(folder_digest(base_folder))
    private_folder(target.parent)
    with _only_one(target.with_suffix(".lock")):
        if target.is_dir() and not _holds(target):
            log.warning("the float32 copy in %s was altered; it is made again", target)
            shutil.rmtree(target)
        if not target.exists():
            _make(base_folder, target)
    return target


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One process at a time; the others of this machine wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holds(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / _HASHES).read_bytes())
        return bool(hashes) and all(sha256_file(folder / name) == found for name, found in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(base_folder: Path, target: Path) -> None:
    need = 2 * sum(path.stat().st_size for path in _weights(base_folder)) + _SPARE_BYTES
    if shutil.disk_usage(target.parent).free < need:
        raise OSError(f"it needs {need >> 20} MiB free")
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        for name, path in model_files(base_folder).items():
            if path in _weights(base_folder):
                _widen(path, staging / name)
            else:
                shutil.copyfile(path, staging / name)
            (staging / name).chmod(0o600)
        hashes = {path.name: sha256_file(path) for path in sorted(staging.iterdir())}
        write_atomic(staging / _HASHES, json.dumps(hashes).encode())
        staging.rename(target)
        fsync_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _widen(source: Path, target: Path) -> None:
    """File by file: a model in many of them is never in memory as a whole."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    wide = {name: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for name, t in tensors.items()}
    save_file(wide, target, metadata={"format": "pt"})
