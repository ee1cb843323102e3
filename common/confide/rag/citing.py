"""Quotations as the answer that they make, with a citation each."""

from collections.abc import Sequence

from confide.rag.collection import Collection
from confide.rag.quoting import Quote
from confide.rag.verifying import Citation, rendered


def cited(collection: Collection, quotes: Sequence[Quote]) -> tuple[str, list[Citation]]:
    """The answer that these quotations make. Raises CitationError as `rendered` does."""
    texts = [collection.content(one.found.passage.document).text[one.start : one.stop] for one in quotes]
    text, places = rendered(texts)
    citations = []
    for number, (one, quote, place) in enumerate(zip(quotes, texts, places, strict=True), start=1):
        passage = one.found.passage
        citations.append(
            Citation(
                number=number,
                collection=passage.collection,
                document=passage.document.id,
                source=passage.document.source,
                version=passage.document.version,
                text_sha256=passage.document.text_sha256,
                start=one.start,
                stop=one.stop,
                quote=quote,
                text_start=place[0],
                text_stop=place[1],
                page=passage.page,
                headings=passage.headings,
            )
        )
    return text, citations
