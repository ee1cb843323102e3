"""One mail, by the standard library, over TLS whose certificate is checked (or to this machine itself)."""

import email.utils
import smtplib
from email.message import EmailMessage
from pathlib import Path

from confide.errors import TransportError

from confide_server.alerts.message import Message
from confide_server.alerts.secret import read_secret
from confide_server.alerts.settings import Mail
from confide_server.alerts.webhook import trusting

TIMEOUT_S = 20.0
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_NAME = "confide"
"""How this client greets: its machine's name is nobody's business."""


class MailChannel:
    """Sends messages."""

    name = "mail"

    def __init__(self, settings: Mail) -> None:
        self._settings = settings

    def send(self, message: Message) -> None:
        """Raises TransportError when the server does not take it for everybody, StateError for a password file."""
        settings = self._settings
        password = ""
        if settings.user:
            password = read_secret(Path(settings.password_file), "the mail password").decode("utf-8", "replace")
        try:
            with self._connected() as server:
                if settings.user:
                    server.login(settings.user, password)
                refused = server.send_message(self._mail(message))
        except smtplib.SMTPResponseException as error:
            # What a server says may repeat what it was told: its number is enough.
            raise TransportError(f"the mail server answered {error.smtp_code}") from None
        except (OSError, smtplib.SMTPException) as error:
            raise TransportError(f"the mail server cannot be used: {type(error).__name__}") from None
        if refused:
            raise TransportError(f"the mail server refused {len(refused)} of {len(settings.recipients)} recipients")

    def _connected(self) -> smtplib.SMTP:
        settings = self._settings
        port = settings.port or _PORTS[settings.security]
        if settings.security == "tls":
            context = trusting(settings.authority)
            return smtplib.SMTP_SSL(settings.host, port, _NAME, timeout=TIMEOUT_S, context=context)
        server = smtplib.SMTP(settings.host, port, _NAME, timeout=TIMEOUT_S)
        if settings.security == "starttls":
            try:
                server.starttls(context=trusting(settings.authority))
            except BaseException:
                server.close()
                raise
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = message.subject()
        mail["From"] = self._settings.sender
        mail["To"] = ", ".join(self._settings.recipients)
        mail["Date"] = email.utils.formatdate(message.sent_at)
        mail["Message-ID"] = email.utils.make_msgid(domain=self._settings.sender.rpartition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.text())
        return mail
