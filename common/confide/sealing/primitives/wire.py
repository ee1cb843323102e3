"""Strict encoding of the messages in sealing.proto: one message, one byte string.

>>> from confide.proto import sealing_pb2
>>> data = encode(sealing_pb2.SealedUpload(version=1, slot=3))
>>> decode(sealing_pb2.SealedUpload, data).slot
3
>>> decode(sealing_pb2.SealedUpload, data + b"\\x48\\x01")
Traceback (most recent call last):
confide.errors.ProtocolFailure: MALFORMED: SealedUpload is not in canonical form or has unknown fields; ...
"""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from confide.errors import FailureName, ProtocolFailure

VERSION = 1
MAX_BODY_BYTES = 256 * 2**20
KEY_BYTES = 32
DIGEST_BYTES = 32

_M = TypeVar("_M", bound=Message)


def malformed(detail: str) -> ProtocolFailure:
    """A message that no honest sender makes."""
    return ProtocolFailure(FailureName.MALFORMED, detail)


def encode(message: Message) -> bytes:
    """The message's canonical bytes: fields in order, defaults left out."""
    return message.SerializeToString(deterministic=True)


def decode(kind: type[_M], data: bytes) -> _M:
    """Parse what `encode` made. Raises ProtocolFailure MALFORMED for anything else, whatever the bytes.

    Guarantee: equal messages have equal bytes, so a hash or signature over the bytes names one content.
    """
    name = kind.__name__
    if len(data) > MAX_BODY_BYTES:
        raise malformed(f"{name} takes {len(data)} bytes; at most {MAX_BODY_BYTES} are read")
    message = kind()
    try:
        message.ParseFromString(bytes(data))
    except (DecodeError, RecursionError) as error:
        raise malformed(f"{name} cannot be parsed: {error}") from error
    message.DiscardUnknownFields()
    if encode(message) != data:
        raise malformed(f"{name} is not in canonical form or has unknown fields; both sides need the same release")
    version = getattr(message, "version", VERSION)
    if version != VERSION:
        raise malformed(f"{name} has version {version}; this release speaks {VERSION}. Upgrade the older side.")
    return message


def require_length(what: str, value: bytes, length: int) -> None:
    """Raise MALFORMED unless `value` has `length` bytes."""
    if len(value) != length:
        raise malformed(f"{what} has {len(value)} bytes; {length} are needed")


def require_sorted(what: str, names: list[str]) -> None:
    """Raise MALFORMED unless the names are distinct and in order."""
    if names != sorted(set(names)):
        raise malformed(f"{what} are not distinct and in order: {names[:8]}")
