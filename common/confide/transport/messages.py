"""Protobuf messages that come from the other side."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from confide.errors import TransportError

M = TypeVar("M", bound=Message)


def parse(kind: type[M], body: bytes, what: str) -> M:
    """The message as it came, not yet checked. what: for people, such as "the offer". Raises TransportError.

    >>> from confide.proto import fleet_pb2
    >>> parse(fleet_pb2.End, b"\\xff", "the end of a run")
    Traceback (most recent call last):
    confide.errors.TransportError: the end of a run cannot be parsed; both sides need the same release
    """
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise TransportError(f"{what} cannot be parsed; both sides need the same release") from error
    return message
