"""Give memory back to the system after big messages and local training (glibc only; elsewhere nothing happens).

Also: what lives as long as the process is not searched for garbage.
"""

import contextlib
import ctypes
import ctypes.util
import gc
from collections.abc import Iterator

_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 1 << 20


def _libc() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("c")
    try:
        library = ctypes.CDLL(name) if name else None
    except OSError:
        return None
    return library if library is not None and hasattr(library, "malloc_trim") else None


_LIBC = _libc()


def map_big_buffers() -> None:
    """Let every buffer above 1 MiB have its own mapping, which goes back to the system when it is freed."""
    if _LIBC is not None:
        _LIBC.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)


def trim() -> None:
    """Give free pages back; memory that messages or training used would otherwise stay with the process."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


@contextlib.contextmanager
def nothing_to_collect() -> Iterator[None]:
    """While large libraries are imported: searching what they make for garbage takes a quarter of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def nothing_left_to_collect() -> None:
    """Before the process ends: else the interpreter goes through all that lives, up to a second with torch."""
    gc.freeze()
