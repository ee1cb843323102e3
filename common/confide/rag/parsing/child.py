"""The process that parses: `python -m confide.rag.parsing.child MEMORY_BYTES CPU_SECONDS OUTPUT_BYTES`.

It holds nothing but the bytes of one file after the other. On standard input comes a line {"format", "bytes"} and the
bytes; on standard output goes a line {"bytes", "left_out"} and the blocks as JSON, or {"error"}. What a hostile file
can reach is this process: it has no keys, no environment, no right to write a file, and limits on memory and time.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import IO

from confide.rag.parsing.blocks import LeftOut, Parsed, Parser, Unreadable
from confide.secrecy import private_process

FORMATS = {
    "pdf": "pdf:parse_pdf",
    "docx": "docx:parse_docx",
    "html": "html:parse_html",
    "markdown": "markdown:parse_markdown",
    "txt": "plain:parse_txt",
    "jsonl": "plain:parse_jsonl",
}
_OPEN_FILES = 64


def parser_of(format: str) -> Parser:
    """The parser of a format, imported now."""
    module, function = FORMATS[format].split(":")
    found: Parser = getattr(import_module(f"confide.rag.parsing.{module}"), function)
    return found


def parse(format: str, data: bytes, most_chars: int) -> Parsed:
    """All blocks. Raises Unreadable, also where they hold more than `most_chars` characters."""
    blocks, left_out, chars = [], {}, 0
    for block in parser_of(format)(data):
        if isinstance(block, LeftOut):
            left_out[block.what] = block.count
            continue
        chars += len(block.text) + 1
        if chars > most_chars:
            raise Unreadable(f"holds more than {most_chars:,} characters of text; split it")
        blocks.append(block)
    return Parsed(blocks, left_out)


def main(memory_bytes: int, cpu_s: int, output_bytes: int) -> None:
    """Answer until standard input ends."""
    private_process()
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(kind, (most, most))
    source, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    # What a library prints must not come between the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for format, data in _requests(source):
        _limit_cpu(cpu_s)
        header, payload = _answer(lambda f=format, d=data: _encoded(parse(f, d, output_bytes), output_bytes))  # type: ignore[misc]
        answers.write(json.dumps(header).encode() + b"\n" + payload)
        answers.flush()


def _requests(source: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    while line := source.readline(200):
        header = json.loads(line)
        yield header["format"], source.read(header["bytes"])


def _limit_cpu(cpu_s: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_s + 1, hard))


def _encoded(parsed: Parsed, most: int) -> tuple[dict[str, object], bytes]:
    rows = [[one.text, one.level, one.page, one.record, one.lines, one.note] for one in parsed.blocks]
    payload = json.dumps(rows).encode()
    # An escaped character takes up to twelve bytes.
    if len(payload) > 12 * most:
        raise Unreadable("holds more text than is read; split it")
    return {"bytes": len(payload), "left_out": dict(parsed.left_out)}, payload


def _answer(work: Callable[[], tuple[dict[str, object], bytes]]) -> tuple[dict[str, object], bytes]:
    try:
        return work()
    except Unreadable as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": "needs more memory than a parser gets; split it"}, b""
    except RecursionError:
        return {"error": "is nested too deeply; save it in another format"}, b""
    except ImportError as error:
        return {"error": f"needs a library that is not installed ({error.name}): pip install 'confide[rag]'"}, b""
    except Exception as error:
        return {"error": f"is damaged: its parser stopped with {type(error).__name__}; save it again"}, b""


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
