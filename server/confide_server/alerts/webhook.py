"""One signed POST. No redirect is followed, no proxy of the environment used, and little of the answer is read.

>>> signature(b"sixteen bytes or", 1764170000, b"{}")[:15]
't=1764170000,v1'
"""

import hashlib
import hmac
import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from confide import __version__, canonical
from confide.errors import StateError, TransportError

from confide_server.alerts.message import Message
from confide_server.alerts.secret import read_secret
from confide_server.alerts.settings import Webhook

TIMEOUT_S = 10.0
SECRET_BYTES = 16
_READ_BYTES = 4096


class WebhookChannel:
    """Posts messages."""

    name = "webhook"

    def __init__(self, settings: Webhook) -> None:
        self._settings = settings

    def send(self, message: Message) -> None:
        """Raises TransportError for any answer but 2xx, StateError for a secret or authority that is none."""
        secret = read_secret(Path(self._settings.secret_file), "the webhook's secret", least_bytes=SECRET_BYTES)
        body = canonical.encode(message.document())
        headers = {
            "Content-Type": "application/json",
            "Confide-Signature": signature(secret, int(message.sent_at), body),
            "User-Agent": f"confide/{__version__}",
        }
        status = self._post(body, headers)
        if not 200 <= status < 300:
            also = " (redirects are not followed: give the last address)" if 300 <= status < 400 else ""
            raise TransportError(f"the webhook answered {status}{also}")

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        parts = urlsplit(self._settings.address)
        connection = self._connection(parts.scheme, parts.hostname or "", parts.port)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(_READ_BYTES)
            return answer.status
        except (OSError, http.client.HTTPException) as error:
            raise TransportError(f"the webhook's receiver cannot be reached: {type(error).__name__}") from error
        finally:
            connection.close()

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=trusting(self._settings.authority))


def trusting(authority: str) -> ssl.SSLContext:
    """TLS that checks certificates against this authority's PEM file, the system's where it is empty."""
    try:
        return ssl.create_default_context(cafile=authority or None)
    except (OSError, ssl.SSLError) as error:
        raise StateError(f"{authority} is no PEM file of an authority's certificate") from error


def signature(secret: bytes, at: int, body: bytes) -> str:
    """The header's value. Guarantee: whoever lacks the secret can neither make one nor move it to another moment."""
    made = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={made}"
