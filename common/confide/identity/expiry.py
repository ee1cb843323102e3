"""What of a member's papers ends soon, or has ended: said early, with the command that mends it.

    for notice in notices(folder, time.time()):
        print(notice.text)

A roster and a certificate are spoken of from two weeks before their end (half of their life, where that is shorter).

>>> due(expires_at=1000.0, issued_at=0.0, now=400.0), due(expires_at=1000.0, issued_at=0.0, now=600.0)
(False, True)
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from confide.errors import ConfideError, IdentityError
from confide.identity.certificates import load_certificate, read_claim, renewal_of
from confide.identity.member import Membership, read_membership, read_text
from confide.identity.roster import Member, Role, Roster, RosterStore, utc

WARN_S = 14 * 86400.0
LOOK_EVERY_S = 86400.0
INVITED_UNTIL = "invited-until"
"""In the folder of who asked by an invitation: Unix seconds, until which the admission can be fetched with it."""
EXIT_SOON, EXIT_OVER = 4, 5
"""Exit statuses of `status` commands: something ends soon; something has ended, or the member was revoked."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """One thing that a person has to do."""

    text: str
    over: bool
    """It has ended already."""


def due(*, expires_at: float, issued_at: float, now: float) -> bool:
    """Whether it is time to speak of it. Unix seconds."""
    return now >= expires_at - min(WARN_S, (expires_at - issued_at) / 2)


def notices(folder: Path, now: float) -> list[Notice]:
    """Of a member's folder, also one that `load_member` refuses, or of one that waits to be admitted.

    Raises IdentityError for damaged files.
    """
    if not (folder / "consortium.json").exists():
        return _of_admission(folder, now)
    membership = read_membership(folder)
    roster = RosterStore(folder / "roster.json", bytes.fromhex(membership.root_public)).current
    listed = next((member for member in roster.members if member.name == membership.name), None)
    if listed is not None and listed.revoked_at is not None:
        return [Notice(revoked_text(listed, roster), over=True)]
    return [*roster_notices(roster, now), *_of_certificate(folder, membership, now)]


def roster_notices(roster: Roster, now: float) -> list[Notice]:
    """Of a roster, in whoever's folder it lies."""
    if not due(expires_at=roster.expires_at, issued_at=roster.issued_at, now=now):
        return []
    over = now >= roster.expires_at
    what = f"version {roster.version} of the roster of {roster.consortium}"
    then = "until then nobody trains" if over else "from then on nobody trains"
    mend = "the consortium's administrator signs it again: `confide consortium renew --folder ROOT --admin ADMIN`"
    return [Notice(f"{what} {_when(roster.expires_at, now)}; {mend}; {then}", over)]


def revoked_text(member: Member, roster: Roster) -> str:
    """What a revoked member is told."""
    anew = {
        Role.NODE: "confide node init NEW-FOLDER --name NEW-NAME --invitation FILE",
        Role.COORDINATOR: "confide server init NEW-FOLDER --name NEW-NAME --address HOST",
        Role.ADMINISTRATOR: "confide run init NEW-FOLDER --name NEW-NAME",
    }[member.role]
    return (
        f"{member.name} was revoked on {utc(member.revoked_at or 0)} in version {roster.version} of the roster of "
        f"{roster.consortium}, for good. It can come back under another name only, if the consortium's administrator "
        f"admits that: `{anew}`"
    )


def exit_status(found: Iterable[Notice]) -> int:
    """0 where there is nothing to say."""
    return max((EXIT_OVER if notice.over else EXIT_SOON for notice in found), default=0)


class DailyWarning:
    """Says in the log of a long-running process what is due: at once, and once a day."""

    def __init__(self, find: Callable[[float], list[Notice]]) -> None:
        """find: what is due at a moment (Unix seconds)."""
        self._find = find
        self._next = 0.0
        self._said: set[str] = set()

    def look(self, now: float | None = None) -> None:
        """Cheap where it is not time yet. What has ended since is said when it is noticed."""
        moment = time.time() if now is None else now
        try:
            found = self._find(moment)
        except (ConfideError, OSError) as error:
            found = [Notice(str(error), over=True)]
        if moment >= self._next:
            self._said.clear()
            self._next = moment + LOOK_EVERY_S
        for notice in found:
            if notice.text not in self._said:
                log.warning("%s", notice.text)
        self._said |= {notice.text for notice in found}


def _of_admission(folder: Path, now: float) -> list[Notice]:
    """Of who asked and is no member yet. By file there is no end, so that nothing is said."""
    if not (folder / INVITED_UNTIL).exists():
        return []
    text = read_text(folder / INVITED_UNTIL).strip()
    if not text.isdecimal() or len(text) > 12:
        raise IdentityError(f"{folder / INVITED_UNTIL} holds {text[:40]!r}, no time; join again with the invitation")
    until = float(text)
    if now < until:
        go_on = "the command that joins goes on waiting when it is run again"
        return [
            Notice(f"asked to be admitted, and not admitted yet; the invitation {_when(until, now)}; {go_on}", False)
        ]
    mend = "ask the consortium's administrator for the admission as a file, or for a new invitation"
    text = f"asked to be admitted, and never was; the invitation {_when(until, now)}; {mend}"
    return [Notice(text, over=True)]


def _of_certificate(folder: Path, membership: Membership, now: float) -> list[Notice]:
    certificate = load_certificate(read_text(folder / "tls.crt"), "the certificate")
    issued_at, expires_at = certificate.not_valid_before_utc.timestamp(), read_claim(certificate).expires_at
    if not due(expires_at=expires_at, issued_at=issued_at, now=now):
        return []
    text = f"the certificate of {membership.name} {_when(expires_at, now)}; renew it: "
    return [Notice(f"{text}`{renewal_of(membership.role, folder)}`", now >= expires_at)]


def _when(expires_at: float, now: float) -> str:
    if now >= expires_at:
        return f"expired on {utc(expires_at)}"
    days = int((expires_at - now) // 86400)
    left = f"{days} days" if days > 1 else f"{int((expires_at - now) // 3600)} hours"
    return f"expires in {left}, on {utc(expires_at)}"
