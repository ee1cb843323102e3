"""A collection's documents, their versions and states: the one place that says what may be found.

    adding -> live -> replaced          a newer version of the same source came; its text stays until it is erased
       any -> erasing -> erased         erased: nothing but its hash and the receipt's name is left

A passage is shown only while its document is `live` here, whatever the indices still hold. The file is replaced as a
whole, so a crash leaves the state before or after, and `generation` tells readers in other processes to look again.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import StateError
from confide.files import write_atomic

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DocumentId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_MOST_BYTES = 1 << 30


class State(StrEnum):
    """Where a version of a document stands."""

    ADDING = "adding"
    LIVE = "live"
    REPLACED = "replaced"
    ERASING = "erasing"
    ERASED = "erased"


class Quarantined(StoredDocument):
    """A passage that is not shown, since it reads like an instruction to a machine."""

    ordinal: Annotated[int, Field(ge=0)]
    reason: str


class Document(StoredDocument):
    """One version of one source.

    source: the file's name as it was added; empty once erased. sha256: of the file's bytes.
    text_sha256: of the canonical text in UTF-8. structure_sha256: of the blocks and passages kept beside it.
    added: seconds since 1970. passages: how many there are. personal_data: findings by kind, as they were handled.
    receipt: the file name of the receipt, once erased.
    """

    id: DocumentId
    state: State
    source: Annotated[str, Field(max_length=400)]
    sha256: Sha256
    text_sha256: Sha256
    structure_sha256: Sha256
    format: str
    version: Annotated[int, Field(ge=1)]
    added: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    characters: Annotated[int, Field(ge=0)]
    passages: Annotated[int, Field(ge=0)]
    pages: Annotated[int, Field(ge=0)] = 0
    personal_data: dict[str, int] = Field(default_factory=dict)
    quarantined: tuple[Quarantined, ...] = ()
    receipt: str = ""


class Contents(StoredDocument):
    """The file."""

    format: Annotated[int, Field(ge=1, le=1)] = 1
    generation: Annotated[int, Field(ge=0)] = 0
    documents: tuple[Document, ...] = ()


class Catalogue:
    """Contents of one moment, by identifier."""

    def __init__(self, contents: Contents) -> None:
        self.generation = contents.generation
        self._documents: dict[str, Document] = {document.id: document for document in contents.documents}

    @classmethod
    def read(cls, path: Path) -> "Catalogue":
        """Raises StateError when the file is damaged; one that is missing is empty."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(Contents())
        return cls(parsed(data, str(path)))

    def documents(self, *states: State) -> list[Document]:
        """Those in one of these states (all, where none is named), as they were added."""
        return [one for one in self._documents.values() if not states or one.state in states]

    def live(self) -> Mapping[str, Document]:
        """What may be found, by identifier."""
        return {key: one for key, one in self._documents.items() if one.state is State.LIVE}

    def get(self, document: str) -> Document | None:
        """The document of this identifier, in whatever state."""
        return self._documents.get(document)

    def with_documents(self, changed: Iterable[Document], *, without: Iterable[str] = ()) -> "Catalogue":
        """The next generation."""
        merged = {**self._documents, **{one.id: one for one in changed}}
        for key in without:
            merged.pop(key, None)
        return Catalogue(Contents(generation=self.generation + 1, documents=tuple(merged.values())))

    def write(self, path: Path) -> None:
        """Replace the file durably."""
        contents = Contents(generation=self.generation, documents=tuple(self._documents.values()))
        write_atomic(path, canonical.encode(contents.model_dump(mode="json")))


def parsed(data: bytes, what: str) -> Contents:
    """The contents of a catalogue's file. Raises StateError."""
    if len(data) > _MOST_BYTES:
        raise StateError(f"{what} has {len(data):,} bytes; no catalogue is that large")
    try:
        contents = Contents.model_validate_json(data)
    except (ValidationError, ValueError, RecursionError) as error:
        raise StateError(f"{what} is damaged ({type(error).__name__}); restore it from a backup") from None
    if len({one.id for one in contents.documents}) != len(contents.documents):
        raise StateError(f"{what} names a document twice; restore it from a backup")
    return contents
