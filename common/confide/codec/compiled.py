"""`compiled`: numba kernels that cost nothing until they are called, and are compiled once per machine.

The machine code is kept in a private folder (XDG_CACHE_HOME/confide/numba) unless NUMBA_CACHE_DIR names another, so
that later processes start at once, from a wheel too. Of several processes that start together, one compiles and the
others wait for it and load what it made. Compiled functions release the interpreter lock.

    @compiled("void({lanes}, int64)")
    def add_to_all(lanes, value):
        for i in range(lanes.size):
            lanes[i] += value
"""

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from confide.files import private_folder

_F = TypeVar("_F", bound=Callable[..., Any])
_LANES = {2: "uint16[::1]", 4: "uint32[::1]"}
_thread_lock = threading.Lock()


def compiled(signature: str, **options: Any) -> Callable[[_F], _F]:
    """Compile a function for numba's `signature` when it is first called, or load what was compiled before.

    `{lanes}` stands for a contiguous array of uint16 or uint32, by the argument's own dtype, the same at each place.
    options go to numba.njit. Raises TypeError when called with other types.
    """
    places = signature.removeprefix(signature.split("(", 1)[0] + "(").rstrip(")").split(", ")
    lanes_at = places.index("{lanes}") if "{lanes}" in places else None

    def decorate(function: _F) -> _F:
        made: dict[int, Callable[..., Any]] = {}

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            width = 0 if lanes_at is None else args[lanes_at].dtype.itemsize
            if width not in made:
                made[width] = _compile(function, signature.format(lanes=_LANES.get(width)), options)
            return made[width](*args)

        return cast(_F, call)

    return decorate


def inlined(function: _F) -> _F:
    """Compile a function into each compiled caller."""
    return cast(_F, _numba().njit(inline="always", error_model="numpy")(function))


def narrow_shift(direction: str) -> Callable[[Any, int], Any]:
    """A logical shift, "left" or "right", for compiled callers: shift(x, places), 0 <= places < bits of x.

    numba's own widens x to 64 bits, which leaves a vector unit with a quarter of its lanes.
    """
    from numba.extending import intrinsic

    _numba()

    def shift(_context: Any, x: Any, places: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            value, count = arguments
            narrow = builder.trunc(count, value.type)
            return builder.shl(value, narrow) if direction == "left" else builder.lshr(value, narrow)

        return x(x, places), generate

    return cast(Callable[[Any, int], Any], intrinsic(shift))


def _compile(function: Callable[..., Any], signature: str, options: dict[str, Any]) -> Callable[..., Any]:
    numba = _numba()
    # Without numba's runtime a slice costs no atomic reference counts; nothing here allocates.
    with _thread_lock, _machine_lock(Path(numba.config.CACHE_DIR)):
        made = numba.njit(signature, cache=True, nogil=True, error_model="numpy", _nrt=False, **options)(function)
    return cast(Callable[..., Any], made)


@functools.cache
def _numba() -> Any:
    """The numba package with its cache folder set: compiled code is loaded from there, so only we may write it."""
    if not os.environ.get("NUMBA_CACHE_DIR"):
        os.environ["NUMBA_CACHE_DIR"] = _cache_folder()
    import numba

    numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]
    return numba


def _cache_folder() -> str:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        return str(private_folder(base / "confide" / "numba"))
    except OSError:
        folder = tempfile.mkdtemp(prefix="confide-numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


@contextmanager
def _machine_lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time. A lock that cannot be had (read-only folder) only costs a second compilation."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "compile.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
