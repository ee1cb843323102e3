"""The thread that looks, tells, and comes again: each channel for itself, and no run waits for any of it.

    service = AlertService(settings, folder / "alerts.json", look=..., note=..., names=("example", "coordinator"))
    service.start()

What is sent after a failure is what needs somebody then, not what did when it failed: nothing stale is ever told.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import ConfideError, StateError
from confide.files import write_atomic
from pydantic import Field, ValidationError

from confide_server.alerts.mail import MailChannel
from confide_server.alerts.message import Line, Message, line_of
from confide_server.alerts.needs import Seen, needs
from confide_server.alerts.settings import Alerts
from confide_server.alerts.telling import Once, Watch, due
from confide_server.alerts.webhook import WebhookChannel

LOOK_S = 30.0
SOONEST_S = 2.0
"""After something happened: many events at once are one look."""
FIRST_RETRY_S, LAST_RETRY_S = 10.0, 3600.0
NAME = "alerts"
Note = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


class Channel(Protocol):
    """A way to people."""

    name: str

    def send(self, message: Message) -> None:
        """Raises ConfideError: TransportError, StateError."""


class _Entry(StoredDocument):
    same: str
    kind: str
    level: str
    words: str
    address: str
    at: float


class _Kept(StoredDocument):
    """alerts.json: by channel, what was told and has not been told as solved."""

    format: int = 1
    channels: dict[str, tuple[_Entry, ...]] = Field(default_factory=dict)


@dataclass
class _Post:
    """One channel, what it told, and how it fares."""

    channel: Channel
    told: dict[str, Once] = field(default_factory=dict)
    failures: int = 0
    not_before: float = 0.0


def channels(settings: Alerts) -> list[Channel]:
    """Those that are set up."""
    found: list[Channel] = []
    if settings.webhook is not None:
        found.append(WebhookChannel(settings.webhook))
    if settings.mail is not None:
        found.append(MailChannel(settings.mail))
    return found


class AlertService:
    """Everything of alerts in one coordinator, or in one console."""

    def __init__(
        self,
        settings: Alerts,
        path: Path,
        *,
        look: Callable[[], Seen],
        note: Note,
        names: tuple[str, str],
        by: str = "",
        every_s: float = LOOK_S,
        ways: Sequence[Channel] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """path: where what was told is kept. note: writes to the audit log. names: of consortium and coordinator.
        by: as Message has it. every_s: between two looks, where nothing happens.

        ways: in place of the settings' channels, for tests.
        """
        self._settings, self._path, self._look, self._note, self._clock = settings, path, look, note, clock
        self._consortium, self._coordinator = names
        self._by, self._every_s = by, every_s
        kept = _read(path)
        every = channels(settings) if ways is None else ways
        self._posts = [_Post(way, kept.get(way.name, {})) for way in every]
        self._watch = Watch()
        self._happened, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; a message that is on its way is given a moment."""
        self._stop.set()
        self._happened.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    @property
    def alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def happened(self, run_id: str, event: object) -> None:
        """Listens to the run journal."""
        self._happened.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.turn()
            except ConfideError as error:
                log.warning("what needs somebody cannot be looked at: %s", error)
            except Exception:  # the thread is the only one that would tell; it must not end by one odd message
                log.exception("alerts")
            self._happened.wait(self._every_s)
            self._happened.clear()
            self._stop.wait(SOONEST_S)

    def turn(self) -> None:
        """Look once, and send what is due over every channel. Raises ConfideError when nothing can be seen."""
        now = self._clock()
        found = needs(self._look(), now=now)
        self._watch.look([line_of(need, self._settings.console) for need in found], now)
        for post in self._posts:
            new, solved = due(self._watch, post.told, self._settings, now=now)
            if (new or solved) and now >= post.not_before:
                self._send(post, new, solved, now)
        self._watch.keep(same for post in self._posts for same in post.told)

    def _send(self, post: _Post, new: Sequence[Line], solved: Sequence[Line], now: float) -> None:
        message = Message(
            consortium=self._consortium, coordinator=self._coordinator, by=self._by, sent_at=now, needs=new,
            solved=solved,
        )  # fmt: skip
        try:
            post.channel.send(message)
        except ConfideError as error:
            post.failures += 1
            wait_s = min(FIRST_RETRY_S * 2.0 ** (post.failures - 1), LAST_RETRY_S)
            post.not_before = now + wait_s
            log.warning("an alert by %s failed, and is tried again in %.0f s: %s", post.channel.name, wait_s, error)
            self._note({"event": "alert_failed", "channel": post.channel.name, "failures": post.failures,
                        "why": str(error)})  # fmt: skip
            return
        post.failures, post.not_before = 0, 0.0
        post.told |= {one.same: Once(one, now) for one in new}
        for one in solved:
            post.told.pop(one.same, None)
        self._write()
        told = {"needs": [one.same for one in new], "solved": [one.same for one in solved]}
        self._note({"event": "alert_sent", "channel": post.channel.name, **told})

    def _write(self) -> None:
        kept = {post.channel.name: tuple(_entry(once) for once in post.told.values()) for post in self._posts}
        write_atomic(self._path, canonical.encode(_Kept(channels=kept).model_dump(mode="json")))


def _entry(once: Once) -> _Entry:
    one = once.line
    return _Entry(same=one.same, kind=one.kind, level=one.level, words=one.words, address=one.address, at=once.at)


def _read(path: Path) -> dict[str, dict[str, Once]]:
    """By channel. A file that is missing or damaged is none: then some lines are told once more."""
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError, ValueError) as error:
        log.warning("%s cannot be used (%s): what stands is told again", path, type(error).__name__)
        return {}
    return {
        name: {one.same: Once(Line(one.same, one.kind, one.level, one.words, one.address), one.at) for one in entries}
        for name, entries in kept.channels.items()
    }


def try_channels(settings: Alerts, names: tuple[str, str], by: str = "") -> dict[str, str]:
    """Send a trial over every channel: {channel: what went wrong, empty where nothing did}. Raises StateError: none."""
    found, results = channels(settings), {}
    if not found:
        raise StateError("no channel for alerts is set; docs/alerts.md says how to add one")
    for channel in found:
        try:
            channel.send(Message(consortium=names[0], coordinator=names[1], by=by, sent_at=time.time(), trial=True))
            results[channel.name] = ""
        except ConfideError as error:
            results[channel.name] = str(error)
    return results
