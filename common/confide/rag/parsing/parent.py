"""Parses files in a child process, and survives whatever happens to it.

with ParserProcess() as parser:
    blocks = parser.parse("pdf", data).blocks

Guarantee: a file that makes its parser crash, hang, grow or write costs an error that names the reason; this process
loses neither memory beyond `Limits.most_chars` nor time beyond `Limits.wall_s`. The next file gets a fresh child.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from confide.children import bound
from confide.errors import DataError
from confide.rag.parsing.blocks import Block, Left, Parsed, Unreadable
from confide.rag.parsing.child import FORMATS
from confide.text import line

_SUFFIXES = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "txt",
    ".text": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_REMEDIES = {
    "an archive; unpack it, and add the files in it": ("zip", "tar", "gz", "tgz", "bz2", "xz", "7z", "rar"),
    "a picture; run text recognition over it, and save it as pdf": (
        "png",
        "jpg",
        "jpeg",
        "gif",
        "tif",
        "tiff",
        "bmp",
        "webp",
        "heic",
    ),
    "of an office program; save it as docx or pdf": (
        "doc",
        "odt",
        "rtf",
        "pages",
        "ppt",
        "pptx",
        "odp",
        "xls",
        "xlsx",
        "ods",
    ),
}
"""What is said of files that people have beside those that are read."""
_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may cost.

    file_bytes: of the file itself; most_chars: of text in it; memory_bytes: of the child's address space.
    cpu_s: seconds of computing; wall_s: seconds in all, which a busy machine needs more of.
    """

    file_bytes: int = 200 * 2**20
    most_chars: int = 20_000_000
    memory_bytes: int = 2 * 2**30
    cpu_s: int = 120
    wall_s: float = 480.0


def format_of(name: str) -> str:
    """The format by the file's ending. Raises DataError for one that is not known."""
    suffix = Path(name).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    ending = f"ends in {line(suffix, 20)!r}" if suffix else "has no ending"
    for remedy, endings in _REMEDIES.items():
        if suffix[1:] in endings:
            raise DataError(f"{ending}: it is {remedy}")
    raise DataError(f"{ending}; known endings are {', '.join(_SUFFIXES)}. Convert it, or rename it")


@dataclass
class ParserProcess:
    """A child that parses one file after the other. Used by one thread."""

    limits: Limits = field(default_factory=Limits)
    _child: "subprocess.Popen[bytes] | None" = None

    def __enter__(self) -> "ParserProcess":
        self._started()  # it gets ready while its caller does
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def parse(self, format: str, data: bytes) -> Parsed:
        """Raises Unreadable: the file's own fault, or it cost more than the limits allow."""
        if format not in FORMATS:
            raise Unreadable(f"has the format {line(format, 40)!r}; known are {', '.join(FORMATS)}")
        if len(data) > self.limits.file_bytes:
            raise Unreadable(f"has {len(data):,} bytes; at most {self.limits.file_bytes:,} are read. Split it")
        try:
            return self._asked(format, data)
        except (_Died, _Late) as error:
            self.close()
            raise Unreadable(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            child.wait()

    def _asked(self, format: str, data: bytes) -> Parsed:
        deadline = time.monotonic() + self.limits.wall_s
        pipes = _Pipes(self._started(), deadline)
        pipes.write(json.dumps({"format": format, "bytes": len(data)}).encode() + b"\n")
        pipes.write(data)
        header = _json(pipes.line())
        if not isinstance(header, dict):
            raise _out_of_turn()
        if "error" in header:
            # The child may be in the hands of the file by now: its words are cleaned like a stranger's.
            raise Unreadable(line(header["error"]))
        size = header.get("bytes")
        if type(size) is not int or not 0 <= size <= 12 * self.limits.most_chars:
            raise _out_of_turn()
        left_out, rows = _left_out(header.get("left_out")), _json(pipes.read(size))
        if not isinstance(rows, list):
            raise _out_of_turn()
        return Parsed([_block(row) for row in rows], left_out)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            limits = self.limits
            numbers = map(str, (limits.memory_bytes, limits.cpu_s, limits.most_chars))
            self._child = subprocess.Popen(
                bound([sys.executable, "-I", "-m", "confide.rag.parsing.child", *numbers]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                cwd="/",
                bufsize=0,
            )
        return self._child


class _Died(Exception):
    """The child ended, or speaks nonsense."""


class _Late(Exception):
    """The child took too long."""


class _Pipes:
    """A child's two pipes with a deadline (monotonic seconds)."""

    def __init__(self, child: "subprocess.Popen[bytes]", deadline: float) -> None:
        assert child.stdin is not None and child.stdout is not None  # noqa: S101 - both were asked for
        self._child, self._deadline = child, deadline
        self._in, self._out = child.stdin.fileno(), child.stdout.fileno()
        os.set_blocking(self._in, False)
        self._rest = b""

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._in, select.POLLOUT)
            try:
                view = view[os.write(self._in, view[:_PIECE]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._death() from None

    def line(self) -> bytes:
        while b"\n" not in self._rest:
            if len(self._rest) > 2 * _PIECE:
                raise _out_of_turn()
            self._rest += self._piece()
        found, _, self._rest = self._rest.partition(b"\n")
        return found

    def read(self, size: int) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while have < size:
            parts.append(self._piece())
            have += len(parts[-1])
        if have > size:
            raise _out_of_turn()
        return b"".join(parts)

    def _piece(self) -> bytes:
        self._wait(self._out, select.POLLIN)
        piece = os.read(self._out, _PIECE)
        if not piece:
            raise self._death()
        return piece

    def _wait(self, pipe: int, for_what: int) -> None:
        left = self._deadline - time.monotonic()
        waiting = select.poll()  # select() takes no descriptor above 1023
        waiting.register(pipe, for_what)
        if left <= 0 or not waiting.poll(1000 * left):
            raise _Late("takes too long to parse; split it, or save it in another format")

    def _death(self) -> _Died:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        code = self._child.returncode or 0
        if -code in {signal.SIGXCPU, signal.SIGKILL}:
            return _Died("takes more computing than a parser gets; split it, or save it in another format")
        name = signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit status {code}"
        return _Died(f"made its parser crash ({name}); save it again, or in another format")


def _out_of_turn() -> _Died:
    return _Died("made its parser answer out of turn; save it again")


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _out_of_turn() from None


def _left_out(found: object) -> dict[Left, int]:
    match found:
        case dict() if found.keys() <= set(Left) and all(type(count) is int for count in found.values()):
            return {Left(what): count for what, count in found.items()}
    raise _out_of_turn()


def _block(row: object) -> Block:
    match row:
        case [str(text), int(level), None | int() as page, None | str() as record, bool(lines), bool(note)]:
            if 0 <= level <= 6:
                return Block(text, level, page, record, lines, note)
    raise _out_of_turn()
