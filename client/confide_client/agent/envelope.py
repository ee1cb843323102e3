"""Confide's messages in Flower's RecordDict, as confide.transport.envelope defines them.

>>> body, payload = unpack(pack(b"hello", {"model": b"123"}))
>>> body, bytes(payload["model"])
(b'hello', b'123')
"""

from collections.abc import Mapping

from confide.errors import TransportError
from confide.transport.envelope import (
    BODY_RECORD,
    DTYPE,
    PAYLOAD_RECORD,
    STYPE,
    Bytes,
    check_entry,
    check_records,
    checked_body,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict


def pack(body: bytes, payload: Mapping[str, Bytes] | None = None) -> RecordDict:
    """A RecordDict with a small body and, beside it, big entries that Flower sends in chunks."""
    record = RecordDict({BODY_RECORD: ConfigRecord({"body": body})})
    if payload:
        record[PAYLOAD_RECORD] = ArrayRecord(
            {
                name: Array(dtype=DTYPE, shape=(len(data),), stype=STYPE, data=bytes(data))
                for name, data in payload.items()
            }
        )
    return record


def unpack(record: RecordDict) -> tuple[bytes, dict[str, bytes]]:
    """The body and payload entries. Raises TransportError for anything but what `pack` makes."""
    check_records(record)
    config, arrays = record[BODY_RECORD], record.get(PAYLOAD_RECORD)
    body = checked_body(config.get("body") if isinstance(config, ConfigRecord) else None)
    if arrays is None:
        return body, {}
    if not isinstance(arrays, ArrayRecord):
        raise TransportError("a message's payload is not an ArrayRecord")
    for name, array in arrays.items():
        check_entry(name, stype=array.stype, dtype=array.dtype, shape=array.shape, size=len(array.data))
    return body, {name: array.data for name, array in arrays.items()}
