"""Errors across gRPC: a ConfideError raised in the coordinator is raised again, as the same kind, at the caller.

>>> type(revive("SpecificationError", "rounds: must be above 0")).__name__
'SpecificationError'
>>> revive("ROSTER_STALE", "version 3 came").code
'ROSTER_STALE'
"""

import grpc

from confide import __version__, errors
from confide.errors import ConfideError, FailureName, ProtocolFailure, TransportError
from confide.text import line, paragraph

PROTOCOL = 1
PROTOCOL_KEY, RELEASE_KEY, CODE_KEY = "confide-protocol", "confide-release", "confide-code"
ACTING_USER_KEY, ACTING_ROLE_KEY = "confide-acting-user", "confide-acting-role"
ACTING_ORGANIZATION_KEY = "confide-acting-organization"
"""For whom a console calls."""
MAX_MESSAGE_CHARS = 2000

_KINDS: dict[str, type[ConfideError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ConfideError) and kind is not ProtocolFailure
}
_STATUS: dict[str, grpc.StatusCode] = {
    "IdentityError": grpc.StatusCode.PERMISSION_DENIED,
    "REVOKED": grpc.StatusCode.PERMISSION_DENIED,
    "SpecificationError": grpc.StatusCode.INVALID_ARGUMENT,
    "UpdateError": grpc.StatusCode.INVALID_ARGUMENT,
    "DataError": grpc.StatusCode.INVALID_ARGUMENT,
    "StateError": grpc.StatusCode.FAILED_PRECONDITION,
}


def status_of(error: ConfideError) -> grpc.StatusCode:
    """The gRPC status under which an error travels; the code beside it says more."""
    return _STATUS.get(error.code, grpc.StatusCode.FAILED_PRECONDITION)


def message_of(error: ConfideError) -> str:
    """The text that travels: without the code in front, in one piece of bounded length."""
    text = error.detail if isinstance(error, ProtocolFailure) else str(error)
    return text[:MAX_MESSAGE_CHARS]


def revive(code: str, message: str) -> ConfideError:
    """The error that the other side raised. An unknown code becomes a TransportError that says it.

    Both are bounded and cleaned: the text ends up on a terminal.
    """
    code, message = line(code, 64), paragraph(message, MAX_MESSAGE_CHARS)
    if code in FailureName.__members__:
        return ProtocolFailure(FailureName(code), message)
    kind = _KINDS.get(code)
    return kind(message) if kind is not None else TransportError(f"{code}: {message}")


def own_metadata() -> tuple[tuple[str, str], ...]:
    """What every call says about this side."""
    return ((PROTOCOL_KEY, str(PROTOCOL)), (RELEASE_KEY, __version__))


def check_protocol(protocol: str, release: str, *, peer: str, own: str) -> None:
    """Refuse another protocol version with a message that says which side to upgrade.

    Raises TransportError. peer, own: for people, such as "the caller" and "this coordinator".
    """
    if not (protocol.isascii() and protocol.isdigit() and len(protocol) < 10):
        raise TransportError(f"{peer} names no protocol version (got {protocol[:20]!r}); upgrade it to {__version__}")
    if int(protocol) == PROTOCOL:
        return
    older, newer = (peer, own) if int(protocol) < PROTOCOL else (own, peer)
    raise TransportError(
        f"{peer} speaks version {protocol} of the control protocol (confide {release[:40]}) and {own} version "
        f"{PROTOCOL} (confide {__version__}): upgrade {older} to the release of {newer}"
    )
