"""`alerts` in server.json: which channels there are, when they are quiet, and what is told.

>>> Webhook(address="https://hooks.example.org/x", secret_file="/etc/secret").address
'https://hooks.example.org/x'
"""

import ipaddress
import re
import zoneinfo
from typing import Annotated, Literal
from urllib.parse import urlsplit

from confide.identity.signed import Document
from pydantic import Field, field_validator, model_validator

Text = Annotated[str, Field(max_length=500)]
Kind = Literal[
    "trouble", "thread", "disk", "roster", "own_certificate", "waits", "paused", "draft", "failed", "budget", "away",
    "certificates", "enrolments", "release_unsigned", "release_unpublished",
    "silent",
]  # fmt: skip
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_MAILBOX = re.compile(r"[^\s@<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9.-]{1,253}", re.ASCII)


def is_this_machine(host: str) -> bool:
    """Whether a host name or IP address is loopback's.

    >>> is_this_machine("localhost"), is_this_machine("127.0.0.1"), is_this_machine("127.0.0.1.example.org")
    (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Webhook(Document):
    """Where a signed document is posted."""

    address: Text
    """https, or http to this machine itself; without user, password or fragment."""
    secret_file: Text
    authority: Text = ""
    """PEM file of the authority that issued the receiver's certificate; empty: the system's."""

    @field_validator("address")
    @classmethod
    def _safe(cls, address: str) -> str:
        parts = urlsplit(address)
        host = parts.hostname or ""
        plain = parts.scheme == "http" and is_this_machine(host)
        if not host or not (parts.scheme == "https" or plain) or parts.username or parts.password or parts.fragment:
            raise ValueError("use https://HOST/..., or http to this machine itself, without user, password or #")
        if not address.isascii() or not address.isprintable() or " " in address:
            raise ValueError("use printable ASCII without spaces, and percent signs for the rest")
        return address


class Mail(Document):
    """Through which server mail goes, from whom and to whom."""

    host: Text
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: the usual one, 587, 465 or 25 by `security`."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: Text
    recipients: Annotated[tuple[Text, ...], Field(min_length=1, max_length=20)]
    user: Text = ""
    password_file: Text = ""
    authority: Text = ""

    @field_validator("sender", "recipients")
    @classmethod
    def _mailboxes(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for one in (given,) if isinstance(given, str) else given:
            if not _MAILBOX.fullmatch(one):
                raise ValueError("write each address as name@example.org, without a display name")
        return given

    @model_validator(mode="after")
    def _protected(self) -> "Mail":
        if self.security == "none" and not is_this_machine(self.host):
            raise ValueError("`none` sends in the open; use starttls or tls for a server on another machine")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("`user` and `password_file` go together")
        return self


class Quiet(Document):
    """Hours of each day in which only what is urgent is told."""

    begins: Text
    """HH:MM."""
    ends: Text
    zone: Text = "UTC"
    """As the system's time zone database names it."""
    urgent: bool = True
    """False: also what stands still or is broken waits for the end."""

    @field_validator("begins", "ends")
    @classmethod
    def _clock(cls, given: str) -> str:
        if not _CLOCK.fullmatch(given):
            raise ValueError("write a time of day as 22:00")
        return given

    @field_validator("zone")
    @classmethod
    def _known(cls, given: str) -> str:
        try:
            zoneinfo.ZoneInfo(given)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("this system knows no such time zone; write one as Europe/Berlin, or UTC") from error
        return given


class Alerts(Document):
    """docs/alerts.md."""

    webhook: Webhook | None = None
    mail: Mail | None = None
    quiet: Quiet | None = None
    kinds: tuple[Kind, ...] = ()
    """Empty: all."""
    settle_s: Annotated[float, Field(ge=0.0, le=86400.0)] = 60.0
    repeat_s: Annotated[float, Field(ge=600.0, le=2592000.0)] = 86400.0
    console: Annotated[str, Field(max_length=500, pattern=r"^(https?://[!-~]+)?$")] = ""
    """The console's address, for links; empty: none."""
