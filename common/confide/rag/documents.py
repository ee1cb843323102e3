"""The canonical text of each version, and where its blocks and passages are, as files named by the document.

    documents/ID.txt     the text in UTF-8, byte for byte what every offset counts in characters of
    documents/ID.json    blocks [start, stop, level, page, record, headings], and true after them for a note; passages
                         [start, stop]

Both are hashed in the catalogue, and checked whenever they are read: a text that was changed on disk is not quoted.
"""

import bisect
import contextlib
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import StateError
from confide.files import fsync_folder, private_folder, write_atomic
from confide.rag.canonical_text import CanonicalText, Mark
from confide.rag.catalogue import Document
from confide.rag.chunks import Span


@dataclass(frozen=True)
class Content:
    """A version's text and its parts."""

    text: str
    marks: tuple[Mark, ...]
    passages: tuple[Span, ...]

    def marks_of(self, span: Span) -> list[Mark]:
        """The blocks that a passage reaches into, in order."""
        first = bisect.bisect_right(self.marks, span.start, key=lambda mark: mark.stop)
        last = bisect.bisect_left(self.marks, span.stop, key=lambda mark: mark.start)
        return list(self.marks[first:last])

    def heading_of(self, span: Span) -> tuple[str, ...]:
        """The path of headings above a passage, with its own where it begins with one."""
        first = self.marks_of(span)[0]
        own = (" ".join(self.text[first.start : first.stop].split())[:200],) if first.level else ()
        return (*first.headings, *own)


@dataclass(frozen=True)
class Encoded:
    """What `DocumentFiles.write` stores, with the hashes for the catalogue."""

    text: bytes
    structure: bytes

    @property
    def text_sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    @property
    def structure_sha256(self) -> str:
        return hashlib.sha256(self.structure).hexdigest()


def encoded(document: CanonicalText, spans: Sequence[Span]) -> Encoded:
    """A document as its two files."""
    marks = [[m.start, m.stop, m.level, m.page, m.record, list(m.headings), *[True] * m.note] for m in document.marks]
    structure = {"marks": marks, "passages": [[span.start, span.stop] for span in spans]}
    return Encoded(document.text.encode(), canonical.encode(structure))


def parsed_structure(data: bytes, characters: int, what: str) -> tuple[tuple[Mark, ...], tuple[Span, ...]]:
    """Blocks and passages, each within the text. Raises StateError."""
    try:
        document = json.loads(data)
        marks = tuple(_mark(row, characters) for row in document["marks"])
        spans = tuple(Span(*_range(row, characters)) for row in document["passages"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StateError(f"{what} is damaged; erase the document and add its file again") from None
    ordered = all(one.stop <= other.start for one, other in itertools.pairwise(marks))
    if not ordered or not all(Content("", marks, ()).marks_of(span) for span in spans):
        raise StateError(f"{what} is damaged; erase the document and add its file again")
    return marks, spans


def _mark(row: Any, characters: int) -> Mark:
    match row:
        case [_, _, _, _, _, _, True]:
            return replace(_mark(row[:6], characters), note=True)
        case [start, stop, int(level), None | int() as page, None | str() as record, [*headings]] if 0 <= level <= 6:
            if all(isinstance(one, str) for one in headings):
                return Mark(*_range([start, stop], characters), level, page, record, tuple(headings))
    raise ValueError("no block")


def _range(row: Any, characters: int) -> tuple[int, int]:
    match row:
        case [int(start), int(stop)] if 0 <= start < stop <= characters:
            return start, stop
    raise ValueError("no range")


class DocumentFiles:
    """The folder of one collection's documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self, document: str) -> tuple[Path, Path]:
        """(text, structure)."""
        return self.folder / f"{document}.txt", self.folder / f"{document}.json"

    def write(self, document: str, content: Encoded) -> None:
        """Store both, durably."""
        private_folder(self.folder)
        text, structure = self.paths(document)
        write_atomic(text, content.text)
        write_atomic(structure, content.structure)

    def read(self, document: Document) -> Content:
        """Both, checked against the catalogue. Raises StateError when one is missing or was changed."""
        text_path, structure_path = self.paths(document.id)
        text = _checked(text_path, document.text_sha256).decode()
        data = _checked(structure_path, document.structure_sha256)
        return Content(text, *parsed_structure(data, len(text), str(structure_path)))

    def remove(self, document: str) -> None:
        """Take both away, durably; it may have happened before."""
        for path in self.paths(document):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if self.folder.is_dir():
            fsync_folder(self.folder)

    def strays(self, known: set[str]) -> list[Path]:
        """Files that belong to no document: what a crash left."""
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.name.rpartition(".")[0] not in known]


def _checked(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StateError(
            f"{path} cannot be read ({error.strerror}); erase the document and add its file again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StateError(f"{path} is not what was stored: it was changed. Erase the document and add its file again")
    return data
