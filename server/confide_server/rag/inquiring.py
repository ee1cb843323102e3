"""What `confide rag inquire` prints: each quotation with its organization, and who said nothing, and why."""

from collections.abc import Iterator

from confide.inquiries.asking import Outcome
from confide.text import line

MOST_CHARS = 600


def told(found: Outcome) -> Iterator[str]:
    """Line by line; everything from elsewhere is made fit for a terminal by whoever prints it."""
    for one in found.quotes:
        quote = one.quotation
        page = f", page {quote.page}" if quote.page is not None else ""
        yield f'{one.organization}: "{line(quote.text, MOST_CHARS)}"'
        yield (
            f"    {quote.source}{page}, characters {quote.start} to {quote.stop}, document {quote.sha256[:16]}, "
            f"cosine {one.cosine:.3f}"
        )
    for answer in found.answers:
        if answer.outcome == "count":
            yield f"{answer.node}: {answer.found} passages are near the question; it gives no quotations"
        elif answer.outcome == "refused":
            yield f"{answer.node}: refused, {line(answer.code, 64)}: {answer.reason}"
        elif not answer.found:
            yield f"{answer.node}: nothing near enough to the question"
        elif not answer.quotes:
            near = f"{answer.found} passages are near the question"
            yield f"{answer.node}: {near}, and nothing in them may or can be quoted"
    for node, why in sorted(found.failures.items()):
        yield f"{node}: no answer that could be believed: {why}"
    if found.skipped:
        yield f"not asked, since their outlines are about something else: {', '.join(found.skipped)}"
