"""What an asker believes of an answer: nothing that the node did not sign for exactly this inquiry.

Guarantee: an answer for which `checked` returns was signed by the member that was asked, after it read this inquiry,
and its quotations are as long as their offsets say. That a quotation stands in a document the node alone can know; it
signs for it, and `confide node rag check` shows it to whoever may read the documents.
"""

from collections.abc import Sequence

from confide.errors import IdentityError, TransportError
from confide.identity.roster import Role, Roster
from confide.inquiries.documents import Answer, Inquiry, Quotation, digest, opened
from confide.text import line

NODES = frozenset({Role.NODE})


def checked(data: bytes, inquiry: Inquiry, signed_inquiry: bytes, roster: Roster) -> Answer:
    """The answer, if it is one to this inquiry. Raises IdentityError or TransportError naming what is wrong."""
    answer = opened(Answer, data, roster, "node", NODES)
    if answer.node != inquiry.node:
        raise IdentityError(f"{inquiry.node} was asked, and {answer.node} signed the answer; ask again")
    if answer.inquiry != digest(signed_inquiry) or (answer.id, answer.asker) != (inquiry.id, inquiry.asker):
        raise IdentityError(f"{answer.node} answered another inquiry than the one that it was sent; ask again")
    _check_kind(answer, inquiry)
    for quote in answer.quotes:
        check_form(quote)
    return answer


def _check_kind(answer: Answer, inquiry: Inquiry) -> None:
    if len(answer.quotes) > inquiry.quotes:
        raise TransportError(f"{answer.node} sent {len(answer.quotes)} quotations; {inquiry.quotes} were asked for")
    if answer.quotes and answer.outcome != "quotes":
        raise TransportError(f"{answer.node} sent quotations in an answer of the kind {answer.outcome}")
    if (answer.outcome == "refused") != bool(answer.code):
        raise TransportError(f"{answer.node} sent an answer that both refuses and does not")


def check_form(quote: Quotation) -> None:
    """Raise TransportError where text, offsets and redactions cannot belong together."""
    pieces(quote)


def pieces(quote: Quotation) -> list[tuple[int, int, str]]:
    """(start, stop, text) of what stands word for word: between the redactions. Raises TransportError."""
    found, place, rest = [], quote.start, quote.text
    for one in (*quote.redacted, None):
        stop = quote.stop if one is None else one.start
        length = stop - place
        if length < 0 or len(rest) < length:
            raise _odd(quote)
        if length:
            found.append((place, stop, rest[:length]))
        rest = rest[length:]
        if one is not None:
            mark = f"[{one.kind}]"
            if not rest.startswith(mark) or one.stop <= one.start or one.stop > quote.stop:
                raise _odd(quote)
            rest, place = rest[len(mark) :], one.stop
    if rest or quote.stop <= quote.start:
        raise _odd(quote)
    return found


def check_stands(quote: Quotation, text: str) -> None:
    """Raise TransportError unless the quotation stands in the document's canonical text at its offsets."""
    for start, stop, said in pieces(quote):
        if text[start:stop] != said:
            raise TransportError(f"characters {start} to {stop} of {line(quote.source, 80)!r} are not what was quoted")


def redactions(quotes: Sequence[Quotation]) -> int:
    """How many places were redacted."""
    return sum(len(quote.redacted) for quote in quotes)


def _odd(quote: Quotation) -> TransportError:
    return TransportError(
        f"a quotation of {line(quote.source, 80)!r} has {len(quote.text)} characters, which its offsets "
        f"{quote.start} to {quote.stop} and its redactions do not allow"
    )
