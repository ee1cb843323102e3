"""Erasing a document: its text, its numbers and every index of them, looked for afterwards, with a signed receipt.

The store's table is written anew without it, the lexical index is made anew, every file of the collection is searched
for pieces of the text and of the embeddings, and the text's own files go. Only what is not found gets a receipt. The
same search is made before, and must find them: a search that cannot see proves nothing.

Guarantee: after a receipt no file of the collection holds a searched piece of the document, and no question finds it.
The receipt says what it does not speak of: backups, snapshots, the disk's free blocks, a database server's own logs.
"""

import datetime
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.files import fsync_folder, private_folder, write_atomic
from confide.identity.keys import SigningKey
from confide.identity.signed import open_document, sign_document
from confide.rag.catalogue import Catalogue, Document, State
from confide.rag.collection import Collection, Say, passage_name
from confide.text import line

DOMAIN = "rag-erasure"
_MOST_NEEDLES = 48
_NEEDLE_CHARS = 40
_FEWEST_NEEDLE_BYTES = 12
"""A shorter piece stands in hashes, names and numbers by chance: finding it would say nothing."""
_NEEDLE_NUMBERS = 12
_NOT_SEARCHED = "backups, snapshots, swapped memory and the disk's free blocks"
_SERVER = "; the passages' table on the database server was rewritten, its logs, replicas and backups were not searched"


@dataclass(frozen=True)
class Needles:
    """Pieces of one document that stand nowhere else in the collection.

    elsewhere: how many do, which are not searched for; documents: the names of those that say the same.
    """

    text: tuple[bytes, ...]
    vectors: tuple[bytes, ...]
    elsewhere: int = 0
    documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What a search over files saw."""

    files: int
    bytes: int
    found: tuple[Path, ...]
    text_found: int
    vectors_found: int


def erase(collection: Collection, documents: Sequence[str], key: SigningKey, say: Say) -> list[Path]:
    """Erase these documents (identifiers), one receipt each. Raises StateError when a piece is still found.

    A document that was being erased when the process was killed is finished by calling this again.
    """
    receipts = []
    with collection.writing(say):
        for name in documents:
            document = collection.catalogue().get(name)
            if document is None or document.state is State.ERASED:
                raise StateError(f"document {name[:32]} is not in collection {collection.name}")
            receipts.append(_erase(collection, document, key, say))
        collection.save_lexical(say)
    return receipts


def _erase(collection: Collection, document: Document, key: SigningKey, say: Say) -> Path:
    """In an order in which every crash can be gone on from; the text is there until all else was searched for it."""
    texts = collection.documents.paths(document.id)
    receipt = collection.receipts_folder / f"{document.id}.json"
    pending = collection.receipts_folder / f".{document.id}.pending"
    collection.commit(_with(collection, document, State.ERASING))
    if any(path.exists() for path in texts) or not (pending.exists() or receipt.exists()):
        private_folder(collection.receipts_folder)
        write_atomic(pending, _searched(collection, document, texts, key, say))
        collection.documents.remove(document.id)
    if pending.exists():
        pending.replace(receipt)
        fsync_folder(collection.receipts_folder)
    collection.commit(_erased(collection, document, receipt.name))
    return receipt


def _searched(collection: Collection, document: Document, texts: tuple[Path, Path], key: SigningKey, say: Say) -> bytes:
    """Take the document out of every index, search all files but its own two, and say so under the key."""
    needles = _needles(collection, document)
    before = scan(collection.folder, needles)
    _check_sight(collection, needles, before, collection.store.counts().get(document.id, 0))
    collection.store.remove({document.id})
    # Its vocabulary holds the document's words.
    for path in (collection.folder / "lexical").glob("*"):
        path.unlink()
    after = scan(collection.folder, needles, without=frozenset(texts))
    if after.found:
        where = ", ".join(str(path) for path in after.found[:3])
        raise StateError(
            f"{line(document.source)} is hidden, and pieces of it still stand in {where}. No receipt was given"
        )
    if needles.elsewhere:
        share = f"{needles.elsewhere} of {needles.elsewhere + len(needles.text)} pieces of its text"
        where = ", ".join(map(line, needles.documents[:3]))
        say(f"{line(document.source)}: {share} stand in {where} too, and stay there")
    return sign_document(_receipt(collection, document, needles, before, after), DOMAIN, key)


def _with(collection: Collection, document: Document, state: State) -> Catalogue:
    return collection.catalogue().with_documents([document.model_copy(update={"state": state})])


def _erased(collection: Collection, document: Document, receipt: str) -> Catalogue:
    """What is left: hashes and numbers, no name of the file and no finding."""
    update = {"state": State.ERASED, "source": "", "receipt": receipt, "personal_data": {}, "quarantined": ()}
    return collection.catalogue().with_documents([document.model_copy(update=update)])


def _needles(collection: Collection, document: Document) -> Needles:
    pieces = _pieces(collection, document)
    chosen = [place for place in _spread(range(len(pieces)), _MOST_NEEDLES) if pieces[place]]
    # A document may say the same twice, and its own name stands in the catalogue until it is erased.
    own_name = document.source.encode()
    text = [piece for piece in dict.fromkeys(pieces[place] for place in chosen) if piece not in own_name]
    shared, documents = _shared(collection, document, text)
    own = [piece for piece in text if piece not in shared]
    names = [passage_name(document.id, place) for place in _spread(range(document.passages), _MOST_NEEDLES)]
    return Needles(tuple(own), _own_numbers(collection, document, names), len(text) - len(own), documents)


def _pieces(collection: Collection, document: Document) -> list[bytes]:
    """One of each passage; of a text that is damaged, one of each of its paragraphs."""
    try:
        content = collection.documents.read(document)
        return [_piece(content.text[span.start : span.stop]) for span in content.passages]
    except StateError:
        text, _ = collection.documents.paths(document.id)
        whole = text.read_bytes().decode(errors="replace") if text.exists() else ""
        return [_piece(paragraph) for paragraph in whole.split("\n\n")]


def _own_numbers(collection: Collection, document: Document, names: Sequence[str]) -> tuple[bytes, ...]:
    """Beginnings of these embeddings, without those that another document's have too: it says the same to the model."""
    vectors = collection.store.vectors(names)
    own = dict.fromkeys(_beginning(vectors[name]) for name in names if name in vectors)
    if own and collection.store.files() is not None:
        passages, _, matrix = collection.store.everything()
        alike = np.isin(matrix[:, 0], [vector[0] for vector in vectors.values()])
        for row in np.flatnonzero(alike):
            if not passages[row].startswith(document.id):
                own.pop(_beginning(matrix[row]), None)
    return tuple(own)


def _beginning(vector: NDArray[np.float32]) -> bytes:
    return np.asarray(vector, "<f4")[:_NEEDLE_NUMBERS].tobytes()


def _spread(places: Sequence[int], most: int) -> list[int]:
    step = max(1, len(places) // most)
    return list(places[::step][:most])


def _piece(text: str) -> bytes:
    """Characters from the passage's middle, without line breaks and quotes, which files may write in other ways.

    Empty where they are too few to be told from anything else.
    """
    runs = [run for run in re.split(r'["\\\n\ufffd]', text) if run.strip()]
    longest = max(runs, key=len, default="")
    start = max(0, (len(longest) - _NEEDLE_CHARS) // 2)
    piece = longest[start : start + _NEEDLE_CHARS].encode()
    return piece if len(piece) >= _FEWEST_NEEDLE_BYTES else b""


def _shared(
    collection: Collection, document: Document, pieces: Iterable[bytes]
) -> tuple[frozenset[bytes], tuple[str, ...]]:
    """Those that stand in another document, or in its name: finding them would say nothing about this one.

    And the names of those documents.
    """
    left, found, documents = set(pieces), set[bytes](), []
    for other in collection.catalogue().documents():
        if other.id != document.id:
            path, _ = collection.documents.paths(other.id)
            data = (path.read_bytes() if path.exists() else b"") + b"\n" + other.source.encode()
            there = {piece for piece in left if piece in data}
            found |= there
            documents += [other.source] if there else []
    return frozenset(found), tuple(dict.fromkeys(documents))


def scan(folder: Path, needles: Needles, *, without: AbstractSet[Path] = frozenset()) -> Scan:
    """Search every file below a folder for the pieces, save those in `without`."""
    found, size, files = [], 0, 0
    text_found: set[bytes] = set()
    vectors_found: set[bytes] = set()
    for path in sorted(folder.rglob("*")):
        if path in without or not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        files, size = files + 1, size + len(data)
        text = {one for one in needles.text if one in data}
        vectors = {one for one in needles.vectors if one in data}
        if text or vectors:
            found.append(path)
        text_found |= text
        vectors_found |= vectors
    return Scan(files, size, tuple(found), len(text_found), len(vectors_found))


def _check_sight(collection: Collection, needles: Needles, before: Scan, stored: int) -> None:
    blind = before.text_found < len(needles.text)
    if collection.store.files() is not None and stored:
        blind = blind or before.vectors_found < len(needles.vectors)
    if blind:
        raise StateError(
            f"the search over {collection.folder} does not see what is there (text {before.text_found} of "
            f"{len(needles.text)}, embeddings {before.vectors_found} of {len(needles.vectors)}), so that it could "
            "prove nothing. The document is hidden; tell the developers which store this is"
        )


def _receipt(
    collection: Collection, document: Document, needles: Needles, before: Scan, after: Scan
) -> dict[str, object]:
    return {
        "version": 1,
        "organization": collection.name.organization,
        "collection": collection.name.collection,
        "document": document.id,
        "sha256": document.sha256,
        "text_sha256": document.text_sha256,
        "erased": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "searched": {
            "files": after.files,
            "bytes": after.bytes,
            "pieces_of_text": len(needles.text),
            "pieces_of_embeddings": len(needles.vectors),
            "pieces_elsewhere": needles.elsewhere,
            "found_before": before.text_found + before.vectors_found,
            "found_after": after.text_found + after.vectors_found,
        },
        "not_searched": _NOT_SEARCHED + (_SERVER if collection.store.files() is None else ""),
    }


def read_receipt(data: bytes, public: bytes) -> dict[str, object]:
    """A receipt's content. Raises IdentityError unless this library's key signed it."""
    return open_document(data, DOMAIN, public)
