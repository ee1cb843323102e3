"""Who waits to be admitted, and whose admission lies here unfetched: said to whoever runs the coordinator."""

from confide.identity.expiry import Notice
from confide.identity.roster import utc

from confide_server.membership.enrolment import EnrolmentQueue

UNFETCHED_S = 86400.0
"""An admission that lies here for longer is spoken of."""


def waiting_notices(queue: EnrolmentQueue, now: float) -> list[Notice]:
    """One for each name, by name. now: Unix seconds."""
    asked = [
        Notice(
            f"{name} waits to be admitted since {utc(since)}: `confide consortium admit --waiting --admin ADMIN`, or "
            "`confide consortium requests` to see its key first",
            over=False,
        )
        for name, since in queue.unanswered().items()
    ]
    unfetched = [
        Notice(
            f"the admission of {name} lies here unfetched since {utc(since)}: tell {name} to run the command again "
            "with which it asked; a node that takes it after the roster in it has ended needs a new one",
            over=False,
        )
        for name, since in queue.unfetched().items()
        if now - since >= UNFETCHED_S
    ]
    return [*asked, *unfetched]
