"""An asker's steps in order: cards, routing, one signed and sealed inquiry a node, answers checked and ranked.

    with InquiryClient.of_member(member) as client:
        found = Inquirer(member, client, embedder, purpose="care").ask("What does a visit cost?")
        for one in found.quotes: print(one.organization, one.quotation.text)

Ranked are quotations by the asker's own embedder: a node's word of how good its quotation is counts for nothing.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confide.errors import ConfideError, StateError, TransportError
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.inquiries.checking import NODES, checked
from confide.inquiries.documents import (
    MOST_QUESTION_CHARS,
    Answer,
    IndexCard,
    Inquiry,
    Quotation,
    digest,
    info_of_answer,
    info_of_inquiry,
    opened,
    signed,
)
from confide.inquiries.routing import chosen, known_of
from confide.inquiries.sealed import BoxKey, seal
from confide.rag.access import checked_name
from confide.rag.embedder import Embedder
from confide.transport.inquiries import InquiryClient

INQUIRY_STEP = 2048
VALID_S = 120


@dataclass(frozen=True)
class Quoted:
    """A quotation, of which organization, and how near to the question the asker's embedder finds it."""

    organization: str
    quotation: Quotation
    cosine: float


@dataclass(frozen=True)
class Outcome:
    """What came back.

    answers: checked, refusals among them. signed: each as its node signed it, by node. failures: by node, why nothing
    could be believed of it. skipped: nodes that routing left out. bytes_sent, bytes_received: sealed, as they went.
    """

    quotes: tuple[Quoted, ...]
    answers: tuple[Answer, ...]
    signed: dict[str, bytes]
    failures: dict[str, str]
    skipped: tuple[str, ...]
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True)
class _Sent:
    """One inquiry under way."""

    inquiry: Inquiry
    signed: bytes
    key: BoxKey
    box: bytes


class Inquirer:
    """Asks as one member, for one purpose."""

    def __init__(
        self,
        name: str,
        identity: SigningKey,
        roster: Callable[[], Roster],
        client: InquiryClient,
        embedder: Embedder,
        *,
        purpose: str,
        quotes: int = 3,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """roster: the newest. quotes: wanted of each node; 0 asks for counts only. clock: replaced in tests only.

        Raises StateError for a purpose that no policy can name.
        """
        checked_name(purpose, "purpose")
        self._name, self._identity, self._roster, self._client = name, identity, roster, client
        self._embedder, self._purpose, self._quotes, self._clock = embedder, purpose, quotes, clock

    def cards(self) -> dict[str, IndexCard]:
        """Of nodes that answer, by name: signed by them, and not expired."""
        found, now = {}, self._clock()
        for data in self._client.cards():
            try:
                card = opened(IndexCard, data, self._roster(), "node", NODES)
            except ConfideError:
                continue  # of a node that was revoked, or a card that is none: nobody to ask
            if card.expires_at > now:
                found[card.node] = card
        return found

    def ask(
        self, question: str, *, nodes: Sequence[str] = (), everybody: bool = False, margin: float | None = None,
        deadline_s: int = 30,
    ) -> Outcome:  # fmt: skip
        """Ask the nodes that routing chooses; or these, or all that answer.

        Raises StateError for a question that cannot be asked, or where nobody answers.
        """
        question = " ".join(question.split())
        if not 1 <= len(question) <= MOST_QUESTION_CHARS:
            raise StateError(f"a question has 1 to {MOST_QUESTION_CHARS} characters; this one has {len(question)}")
        if any("\ud800" <= char <= "\udfff" for char in question):
            raise StateError("the question holds half of a surrogate pair; write it as UTF-8")
        cards = self.cards()
        if missing := set(nodes) - set(cards):
            raise StateError(f"{', '.join(sorted(missing))} answers no questions now; without --node others are asked")
        if not cards:
            raise StateError("no node answers questions: none runs `confide node rag serve`, or its card has ended")
        asked = list(nodes) or (sorted(cards) if everybody else self._routed(question, cards, margin))
        skipped = () if nodes else tuple(sorted(set(cards) - set(asked)))
        sent, failures = self._sealed(question, {node: cards[node] for node in asked}, deadline_s)
        return self._collected(question, sent, failures, skipped, deadline_s)

    def _routed(self, question: str, cards: dict[str, IndexCard], margin: float | None) -> list[str]:
        known = {n: known_of(card, self._embedder.sha256, self._embedder.dimension) for n, card in cards.items()}
        [vector] = self._embedder.embed([question])
        return chosen(vector.astype(float), known, margin=margin)

    def _sealed(
        self, question: str, cards: dict[str, IndexCard], deadline_s: int
    ) -> tuple[dict[str, _Sent], dict[str, str]]:
        """(an inquiry a node, why there is none): one member's odd card keeps nobody from asking the others."""
        sent, failures = {}, {}
        for node, card in cards.items():
            try:
                sent[node] = self._inquiry(question, card, deadline_s)
            except TransportError as error:
                failures[node] = f"{error.code}: {error}"
        return sent, failures

    def _inquiry(self, question: str, card: IndexCard, deadline_s: int) -> _Sent:
        key, now = BoxKey(), int(self._clock())
        inquiry = Inquiry(
            id=secrets.token_hex(16), asker=self._name, node=card.node, purpose=self._purpose, question=question,
            quotes=self._quotes, issued_at=now, expires_at=now + max(VALID_S, deadline_s), reply_key=key.public.hex(),
        )  # fmt: skip
        data = signed(inquiry, self._identity)
        box = seal(data, bytes.fromhex(card.key), info_of_inquiry(card.node), step=INQUIRY_STEP)
        return _Sent(inquiry, data, key, box)

    def _collected(
        self, question: str, sent: dict[str, _Sent], unsent: dict[str, str], skipped: tuple[str, ...], deadline_s: int
    ) -> Outcome:
        answers: list[Answer] = []
        kept: dict[str, bytes] = {}
        failures, received = dict.fromkeys(sent, "LATE"), 0
        boxes = {node: one.box for node, one in sent.items()}
        for node, box, failure in self._client.inquire(boxes, deadline_s=deadline_s) if boxes else ():
            if node not in failures:
                continue  # not asked, or answered before: the first answer counts
            received += len(box)
            failures[node] = failure
            if not failure:
                try:
                    answer, kept[node] = self._opened(box, sent[node])
                    answers.append(answer)
                    del failures[node]
                except ConfideError as error:
                    failures[node] = f"{error.code}: {error}"
        out, failures = sum(map(len, boxes.values())), {**failures, **unsent}
        return Outcome(self._ranked(question, answers), tuple(answers), kept, failures, skipped, out, received)

    def _opened(self, box: bytes, sent: _Sent) -> tuple[Answer, bytes]:
        data = sent.key.open(box, info_of_answer(digest(sent.signed)))
        return checked(data, sent.inquiry, sent.signed, self._roster()), data

    def _ranked(self, question: str, answers: Sequence[Answer]) -> tuple[Quoted, ...]:
        pairs = [(answer.node, quote) for answer in answers for quote in answer.quotes]
        if not pairs:
            return ()
        vectors = self._embedder.embed([question, *(quote.text for _, quote in pairs)])
        cosines = vectors[1:] @ vectors[0]
        found = [Quoted(node, quote, float(cosine)) for (node, quote), cosine in zip(pairs, cosines, strict=True)]
        return tuple(sorted(found, key=lambda one: -one.cosine))
