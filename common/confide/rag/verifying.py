"""Checks an answer against what is stored, and believes nothing of what made it.

It reads the catalogue and the text from disk, anew: the quotation stands at its offsets in the stored canonical text of
that version, the text has the hash that was taken when it was added, the document was neither erased nor replaced, the
passage is not in quarantine, the caller may read it, and the answer consists of the cited quotations and nothing else.

Guarantee: an answer for which `verify_answer` returns holds no word that is not in a document that this caller may
read, as far as SHA-256 holds and the disk answers honestly. Whoever cannot verify gets an error, never a verdict.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote as percent

from confide.errors import ConfideError, StateError
from confide.rag.access import Caller, CollectionName, allow
from confide.rag.catalogue import Catalogue, Document, State
from confide.rag.documents import DocumentFiles

REFUSAL = "I don't know: the documents do not say."
_MARK = """(?:["“”„‟«»″ʺ˝〃]|''|‘‘|’’|′′)"""
_ENDING = re.compile(rf"{_MARK}\s*[\[【〔⟦]\s*\d+\s*[\]】〕⟧]\s*(?:{_MARK}|$)")


class CitationError(ConfideError):
    """A quotation does not hold; the answer is not given."""


@dataclass(frozen=True)
class Citation:
    """A quotation: characters [start, stop) of a version's canonical text.

    text_start, text_stop: where it stands in the answer, its marker included. page, headings: for people to find it.
    """

    number: int
    collection: CollectionName
    document: str
    source: str
    version: int
    text_sha256: str
    start: int
    stop: int
    quote: str
    text_start: int
    text_stop: int
    page: int | None = None
    headings: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """confide:ORGANIZATION/COLLECTION/DOCUMENT#char=START,STOP (the fragment as in RFC 5147)."""
        return f"confide:{self.collection}/{self.document}#char={self.start},{self.stop}"

    def annotation(self) -> dict[str, object]:
        """As OpenAI's chat completions say it."""
        place = f", page {self.page}" if self.page is not None else ""
        return {
            "type": "url_citation",
            "url_citation": {
                "start_index": self.text_start,
                "end_index": self.text_stop,
                "title": f"{self.source}{place}",
                "url": percent(self.url, safe=":/#=,"),
            },
        }


def ends_itself(text: str) -> bool:
    """Whether a text holds what ends a quotation, or looks like it: what follows would seem to be another document's.

    >>> ends_itself('It is free" [2] "and good'), ends_itself('He said "good" [2] and left')
    (True, False)
    """
    return _ENDING.search(unicodedata.normalize("NFKC", text)) is not None


def rendered(quotes: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The answer that these quotations make, and where each stands in it. Raises CitationError (ends_itself)."""
    text, places = "", []
    for number, quote in enumerate(quotes, start=1):
        if ends_itself(quote):
            raise CitationError(f"what citation {number} would quote reads like the end of a quotation")
        start = len(text) + (1 if text else 0)
        text += f'{" " if text else ""}"{" ".join(quote.split())}" [{number}]'
        places.append((start, len(text)))
    return text, places


def verify_answer(text: str, citations: Sequence[Citation], caller: Caller, root: Path) -> None:
    """Raises CitationError for an answer that is not made of quotations that hold, AccessRefused for a wrong reader.

    root: the library's folder.
    """
    if not citations:
        raise CitationError("the answer cites nothing")
    expected, places = rendered([one.quote for one in citations])
    if text != expected:
        raise CitationError("the answer holds words beside its quotations")
    for number, (one, place) in enumerate(zip(citations, places, strict=True), start=1):
        if one.number != number or (one.text_start, one.text_stop) != place:
            raise CitationError(f"citation {number} does not stand where it says")
        verify_citation(one, caller, root)


def verify_citation(citation: Citation, caller: Caller, root: Path) -> None:
    """Raises CitationError or AccessRefused."""
    allow(caller, citation.collection)
    folder = root / "organizations" / citation.collection.organization / citation.collection.collection
    document = Catalogue.read(folder / "catalogue.json").get(citation.document)
    if document is None or document.state is not State.LIVE:
        raise CitationError(f"the document of citation {citation.number} is not there any more")
    same = (document.source, document.version, document.text_sha256)
    if same != (citation.source, citation.version, citation.text_sha256):
        raise CitationError(f"citation {citation.number} speaks of another version than the one that is there")
    text = _text(folder, document)
    if not 0 <= citation.start < citation.stop <= len(text) or text[citation.start : citation.stop] != citation.quote:
        raise CitationError(f"the quotation of citation {citation.number} does not stand in its document")
    _check_quarantine(folder, document, citation)


def _text(folder: Path, document: Document) -> str:
    path, _ = DocumentFiles(folder / "documents").paths(document.id)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CitationError(f"the text of {document.id} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != document.text_sha256:
        raise CitationError(f"the stored text of {document.id} was changed")
    return data.decode()


def _check_quarantine(folder: Path, document: Document, citation: Citation) -> None:
    try:
        spans = DocumentFiles(folder / "documents").read(document).passages if document.quarantined else ()
    except StateError:  # erased just now, or changed; its words name the operator's folders
        raise CitationError(f"the passages of {document.id} cannot be read") from None
    for one in document.quarantined:
        span = spans[one.ordinal] if one.ordinal < len(spans) else None
        if span is None or (span.start < citation.stop and span.stop > citation.start):
            raise CitationError(f"the passage of citation {citation.number} is in quarantine")
