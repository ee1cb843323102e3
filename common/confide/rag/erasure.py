"""Erasing a document: its text, its numbers and every index of them, looked for afterwards, with a signed receipt.

The store's table is written anew without it, the lexical index is made anew, every file of the collection is searched
for pieces of the text and of the embeddings, and the text's own files go. Only what is not found gets a receipt. The
same search is made before, and must find them: a search that cannot see proves nothing.

Guarantee: after a receipt no file of the collection holds a searched piece of the document, and no question finds it.
The receipt says what it does not speak of: backups, snapshots, the disk's free blocks, a database server's own logs.
"""

import datetime
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
_NEEDLE_NUMBERS = 12
_NOT_SEARCHED = "backups, snapshots, swapped memory and the disk's free blocks"
_SERVER = "; the passages' table on the database server was rewritten, its logs, replicas and backups were not searched"


@dataclass(frozen=True)
class Needles:
    """Pieces of one document that stand nowhere else in the collection."""

    text: tuple[bytes, ...]
    vectors: tuple[bytes, ...]


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
            receipts.append(_erase(collection, document, key))
        collection.save_lexical()
    return receipts


def _erase(collection: Collection, document: Document, key: SigningKey) -> Path:
    """In an order in which every crash can be gone on from; the text is there until all else was searched for it."""
    texts = collection.documents.paths(document.id)
    receipt = collection.receipts_folder / f"{document.id}.json"
    pending = collection.receipts_folder / f".{document.id}.pending"
    collection.commit(_with(collection, document, State.ERASING))
    if any(path.exists() for path in texts):
        private_folder(collection.receipts_folder)
        write_atomic(pending, _searched(collection, document, texts, key))
        collection.documents.remove(document.id)
    if pending.exists():
        pending.replace(receipt)
        fsync_folder(collection.receipts_folder)
    if not receipt.exists():
        raise StateError(
            f"the text of {line(document.source)} is gone, and no search was made before: no receipt is given"
        )
    collection.commit(_erased(collection, document, receipt.name))
    return receipt


def _searched(collection: Collection, document: Document, texts: tuple[Path, Path], key: SigningKey) -> bytes:
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
    return sign_document(_receipt(collection, document, needles, before, after), DOMAIN, key)


def _with(collection: Collection, document: Document, state: State) -> Catalogue:
    return collection.catalogue().with_documents([document.model_copy(update={"state": state})])


def _erased(collection: Collection, document: Document, receipt: str) -> Catalogue:
    """What is left: hashes and numbers, no name of the file and no finding."""
    update = {"state": State.ERASED, "source": "", "receipt": receipt, "personal_data": {}, "quarantined": ()}
    return collection.catalogue().with_documents([document.model_copy(update=update)])


def _needles(collection: Collection, document: Document) -> Needles:
    text_path, _ = collection.documents.paths(document.id)
    if not all(path.exists() for path in collection.documents.paths(document.id)):
        return Needles((text_path.read_bytes()[:_NEEDLE_CHARS],), ()) if text_path.exists() else Needles((), ())
    content = collection.documents.read(document)
    names = [passage_name(document.id, place) for place in range(len(content.passages))]
    chosen = _spread(range(len(names)), _MOST_NEEDLES)
    pieces = {place: _piece(content.text[span.start : span.stop]) for place, span in enumerate(content.passages)}
    shared = _shared(collection, document, [pieces[place] for place in chosen])
    own = [place for place in chosen if pieces[place] and pieces[place] not in shared]
    vectors = collection.store.vectors([names[place] for place in own])
    numbers = [np.asarray(vectors[names[p]], "<f4")[:_NEEDLE_NUMBERS].tobytes() for p in own if names[p] in vectors]
    # A document may say the same twice.
    return Needles(tuple(dict.fromkeys(pieces[place] for place in own)), tuple(dict.fromkeys(numbers)))


def _spread(places: Sequence[int], most: int) -> list[int]:
    step = max(1, len(places) // most)
    return list(places[::step][:most])


def _piece(text: str) -> bytes:
    """Characters from the passage's middle, without line breaks and quotes, which files may write in other ways."""
    runs = [run for run in text.replace('"', "\n").replace("\\", "\n").split("\n") if run.strip()]
    longest = max(runs, key=len, default="")
    start = max(0, (len(longest) - _NEEDLE_CHARS) // 2)
    return longest[start : start + _NEEDLE_CHARS].encode()


def _shared(collection: Collection, document: Document, pieces: Iterable[bytes]) -> frozenset[bytes]:
    """Those that stand in another document too: finding them there would say nothing about this one."""
    left = set(pieces)
    found: set[bytes] = set()
    for other in collection.catalogue().documents(State.LIVE, State.REPLACED):
        path, _ = collection.documents.paths(other.id)
        if other.id != document.id and path.exists():
            data = path.read_bytes()
            found |= {piece for piece in left - found if piece in data}
    return frozenset(found)


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
            "found_before": before.text_found + before.vectors_found,
            "found_after": after.text_found + after.vectors_found,
        },
        "not_searched": _NOT_SEARCHED + (_SERVER if collection.store.files() is None else ""),
    }


def read_receipt(data: bytes, public: bytes) -> dict[str, object]:
    """A receipt's content. Raises IdentityError unless this library's key signed it."""
    return open_document(data, DOMAIN, public)
