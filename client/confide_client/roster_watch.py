"""Keeps the node's roster new while it runs: an offer brings one, but a long run needs renewals and revocations sooner.

The coordinator's control service is asked over mTLS every few minutes, in a thread of its own. What comes is accepted
only as the root's signature and the roster's own succession allow; a coordinator that holds a newer one back can do
so no longer than until the old one expires, when the node refuses everything.
"""

import logging
import threading

from confide.errors import ConfideError
from confide.identity.member import LocalMember

log = logging.getLogger(__name__)

FIRST_S = 30.0
EVERY_S = 300.0


class RosterWatch:
    """One thread; does nothing when the control service's address is not known."""

    def __init__(self, member: LocalMember, *, proxy: str = "", first_s: float = FIRST_S, every_s: float = EVERY_S):
        self._member = member
        self._proxy = proxy
        self._first_s, self._every_s = first_s, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="roster-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._member.membership.control_address:
            self._thread.start()

    def stop(self) -> None:
        """End; a call under way is not waited for."""
        self._stop.set()

    def _watch(self) -> None:
        wait_s = self._first_s
        while not self._stop.wait(wait_s):
            wait_s = self._every_s
            try:
                before = self._member.roster.current.version
                version = self.fetch()
                if version > before:
                    log.info("roster %d came in place of %d", version, before)
            except ConfideError as error:
                log.info("the roster could not be fetched: %s", error)

    def fetch(self) -> int:
        """Ask once; returns the newest version. Raises ConfideError."""
        from confide.transport.control import ControlClient

        with ControlClient.of_member(self._member, proxy=self._proxy) as client:
            return client.get_roster().version
