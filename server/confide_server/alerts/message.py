"""One message of what needs somebody: as a webhook's document and as a mail's text, both from the catalogue.

Guarantee: of what others chose only names are in it (runs, releases, members, groups of data), each cleaned to one line
of 100 characters; no reason and no text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confide.text import line

from confide_server.alerts.needs import Need
from confide_server.alerts.words import TEXTS

NAME_CHARS = 100


@dataclass(frozen=True)
class Line:
    """One matter. same: equal for the same matter (needs.Need.same); level: bad or warn; address: of its page."""

    same: str
    kind: str
    level: str
    words: str
    address: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is sent over a channel at a time."""

    consortium: str
    coordinator: str
    by: str = ""
    """The member that tells, where it is not the coordinator: a console."""
    sent_at: float
    needs: Sequence[Line] = ()
    solved: Sequence[Line] = ()
    trial: bool = False

    def document(self) -> dict[str, Any]:
        """For the webhook."""
        return {
            "format": 1, "consortium": line(self.consortium, NAME_CHARS), "sent_at": int(self.sent_at),
            "coordinator": line(self.coordinator, NAME_CHARS), "by": self._by, "trial": self.trial,
            "needs": [_entry(one, one.words) for one in self.needs],
            "solved": [_entry(one, _over(one)) for one in self.solved],
        }  # fmt: skip

    @property
    def _by(self) -> str:
        return line(self.by or self.coordinator, NAME_CHARS)

    def subject(self) -> str:
        """Of the mail, without line breaks."""
        said = TEXTS("alert.subject", count=len(self.needs))
        if self.trial:
            said = TEXTS("alert.subject_trial")
        elif not self.needs:
            said = TEXTS("alert.subject_solved", count=len(self.solved))
        return f"[Confide {line(self.consortium, NAME_CHARS)}] {said}"

    def text(self) -> str:
        """Of the mail."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        at = datetime.fromtimestamp(self.sent_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        yield TEXTS("alert.head", at=at, consortium=line(self.consortium, NAME_CHARS), by=self._by)
        if self.trial:
            yield from ("", TEXTS("alert.trial"))
        urgent = [one for one in self.needs if one.level == "bad"]
        other = [one for one in self.needs if one.level != "bad"]
        for head, listed in (("alert.urgent", urgent), ("alert.other", other), ("alert.solved", self.solved)):
            if listed:
                yield from ("", TEXTS(head))
                for one in listed:
                    words = _over(one) if head == "alert.solved" else one.words
                    yield f"- {words}" + (f" {one.address}" if one.address else "")
        yield from ("", TEXTS("alert.foot"))


def line_of(need: Need, console: str) -> Line:
    """A need without anybody's own words. console: the console's address, or empty."""
    said = {name: line(value, NAME_CHARS) if isinstance(value, str) else value for name, value in need.said.items()}
    bare = f"bare.{need.kind}"
    words = TEXTS(bare if bare in TEXTS.keys else need.text, **said)
    return Line(need.same, need.kind, need.level, words, console.rstrip("/") + need.address if console else "")


def _over(one: Line) -> str:
    key = f"back.{one.kind}"
    return TEXTS(key, words=one.words) if key in TEXTS.keys else one.words


def _entry(one: Line, words: str) -> dict[str, str]:
    return {"kind": one.kind, "level": one.level, "words": words, "address": one.address}
