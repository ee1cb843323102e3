"""A coordinator that is down tells nobody: the console, another process, notices it and tells (docs/alerts.md).

    service = alerting(folder, settings.alerts, connection, member)
    service.start()

Only silence is told from here. Whatever else needs somebody the coordinator tells itself: nothing is told twice.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from confide.errors import ConfideError, TransportError
from confide.identity.member import LocalMember
from confide.identity.roster import Role as Member
from confide.proto import admin_pb2 as pb

from confide_server.alerts.needs import Seen
from confide_server.alerts.service import LOOK_S, AlertService
from confide_server.alerts.settings import Alerts
from confide_server.console.federation.live import CONSOLE
from confide_server.console.federation.reading import Coordinator

log = logging.getLogger(__name__)


class Silence:
    """Since when nobody has answered. A refusal is an answer."""

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float] = time.time) -> None:
        self._coordinator, self._clock = coordinator, clock
        self._since = 0.0

    def look(self) -> Seen:
        """Ask once. Never raises: that nobody answers is what is seen."""
        asked_at = self._clock()
        try:
            self._coordinator.ask("GetServerStatus", pb.GetServerStatusRequest(), CONSOLE)
            self._since = 0.0
        except TransportError:
            self._since = self._since or asked_at
        except ConfideError as error:
            log.warning("the coordinator refuses this console: %s", error)
            self._since = 0.0
        return Seen(silent_since=self._since)


def names(member: LocalMember) -> tuple[str, str]:
    """Of the consortium, and of its coordinator."""
    coordinators = member.roster.current.active(Member.COORDINATOR)
    return member.membership.consortium, coordinators[0].name if coordinators else "coordinator"


def alerting(
    folder: Path, settings: Alerts, coordinator: Coordinator, member: LocalMember, every_s: float = LOOK_S
) -> AlertService:
    """To be started. alerts.json in the console's folder remembers what was told."""
    return AlertService(
        settings, folder / "alerts.json", look=Silence(coordinator).look, names=names(member), by=member.name,
        note=lambda event: log.info("%s", event), every_s=every_s,
    )  # fmt: skip
