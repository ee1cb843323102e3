"""Before a run is approved without a person: its method tried on this node's records, in a thread of its own.

    trial = Trial(run_id, lambda: try_offered(state, specification))
    if trial.ended(timeout_s):
        if trial.asks_person(policy): ...

Guarantee: what is found is told to this node's operator only. The coordinator sees that the node waits for a person, in
the words of every run that waits; docs/privacy.md says what that tells.
"""

import logging
import threading
from collections.abc import Callable

from confide.errors import ConfideError

from confide_client.data.fitness import Fitness
from confide_client.policy.policy import Policy

log = logging.getLogger(__name__)


class Trial:
    """One thread, begun at once. What it finds is logged once, with the place of the first record of each reason."""

    def __init__(self, run_id: str, tries: Callable[[], Fitness | None]) -> None:
        self._run_id = run_id
        self._tries = tries
        self._found: Fitness | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._go, name="trial", daemon=True)
        self._thread.start()

    def _go(self) -> None:
        try:
            self._found = self._tries()
        except Exception as error:
            self._error = error
            if not isinstance(error, ConfideError):
                log.error("run %s: the method could not be tried on the records", self._run_id[:8], exc_info=error)
        for warning in self._found.warnings() if self._found is not None else []:
            log.warning("run %s: %s", self._run_id[:8], warning)

    def ended(self, timeout_s: float) -> bool:
        """Wait for it, not for ever."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def asks_person(self, policy: Policy) -> bool:
        """Whether the policy alone does not approve the run. Raises ConfideError where it cannot be done here."""
        self._thread.join()
        if isinstance(self._error, ConfideError):
            raise self._error
        if self._error is not None:
            return True
        return self._found is not None and (
            self._found.hopeless or (self._found.unfit > 0 and policy.unfit_records == "ask")
        )

    @property
    def summary(self) -> str:
        """For this node's operator; "" where all is well."""
        if self._error is not None:
            return f"the method could not be tried on the records ({type(self._error).__name__}); see the log"
        warnings = self._found.warnings() if self._found is not None else []
        return warnings[0] if warnings else ""
