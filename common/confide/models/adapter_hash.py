"""The hash by which an adapter is known wherever it is kept, served or released."""

from pathlib import Path

from confide import canonical
from confide.errors import ModelError
from confide.files import sha256_file

ADAPTER_FILE = "adapter_model.safetensors"
"""Where PEFT keeps an adapter's tensors, in its folder."""
_DECIDING = ("adapter_config.json", ADAPTER_FILE)
_MOST_BYTES = 1 << 34


def content_hash(folder: Path) -> str:
    """SHA-256 over what decides an adapter's answers: its configuration and its tensors."""
    missing = [name for name in _DECIDING if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} holds no {missing[0]}; name a folder that `confide run export` wrote")
    size = sum((folder / name).stat().st_size for name in _DECIDING)
    if size > _MOST_BYTES:
        raise ModelError(f"the adapter in {folder} has {size} bytes; at most {_MOST_BYTES} are served")
    hashes = [[name, sha256_file(folder / name)] for name in _DECIDING]
    return canonical.digest(["confide/v1/adapter", hashes])
