"""Confide's messages inside Flower's RecordDict (protos/confide/v1/fleet.proto).

>>> body, payload = unpack(pack(b"hello", {"model": b"123"}))
>>> body, bytes(payload["model"])
(b'hello', b'123')
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from confide import canonical
from confide.codec.digest import upload_digest
from confide.errors import TransportError

STYPE = "confide.raw.v1"
_BODY, _PAYLOAD = "confide", "payload"

Bytes = bytes | bytearray | memoryview


def pack(body: bytes, payload: Mapping[str, Bytes] | None = None) -> RecordDict:
    """A RecordDict with a small body and, beside it, big entries that Flower sends in chunks."""
    record = RecordDict({_BODY: ConfigRecord({"body": body})})
    if payload:
        arrays = {
            name: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=bytes(data))
            for name, data in payload.items()
        }
        record[_PAYLOAD] = ArrayRecord(arrays)
    return record


def unpack(record: RecordDict) -> tuple[bytes, dict[str, bytes]]:
    """The body and payload entries. Raises TransportError for anything but what `pack` makes."""
    names = set(record.keys())
    if not {_BODY} <= names <= {_BODY, _PAYLOAD}:
        raise TransportError(f"a message holds the records {sorted(names)}; expected 'confide' and perhaps 'payload'")
    config = record[_BODY]
    body = config.get("body") if isinstance(config, ConfigRecord) else None
    if not isinstance(body, bytes):
        raise TransportError("a message's body is missing or is not bytes")
    payload: dict[str, bytes] = {}
    arrays = record[_PAYLOAD] if _PAYLOAD in names else None
    if arrays is not None:
        if not isinstance(arrays, ArrayRecord):
            raise TransportError("a message's payload is not an ArrayRecord")
        for name, array in arrays.items():
            if array.stype != STYPE or array.dtype != "uint8" or tuple(array.shape) != (len(array.data),):
                raise TransportError(f"payload {name!r} is not raw bytes of the stated length")
            payload[name] = array.data
    return body, payload


def payload_digest(payload: Mapping[str, Bytes]) -> bytes:
    """SHA-256 over the entries' names and digests in name order; empty bytes when there is no payload."""
    return digest_of_entries({name: upload_digest(data) for name, data in payload.items()})


def digest_of_entries(digests: Mapping[str, bytes]) -> bytes:
    """The payload_digest of entries whose own digests (codec/digest.py) are known."""
    if not digests:
        return b""
    fields = [field for name in sorted(digests) for field in (name.encode(), digests[name])]
    return canonical.hash_fields("confide/v1/payload", *fields)


def as_bytes(vector: NDArray[np.generic]) -> memoryview:
    """A C-contiguous little-endian vector's bytes, without a copy."""
    return np.ascontiguousarray(vector).data.cast("B")
