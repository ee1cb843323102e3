"""Ask a web port of this very container whether it answers: exit status 0 below HTTP 500. For HEALTHCHECK.

The certificate is not checked: it is for the name that others use, and nothing is sent or believed. A refusal (a host
name that is not allowed, no key) is an answer too.

    python probe.py https://127.0.0.1:8080/healthz
"""

import http.client
import ssl
import sys
from urllib.parse import urlsplit

TIMEOUT_S = 5.0


def status_of(url: str) -> int:
    """The HTTP status of a GET. Raises OSError or http.client.HTTPException when nobody answers."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"{url} is not on this machine; a probe asks loopback only")
    if parts.scheme == "https":
        context = ssl._create_unverified_context()  # noqa: S323 - loopback, see above
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> None:
    """Exit with 0 or 1, and say why not."""
    try:
        status = status_of(sys.argv[1])
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"no answer: {error}")
    if status >= 500:
        sys.exit(f"answered {status}")


if __name__ == "__main__":
    main()
