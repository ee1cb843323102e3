"""An encoded corpus in a file of the run's folder, memory-mapped: pre-training on more text than memory holds.

    magic, key, SHA-256, tokens, documents, bytes per token       104 bytes
    ids         unsigned integers, as small as the vocabulary allows, filled up to a multiple of 8 bytes
    ends        int64 per document: where it ends in ids
    text_bytes  int64 per document: of its text in UTF-8

All little-endian. The key is a digest of what encodes the records and of their texts, or of the data set that they are
the records of, where its file was just checked against its registration: then none is read again. The SHA-256 covers
everything else. A file that is another corpus's, torn by a crash or damaged is made again from the records: it holds
nothing that they do not, so it is not synced either.

    tokens = tokens_of(folder / "tokens-train.bin", method.encoder, data.train, f"train {data.digest}")

Guarantee: the file is this organization's text, readable by the node's user alone (0600), and sent nowhere. It is
erased when the run ends here, and when a data set is removed or replaced.
"""

import hashlib
import logging
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from confide.errors import DataError, StateError, TrainingError
from confide.files import private_folder
from confide.methods.packing import Document, Tokens, token_dtype
from numpy.typing import NDArray

if TYPE_CHECKING:
    from confide.runs.fields import Record

log = logging.getLogger(__name__)

_MAGIC = b"confide-tokens-1"
_HEADER = struct.Struct("<16s32s32sQQQ")
_BLOCK_BYTES = 1 << 20


class Encoder(Protocol):
    """confide.methods.documents.DocumentEncoder, which imports torch."""

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id."""

    @property
    def digest(self) -> str:
        """Of what decides how a text turns into tokens."""

    def texts(self, records: "Sequence[Record]") -> Iterator[str]:
        """The text of each record."""

    def documents(self, texts: Iterator[str]) -> Iterator[Document]:
        """Each text's tokens."""


class _Key:
    """Digest of an encoder, and of what the records are known by, else of texts that pass by."""

    def __init__(self, encoder: Encoder, known: str) -> None:
        self._known = known
        self._state = hashlib.sha256(encoder.digest.encode() + (b"known" if known else b"texts") + known.encode())

    def passing(self, texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            if not self._known:
                data = text.encode(errors="surrogatepass")
                self._state.update(len(data).to_bytes(8, "little"))
                self._state.update(data)
            yield text

    def digest(self) -> bytes:
        return self._state.digest()


def tokens_of(path: Path, encoder: Encoder, records: "Sequence[Record]", known: str = "") -> Tokens:
    """The records' tokens, mapped from `path`; encoded into it first unless it holds just them.

    known: what says which records these are, checked by the caller; without it they are read to see what they are.
    Raises DataError for malformed records, TrainingError where the disk is full or fails; nothing is left behind then.
    """
    if path.exists():
        key = _Key(encoder, known)
        if not known:
            for _ in key.passing(encoder.texts(records)):
                pass
        try:
            return read_tokens(path, key.digest(), encoder.vocabulary)
        except StateError as error:
            log.info("%s; the records are encoded again", error)
    return read_tokens(path, _encode(path, encoder, records, known), encoder.vocabulary)


def erase(folder: Path) -> None:
    """Remove what a run's training folder holds of records, finished or not: tokens, what a reference made of each."""
    for pattern in ("tokens-*.bin", ".tokens-*", "reference.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _encode(path: Path, encoder: Encoder, records: "Sequence[Record]", known: str) -> bytes:
    """Write the file; returns its key."""
    key = _Key(encoder, known)
    documents = _readable(encoder.documents(key.passing(encoder.texts(records))))
    try:
        private_folder(path.parent)
        for left in path.parent.glob(f".{path.name}.*"):
            left.unlink()  # by a process that was killed
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write(file, documents, encoder.vocabulary, key, path.parent)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path.name}, the encoded records of this run: {error.strerror}. Free space on this node's "
            "disk; the records are encoded again at the next attempt"
        ) from error
    return key.digest()


def _readable(documents: Iterator[Document]) -> Iterator[Document]:
    try:
        yield from documents
    except OSError as error:
        raise DataError(f"the data set's records cannot be read: {error.strerror}; see `confide data check`") from error


def _write(file: IO[bytes], documents: Iterator[Document], vocabulary: int, key: _Key, folder: Path) -> None:
    dtype = token_dtype(vocabulary)
    body = hashlib.sha256()
    ids = array(dtype.char)
    tokens = count = 0

    def write(data: bytes) -> None:
        file.write(data)
        body.update(data)

    file.write(bytes(_HEADER.size))
    with tempfile.TemporaryFile(dir=folder) as ends, tempfile.TemporaryFile(dir=folder) as text_bytes:
        for document, size in documents:
            ids.extend(document)
            tokens += len(document)
            count += 1
            ends.write(tokens.to_bytes(8, "little"))
            text_bytes.write(size.to_bytes(8, "little"))
            if len(ids) * dtype.itemsize >= _BLOCK_BYTES:
                write(ids.tobytes())
                ids = array(dtype.char)
        write(ids.tobytes())
        write(bytes(-tokens * dtype.itemsize % 8))
        for marks in (ends, text_bytes):
            marks.seek(0)
            while data := marks.read(_BLOCK_BYTES):
                write(data)
    numbers = (tokens, count, dtype.itemsize)
    body.update(struct.pack("<QQQ", *numbers))
    file.seek(0)
    file.write(_HEADER.pack(_MAGIC, key.digest(), body.digest(), *numbers))
    file.flush()


def read_tokens(path: Path, key: bytes, vocabulary: int) -> Tokens:
    """The tokens of a file, checked whole and mapped. Raises StateError for anything but a sound file of this key."""
    try:
        with path.open("rb") as file:
            tokens, documents = _check(path.name, file, key, vocabulary)
            ids = _mapped(file, token_dtype(vocabulary), _HEADER.size, tokens)
            start = _HEADER.size + _padded(ids.nbytes)
            ends = _mapped(file, np.dtype("<i8"), start, documents)
            text_bytes = _mapped(file, np.dtype("<i8"), start + ends.nbytes, documents)
    except OSError as error:
        raise StateError(f"{path.name} cannot be read: {error.strerror}") from error
    # Compared, not subtracted: a difference could wrap around.
    rising = (ends[1:] > ends[:-1]).all() and (ends[:1] > 0).all()
    if (ends[-1] if documents else 0) != tokens or not rising or (text_bytes < 0).any():
        raise StateError(f"{path.name} is damaged: its documents are not in order")
    return Tokens(ids, ends, text_bytes)


def _check(name: str, file: IO[bytes], key: bytes, vocabulary: int) -> tuple[int, int]:
    """(tokens, documents) of a file whose bytes are as they were written."""
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
        raise StateError(f"{name} is not a token file of this release")
    _, found, digest, tokens, documents, width = _HEADER.unpack(header)
    dtype = token_dtype(vocabulary)
    if found != key or width != dtype.itemsize:
        raise StateError(f"{name} holds other records, or was made with another tokenizer")
    ids_bytes = tokens * width
    size = _HEADER.size + _padded(ids_bytes) + 16 * documents
    if os.fstat(file.fileno()).st_size != size:
        raise StateError(f"{name} is damaged: it is not as long as it says")
    body = hashlib.sha256()
    largest = 0
    while data := file.read(_BLOCK_BYTES):
        body.update(data)
        if ids_bytes > 0:
            largest = max(largest, int(np.frombuffer(data[:ids_bytes], dtype).max()))
            ids_bytes -= len(data)
    body.update(header[-24:])
    if body.digest() != digest or largest >= vocabulary:
        raise StateError(f"{name} is damaged: its SHA-256 does not hold")
    return tokens, documents


def _padded(size: int) -> int:
    return size + -size % 8


def _mapped(file: IO[bytes], dtype: np.dtype[Any], offset: int, count: int) -> NDArray[Any]:
    if count == 0:
        return np.empty(0, dtype)  # nothing cannot be mapped
    return np.asarray(np.memmap(file, dtype, "r", offset, (count,)))
