"""What was asked and answered: a hash-chained journal, and with it the memory against replays and above limits.

Each inquiry of a member is written down before it is looked at, and its answer before that leaves; what goes beyond the
hourly limit is refused and not written, so that nobody can fill the disk. Its lines hold no words of documents, and the
question only where the policy says so.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from confide.inquiries.documents import Answer, Inquiry
from confide.inquiries.refusals import InquiryRefused, Refusal
from confide.journal import Journal

HOUR_S = 3600.0
DAY_S = 86_400.0
NAME = "inquiries.log"


class InquiryLog:
    """Held exclusively by the process that answers."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open or create, verifying every line. Raises StateError: damaged, or in use."""
        self._journal, self._clock = Journal(path), clock
        self._seen: set[tuple[str, str]] = set()
        self._asked: dict[str, deque[float]] = {}
        self._quoted: deque[tuple[float, int]] = deque()
        for body in self._journal:
            self._remember(body)

    def take(self, inquiry: Inquiry, *, per_hour: int, keep_question: bool) -> None:
        """Write down that it was asked. Raises InquiryRefused REPLAYED or TOO_MANY, and then writes nothing."""
        now = self._clock()
        if (inquiry.asker, inquiry.id) in self._seen:
            raise InquiryRefused(Refusal.REPLAYED, f"inquiry {inquiry.id[:8]} was asked here before; ask anew")
        asked = self._asked.setdefault(inquiry.asker, deque())
        while asked and asked[0] <= now - HOUR_S:
            asked.popleft()
        if len(asked) >= per_hour:
            raise InquiryRefused(
                Refusal.TOO_MANY, f"{inquiry.asker} asked {len(asked)} times within the hour; try again later"
            )
        text = {"question": inquiry.question} if keep_question else {}
        self._write(
            {
                "event": "asked",
                "time": now,
                "id": inquiry.id,
                "asker": inquiry.asker,
                "purpose": inquiry.purpose,
                "question_sha256": hashlib.sha256(inquiry.question.encode()).hexdigest(),
                **text,
            }
        )

    def quotes_left(self, per_day: int) -> int:
        """How many quotations may still be given now."""
        now = self._clock()
        while self._quoted and self._quoted[0][0] <= now - DAY_S:
            self._quoted.popleft()
        return max(0, per_day - sum(count for _, count in self._quoted))

    def answered(self, answer: Answer, signed: bytes) -> None:
        """Write down what goes out: durable before it does."""
        self._write(
            {
                "event": answer.outcome,
                "time": self._clock(),
                "id": answer.id,
                "asker": answer.asker,
                "found": answer.found,
                "quotes": len(answer.quotes),
                "documents": sorted({quote.document for quote in answer.quotes}),
                "redacted": sum(len(quote.redacted) for quote in answer.quotes),
                "code": answer.code,
                "answer_sha256": hashlib.sha256(signed).hexdigest(),
            }
        )

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()

    def _write(self, body: dict[str, object]) -> None:
        self._journal.append(body)
        self._remember(body)

    def _remember(self, body: dict[str, object]) -> None:
        asker, when = str(body["asker"]), float(str(body["time"]))
        if body["event"] == "asked":
            self._seen.add((asker, str(body["id"])))
            self._asked.setdefault(asker, deque()).append(when)
        elif body["event"] == "quotes":
            self._quoted.append((when, int(str(body["quotes"]))))
