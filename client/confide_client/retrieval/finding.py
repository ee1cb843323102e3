"""Passages near a question in the node's own collections, and what of them goes out: sentences, checked and redacted.

Guarantee: every quotation that `Finder.find` returns stood in the stored text at its offsets a moment before, in a
document that is neither erased nor replaced nor in quarantine (confide.rag.verifying), but for what was redacted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from confide.inquiries.documents import MOST_QUOTES, Quotation, Redaction
from confide.inquiries.refusals import InquiryRefused, Refusal
from confide.rag.access import Caller
from confide.rag.calibration import calibration_of
from confide.rag.citing import cited
from confide.rag.collection import Collection
from confide.rag.embedder import Embedder
from confide.rag.library import Library
from confide.rag.personal_data import Finding, findings, masked
from confide.rag.quoting import Quote, pick
from confide.rag.retrieval import Found
from confide.rag.sentences_near import SentenceVectors, near, sentences_of
from confide.rag.verifying import Citation, CitationError, verify_citation

from confide_client.policy.retrieval import Retrieval

_BEYOND_CHARS = 300


@dataclass(frozen=True)
class Findings:
    """found: passages near enough, at most ten are counted."""

    found: int
    quotes: tuple[Quotation, ...]


class Finder:
    """Used by one thread at a time."""

    def __init__(self, library: Library, caller: Caller, embedder: Embedder) -> None:
        self._library, self._caller, self._embedder = library, caller, embedder
        self._sentences = SentenceVectors(embedder)

    def find(self, question: str, rules: Retrieval, *, quotes: int) -> Findings:
        """Raises InquiryRefused QUOTE_NOT_VERIFIED; StateError where a collection cannot be searched."""
        [vector] = self._embedder.embed([question])
        ranked: list[tuple[Found, Collection]] = []
        for name in rules.collections:
            collection, searcher = self._library.opened(self._caller, name)
            collection.check_embedder(self._embedder)
            weight = calibration_of(collection).lexical_weight
            ranking = searcher.search(question, vector, self._caller, limit=MOST_QUOTES, weight=weight)
            ranked += [(one, collection) for one in ranking.found if one.dense >= rules.least_cosine]
        ranked.sort(key=lambda pair: -pair[0].score)
        best = ranked[:MOST_QUOTES]
        chosen: list[Quotation] = []
        for found, collection in best:
            if len(chosen) < quotes:
                sentences = near(sentences_of(collection, [found]), vector, self._sentences)
                chosen += self._quoted(collection, pick(sentences, [found]), rules)
        return Findings(len(best), tuple(chosen))

    def _quoted(self, collection: Collection, picked: Sequence[Quote], rules: Retrieval) -> list[Quotation]:
        try:
            _, citations = cited(collection, picked)
            for citation in citations:
                verify_citation(citation, self._caller, self._library.root)
        except CitationError as error:
            raise InquiryRefused(
                Refusal.QUOTE_NOT_VERIFIED, "a passage was found whose words could not be verified; ask again"
            ) from error
        made = []
        for citation, quote in zip(citations, picked, strict=True):
            personal = _personal(quote, collection) if rules.personal_data != "keep" else []
            if not (personal and rules.personal_data == "refuse"):
                headings = [_masked(one, collection, rules) for one in citation.headings[-16:]]
                made.append(_quotation(citation, quote, personal, headings))
        return made


def _personal(quote: Quote, collection: Collection) -> list[Finding]:
    """Within the quotation; looked for beyond its ends too, so that one that it cuts is found."""
    start = max(0, quote.start - _BEYOND_CHARS)
    text = collection.content(quote.found.passage.document).text[start : quote.stop + _BEYOND_CHARS]
    inside = []
    for one in findings(text, collection.settings.region or None):
        first, last = max(one.start + start, quote.start), min(one.stop + start, quote.stop)
        if first < last:
            inside.append(Finding(one.kind, first - quote.start, last - quote.start))
    return inside


def _masked(text: str, collection: Collection, rules: Retrieval) -> str:
    if rules.personal_data == "keep":
        return text
    return masked(text, findings(text, collection.settings.region or None))


def _quotation(citation: Citation, quote: Quote, personal: Sequence[Finding], headings: Sequence[str]) -> Quotation:
    document = quote.found.passage.document
    return Quotation(
        collection=citation.collection.collection,
        document=citation.document,
        source=citation.source,
        version=citation.version,
        sha256=document.sha256,
        text_sha256=citation.text_sha256,
        start=citation.start,
        stop=citation.stop,
        text=masked(citation.quote, personal),
        redacted=tuple(
            Redaction(start=citation.start + one.start, stop=citation.start + one.stop, kind=one.kind)
            for one in personal
        ),
        page=citation.page,
        headings=tuple(headings),
    )
