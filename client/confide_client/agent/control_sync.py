"""ControlSync to the coordinator's control service, over mTLS, in a thread: newer rosters come, ledger receipts go.

An offer brings a roster, but a long run needs renewals and revocations sooner. What comes is accepted only as the
root's signature and the roster's own succession allow; a coordinator that holds a newer one back can do so no longer
than until the old one expires, when the node refuses everything.
"""

import logging
import threading
import time
from pathlib import Path

from confide.errors import ConfideError, FailureName, IdentityError, ProtocolFailure
from confide.identity.member import LocalMember

from confide_client.state import StateFolder

log = logging.getLogger(__name__)

FIRST_S = 30.0
ROSTER_EVERY_S = 300.0
LOOK_EVERY_S = 5.0


class ControlSync:
    """One thread; does nothing when the control service's address is not known."""

    def __init__(self, state: StateFolder, member: LocalMember) -> None:
        self._state = state
        self._member = member
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, name="control sync", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._member.membership.control_address:
            self._thread.start()

    def stop(self) -> None:
        """End; a call under way is not waited for."""
        self._stop.set()

    def _go(self) -> None:
        roster_at = time.monotonic() + FIRST_S
        while not self._stop.wait(LOOK_EVERY_S):
            due = time.monotonic() >= roster_at
            if not due and not self.receipts():
                continue
            if due:
                roster_at = time.monotonic() + ROSTER_EVERY_S
            try:
                self.run_once()
            except (ConfideError, OSError) as error:
                log.info("the control service could not be used: %s", error)
                self._stop.wait(FIRST_S)

    def receipts(self) -> list[Path]:
        """Receipts that have yet to be sent: runs/<run id>/receipts/<slot>.json."""
        return sorted(self._state.runs.glob("*/receipts/*.json"))

    def refusal(self) -> str:
        """Why the coordinator does not have this node, if its control service says so; its fleet port cannot say it."""
        from confide.transport.control import ControlClient

        if not self._member.membership.control_address:
            return ""
        try:
            with ControlClient.of_member(self._member, proxy=self._state.settings.proxy) as client:
                client.hello()
        except ProtocolFailure as error:
            return f"the coordinator says: {error}" if error.name is FailureName.REVOKED else str(error)
        except IdentityError as error:
            return str(error)
        except ConfideError:
            pass
        return ""

    def run_once(self) -> None:
        """Fetch the newest roster, and send what is to be sent; a receipt is removed when it has arrived."""
        from confide.transport.control import ControlClient

        before = self._member.roster.current.version
        with ControlClient.of_member(self._member, proxy=self._state.settings.proxy) as client:
            version = client.get_roster().version
            for path in self.receipts():
                client.put_receipt(path.parent.parent.name, path.read_bytes(), self._member.identity)
                path.unlink()
        if version > before:
            log.info("roster %d came in place of %d", version, before)
