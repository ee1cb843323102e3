"""Give memory back to the system after big messages and local training (glibc only; elsewhere nothing happens)."""

import ctypes
import ctypes.util

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
