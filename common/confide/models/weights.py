"""Are a model folder's files whole? Checked by their headers, before anything of them is loaded.

A pointer that git-lfs left in a file's place, a file that broke off while it was copied, an index that names tensors
which are not there, or a file outside the folder: each raises ModelError naming the file.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

from confide.errors import ModelError

_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_MOST_HEADER_BYTES = 100_000_000
"""What the safetensors library itself takes."""


def check_whole(files: dict[str, Path]) -> None:
    """files: by name, as confide.models.store.model_files gives them."""
    for name, path in files.items():
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ModelError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull` where it was cloned")
        if name.endswith(".json"):
            _json(path)
    tensors = {name: _tensors(path) for name, path in files.items() if name.endswith(".safetensors")}
    if _INDEX in files and "model.safetensors" not in files:
        _check_index(files[_INDEX], tensors)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not JSON; it broke off or was changed. Copy it again from its source") from None


def _tensors(path: Path) -> frozenset[str]:
    """Names in a safetensors file whose length is what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MOST_HEADER_BYTES
        if length > min(_MOST_HEADER_BYTES, size - 8):
            raise _torn(path, "its header is longer than it is")
        try:
            header = json.loads(file.read(length))
            entries = {name: one for name, one in header.items() if name != "__metadata__"}
            spans = sorted(tuple(map(int, one["data_offsets"])) for one in entries.values())
            sizes = [math.prod(one["shape"]) for one in entries.values()]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            raise _torn(path, "its header is not one of safetensors") from None
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise _torn(path, "its tensors do not follow each other")
        end = stop
    if 8 + length + end != size or any(count < 0 for count in sizes):
        raise _torn(path, f"it has {size:,} bytes, and its header speaks of {8 + length + end:,}")
    return frozenset(entries)


def _torn(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path} is no whole safetensors file: {reason}. Copy it again from its source")


def _check_index(path: Path, tensors: dict[str, frozenset[str]]) -> None:
    index = _json(path)
    mapped = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(mapped, dict) or not mapped:
        raise ModelError(f"{path} maps no tensors to files; copy it again from its source")
    for tensor, name in mapped.items():
        if name not in tensors:
            raise ModelError(f"{path} puts {tensor!r} into {name!r}, which is not in the folder; copy that file too")
        if tensor not in tensors[name]:
            raise ModelError(f"{path} puts {tensor!r} into {name!r}, which has no such tensor; they are of two models")
