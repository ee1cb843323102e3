"""One collection on disk: settings, catalogue, texts, passages, lexical index; who writes, and what a crash leaves.

    ORGANIZATION/COLLECTION/
        collection.json   how its documents are read and embedded; never changes
        catalogue.json    its documents and their states (catalogue.py)
        documents/        canonical texts (documents.py)
        vectors/          passages of the embedded store (stores/)
        lexical/          BM25, made again from the texts whenever it is not of the catalogue's generation
        calibration/      what `confide rag calibrate` measured
        receipts/         of erased documents
        lock              held by the one process that writes

Nothing in this module asks who is calling: `library` does, and everything comes through there.

Guarantee: a process that is killed at any moment leaves a collection in which every document is as before or as after.
What a reader is shown is decided by the catalogue alone; the next writer takes back additions that were cut off and
finishes erasures, and says so.
"""

import contextlib
import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import RetryableError, StateError
from confide.files import private_folder, write_atomic
from confide.rag.access import CollectionName
from confide.rag.catalogue import Catalogue, Document, Sha256, State
from confide.rag.chunks import MOST_TOKENS
from confide.rag.documents import Content, DocumentFiles
from confide.rag.embedder import Embedder
from confide.rag.lexical import LexicalIndex
from confide.rag.personal_data import Handling
from confide.rag.stores import LANCEDB, open_store
from confide.rag.stores.base import PassageStore, StoreDown
from confide.running import hold
from confide.text import line

Say = Callable[[str], None]
_KEPT_CONTENTS = 256


class EmbedderPin(StoredDocument):
    """Which model made the embeddings."""

    name: str
    sha256: Sha256
    dimension: Annotated[int, Field(ge=1, le=65_536)]


class Settings(StoredDocument):
    """What a collection was made with.

    most_tokens: of one passage, in the embedder's tokens. personal_data: what is done with findings at ingest.
    region: whose national telephone numbers are meant, two letters; "" for none. store: see stores.open_store.
    """

    format: Annotated[int, Field(ge=1, le=1)] = 1
    embedder: EmbedderPin
    most_tokens: Annotated[int, Field(ge=16, le=8192)] = MOST_TOKENS
    personal_data: Handling = "mask"
    region: Annotated[str, Field(pattern=r"^([A-Z]{2})?$")] = ""
    store: str = LANCEDB


class Collection:
    """A collection that is there. Used by one thread at a time."""

    def __init__(self, folder: Path, name: CollectionName) -> None:
        """Raises StateError when the folder is none of a collection, or is damaged."""
        self.folder, self.name = folder, name
        self.settings = _read_settings(folder / "collection.json")
        self.documents = DocumentFiles(folder / "documents")
        self.calibration_folder = folder / "calibration"
        self.receipts_folder = folder / "receipts"
        self._catalogue: tuple[object, Catalogue] | None = None
        self._lexical: tuple[int, LexicalIndex] | None = None
        self._contents: OrderedDict[str, Content] = OrderedDict()
        self._store_generation = -1

    @classmethod
    def create(cls, folder: Path, name: CollectionName, settings: Settings) -> "Collection":
        """Make an empty one, unless there is one already."""
        private_folder(folder)
        if not (folder / "collection.json").exists():
            write_atomic(folder / "collection.json", canonical.encode(settings.model_dump(mode="json")))
        return cls(folder, name)

    def check_embedder(self, embedder: Embedder) -> None:
        """Raises StateError when the collection's embeddings were made by another model."""
        pin = self.settings.embedder
        if embedder.sha256 != pin.sha256:
            raise StateError(
                f"collection {self.name} was embedded by {line(pin.name, 80)} ({pin.sha256[:16]}), and this is "
                f"{line(embedder.name, 80)} ({embedder.sha256[:16]}): their numbers cannot be compared. Name the first "
                "with --embedder, or add the documents to a new collection"
            )

    def check_chosen(self, settings: Settings) -> None:
        """Raises StateError when something was chosen, not left to its default, that the collection was not made with.

        The embedder aside (check_embedder): whoever says "refuse" must not find out later that it was "keep".
        """
        for name in sorted(settings.model_fields_set - {"embedder"}):
            own, chosen = getattr(self.settings, name), getattr(settings, name)
            if own != chosen:
                raise StateError(
                    f"collection {self.name} was made with {name.replace('_', ' ')} {line(own or repr(own), 80)}, not "
                    f"{line(chosen or repr(chosen), 80)}, and that stays; leave the option out, or add the documents "
                    "to a new collection"
                )

    @functools.cached_property
    def store(self) -> PassageStore:
        """Its passages. Raises StoreDown."""
        return open_store(self.settings.store, self.folder / "vectors", self.name, self.settings.embedder.dimension)

    def close(self) -> None:
        """Let go of the store."""
        if "store" in self.__dict__:
            self.store.close()

    def catalogue(self) -> Catalogue:
        """As it is on disk now."""
        path = self.folder / "catalogue.json"
        try:
            found = path.stat()
            stamp: object = (found.st_ino, found.st_mtime_ns, found.st_size)
        except FileNotFoundError:
            stamp = None
        if self._catalogue is None or self._catalogue[0] != stamp:
            self._catalogue = (stamp, Catalogue.read(path))
        return self._catalogue[1]

    def fresh_store(self, catalogue: Catalogue) -> PassageStore:
        """The store as of this catalogue's generation, or later."""
        if self._store_generation != catalogue.generation:
            self.store.reload()
            self._store_generation = catalogue.generation
        return self.store

    def lacking(self, catalogue: Catalogue, stored: Mapping[str, int]) -> list[Document]:
        """Live documents of which the store has not every passage. stored: rows by document."""
        return [one for one in catalogue.live().values() if stored.get(one.id, 0) < one.passages]

    def check_stored(self, catalogue: Catalogue, stored: Mapping[str, int]) -> None:
        """Raises StoreDown where passages are missing: a search would not find them, and say nothing."""
        lacking = self.lacking(catalogue, stored)
        if lacking:
            there = sum(stored.get(one.id, 0) for one in lacking)
            names = ", ".join(line(one.source) for one in lacking[:3])
            raise StoreDown(
                f"the store of collection {self.name} lacks {sum(one.passages for one in lacking) - there} passages of "
                f"{names}{' and others' * (len(lacking) > 3)}; add any file to the collection, one that is there will "
                "do: what is missing is embedded again from the stored texts"
            )

    def content(self, document: Document) -> Content:
        """A document's text and parts, checked when it was read. Raises StateError."""
        found = self._contents.get(document.id)
        if found is None:
            found = self._contents[document.id] = self.documents.read(document)
        while len(self._contents) > _KEPT_CONTENTS:
            self._contents.popitem(last=False)
        return found

    def lexical(self, catalogue: Catalogue) -> LexicalIndex:
        """BM25 over the live passages of this generation: from disk, else made now."""
        if self._lexical is None or self._lexical[0] != catalogue.generation:
            found = LexicalIndex.load(self.folder / "lexical", catalogue.generation) or self._built(catalogue)
            self._lexical = (catalogue.generation, found)
        return self._lexical[1]

    def _built(self, catalogue: Catalogue) -> LexicalIndex:
        names, texts = [], []
        for document in catalogue.live().values():
            content = self.documents.read(document)
            for ordinal, span in enumerate(content.passages):
                names.append(passage_name(document.id, ordinal))
                texts.append(content.text[span.start : span.stop])
        return LexicalIndex.build(names, texts)

    @contextlib.contextmanager
    def writing(self, say: Say) -> Iterator[None]:
        """Hold the collection as its only writer. What a crash left half done is put right first, and told to `say`.

        Raises StateError while another process holds it.
        """
        refusal = f"collection {self.name} is being changed by another process; wait for it"
        try:
            descriptor = hold(self.folder / "lock", refusal)
        except OSError as error:
            raise StateError(
                f"{self.folder / 'lock'} cannot be opened ({error.strerror}): nothing can be changed. Make the disk "
                "writable, or run this as the folder's owner"
            ) from error
        try:
            self._recover(say)
            yield
        finally:
            os.close(descriptor)

    def commit(self, catalogue: Catalogue) -> None:
        """Make this the collection's state. Only while writing."""
        catalogue.write(self.folder / "catalogue.json")
        self._contents.clear()

    def save_lexical(self, say: Say) -> None:
        """Make the lexical index of the present generation and store it. Only while writing.

        What was written stays written where a damaged document keeps it from being made; searching says so too.
        """
        catalogue = self.catalogue()
        if LexicalIndex.load(self.folder / "lexical", catalogue.generation) is None:
            try:
                index = self._built(catalogue)
            except StateError as error:
                say(f"collection {self.name} cannot be searched: {error}")
                return
            try:
                index.save(self.folder / "lexical", catalogue.generation)
            except (OSError, RetryableError) as error:
                say(
                    f"collection {self.name}: its words' index could not be stored and is made at each search ({error})"
                )
            self._lexical = (catalogue.generation, index)

    def _recover(self, say: Say) -> None:
        catalogue = self.catalogue()
        if not catalogue.documents() and self.store.files() is None and self.store.counts():
            raise StateError(
                f"collection {self.name} is new here, and its store on the server holds passages: those of another "
                "library's collection of this name. Give this one another name, or the library a server of its own"
            )
        self.store.tidy()
        cut = catalogue.documents(State.ADDING)
        if cut:
            self.store.remove({one.id for one in cut})
            for one in cut:
                self.documents.remove(one.id)
                say(f"{line(one.source)}: adding it was cut off; it was taken back. Add it again")
            self.commit(catalogue.with_documents((), without=[one.id for one in cut]))
        known = {one.id for one in self.catalogue().documents()}
        # A catalogue that was not finished names documents too.
        for stray in [*self.documents.strays(known), *self.folder.glob(".catalogue.json.*")]:
            stray.unlink(missing_ok=True)
        for erasing in self.catalogue().documents(State.ERASING):
            say(f"{line(erasing.source)}: erasing it was cut off; run `confide rag erase` again to finish it")


def passage_name(document: str, ordinal: int) -> str:
    """How the indices call a passage."""
    return f"{document}.{ordinal}"


def split_passage_name(name: str) -> tuple[str, int]:
    """(document, ordinal) of what `passage_name` made."""
    document, _, ordinal = name.partition(".")
    return document, int(ordinal)


def _read_settings(path: Path) -> Settings:
    try:
        return Settings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); is {path.parent} a collection?") from error
    except ValidationError as error:
        raise StateError(f"{path} is damaged, or of a later release; restore it from a backup") from error
