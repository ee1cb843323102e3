"""One port for a page's server: TLS, or loopback alone.

Guarantee: without a certificate nothing but this machine can connect.
"""

import ipaddress
import socket
import ssl
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from confide.errors import StateError


def is_loopback(bind: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def listening(bind: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises StateError."""
    try:
        address = ipaddress.ip_address(bind)
    except ValueError as error:
        raise StateError(f"--bind {bind!r} is no IP address; give one of this machine's, such as 127.0.0.1") from error
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bind, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StateError(f"cannot listen on {bind}:{port}: {error.strerror}; choose another with --port") from error
    return listener


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server with this certificate. Raises StateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise StateError(f"{certificate} and {key} do not serve TLS: {error}; give a PEM pair that fits") from error
    return context


def configured(app: ASGIApp) -> uvicorn.Config:
    """How a page is served: no access log (addresses may hold what logs must not), no server header."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16384,
        limit_concurrency=500,
    )


def server(app: ASGIApp) -> uvicorn.Server:
    """Ready to run on a loopback socket."""
    return uvicorn.Server(configured(app))
