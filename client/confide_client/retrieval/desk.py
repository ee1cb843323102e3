"""A question in, sealed; an answer out, sealed: everything between is decided on this machine, by its own policy.

    desk = Desk(name, identity, roster, load_policy, finder, log)
    sealed, failure = desk.answer(box)

Guarantee: nothing is searched for an inquiry that an active member did not sign for this node, that is late or was
asked before, or that the policy as it stands now does not allow; and what goes out is in the log first.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from confide.errors import ConfideError
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.inquiries.documents import Answer, Inquiry, digest, info_of_answer, signed
from confide.inquiries.refusals import InquiryRefused, Refusal
from confide.inquiries.sealed import BoxKey, seal

from confide_client.policy.policy import Policy
from confide_client.policy.retrieval import Retrieval
from confide_client.retrieval.finding import Finder
from confide_client.retrieval.log import InquiryLog
from confide_client.retrieval.reading import check_addressed, read, unsealed

log = logging.getLogger(__name__)
ANSWER_STEP = 8192
REFUSALS_PER_HOUR = 10
"""While the policy answers nobody."""


@dataclass(frozen=True)
class Reply:
    """One of the two: what goes back sealed, or the name of why it is not known to whom anything could go."""

    sealed: bytes = b""
    failure: str = ""


class Desk:
    """One node's. Used by one thread at a time."""

    def __init__(
        self,
        name: str,
        identity: SigningKey,
        roster: Callable[[], Roster],
        policy: Callable[[], Policy],
        finder: Finder,
        journal: InquiryLog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """roster, policy: as they stand now, asked for every inquiry."""
        self._name, self._identity, self._roster, self._policy = name, identity, roster, policy
        self._finder, self._journal, self._clock = finder, journal, clock
        self.key = BoxKey()
        """To which inquiries are sealed: of this process alone."""

    def answer(self, box: bytes) -> Reply:
        """Never raises for anything that came in `box`."""
        try:
            data = unsealed(box, self.key, self._name)
            inquiry = read(data, self._roster(), self._clock())
        except InquiryRefused as error:
            log.warning("an inquiry was not answered: %s: %s", error.code, error)
            return Reply(failure=error.code)
        answer = self._decided(inquiry, digest(data))
        document = signed(answer, self._identity)
        try:
            if answer.code not in (Refusal.REPLAYED, Refusal.TOO_MANY):
                self._journal.answered(answer, document)
            info = info_of_answer(answer.inquiry)
            return Reply(seal(document, bytes.fromhex(inquiry.reply_key), info, step=ANSWER_STEP))
        except ConfideError as error:
            log.error("inquiry %s was not answered: %s", inquiry.id[:8], error)
            return Reply(failure=Refusal.FAILED)

    def _decided(self, inquiry: Inquiry, sha256: str) -> Answer:
        try:
            return self._said(inquiry, sha256)
        except InquiryRefused as error:
            log.warning("inquiry %s of %s: %s: %s", inquiry.id[:8], inquiry.asker, error.code, error)
            return self._refused(inquiry, sha256, error.name, str(error))
        except Exception as error:  # one question must not end the desk
            log.error("inquiry %s of %s failed", inquiry.id[:8], inquiry.asker, exc_info=error)
            return self._refused(inquiry, sha256, Refusal.FAILED, "the node failed; its log says why")

    def _said(self, inquiry: Inquiry, sha256: str) -> Answer:
        check_addressed(inquiry, self._name, self._clock())
        rules = self._rules()
        self._journal.take(
            inquiry,
            per_hour=REFUSALS_PER_HOUR if rules is None else rules.per_hour,
            keep_question=rules is not None and rules.keep_questions,
        )
        if rules is None:
            raise InquiryRefused(Refusal.SWITCHED_OFF, "this node answers no questions: its policy does not say so")
        rules.check(asker=inquiry.asker, purpose=inquiry.purpose, quotes=inquiry.quotes)
        wanted = inquiry.quotes if rules.answers == "quotes" else 0
        if wanted > self._journal.quotes_left(rules.quotes_per_day):
            raise InquiryRefused(Refusal.TOO_MANY, "this node has given its quotations for today; try again tomorrow")
        found = self._finder.find(inquiry.question, rules, quotes=wanted)
        return self._made(
            inquiry, sha256, outcome="quotes" if wanted else "count", found=found.found, quotes=found.quotes
        )

    def _rules(self) -> Retrieval | None:
        try:
            return self._policy().retrieval
        except ConfideError as error:  # an unclear policy allows nothing
            log.warning("%s", error)
            return None

    def _refused(self, inquiry: Inquiry, sha256: str, name: Refusal, reason: str) -> Answer:
        return self._made(inquiry, sha256, outcome="refused", code=name.value, reason=reason[:600])

    def _made(self, inquiry: Inquiry, sha256: str, **said: object) -> Answer:
        known = {"id": inquiry.id, "inquiry": sha256, "node": self._name, "asker": inquiry.asker}
        return Answer.model_validate({**known, "answered_at": int(self._clock()), **said})
