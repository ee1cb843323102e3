"""The form of Confide's messages inside Flower's records (protos/confide/v1/fleet.proto), without Flower itself.

Record "confide" holds one value, "body": bytes. Record "payload", where there is one, holds arrays of raw bytes by
name, which Flower sends in chunks. Each side's adapter makes and reads them (confide_client.agent.envelope,
confide_server.fleet.flower), and both check them here.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from confide import canonical
from confide.codec.digest import upload_digest
from confide.errors import TransportError

VERSION = 1
"""Of the fleet's messages, fleet.proto: both sides refuse another one."""
BODY_RECORD, PAYLOAD_RECORD = "confide", "payload"
STYPE, DTYPE = "confide.raw.v1", "uint8"
BUSY = "BUSY"
"""The code of a failure that is none: the node works for another run, and says for how long."""

Bytes = bytes | bytearray | memoryview


def check_records(names: Collection[str]) -> None:
    """Raise TransportError unless a message holds the body and perhaps a payload, and nothing else."""
    if not {BODY_RECORD} <= set(names) <= {BODY_RECORD, PAYLOAD_RECORD}:
        raise TransportError(f"a message holds the records {sorted(names)}; expected 'confide' and perhaps 'payload'")


def checked_body(value: object) -> bytes:
    """The body, as it stood in its record. Raises TransportError when there is none."""
    if not isinstance(value, bytes):
        raise TransportError("a message's body is missing or is not bytes")
    return value


def check_entry(name: str, *, stype: str, dtype: str, shape: Collection[int], size: int) -> None:
    """Raise TransportError unless a payload's entry of `size` bytes says of itself that it is as many raw bytes."""
    if (stype, dtype, list(shape)) != (STYPE, DTYPE, [size]):
        raise TransportError(f"payload {name!r} is not raw bytes of the stated length")


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
