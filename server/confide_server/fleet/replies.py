"""Read a reply out of Flower's object store, chunk by chunk into files: no payload stands in memory as a whole."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from confide.errors import StateError, TransportError
from confide.transport.envelope import STYPE, unpack
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.object_store import ObjectStore

BODY_RECORD, PAYLOAD_RECORD = "confide", "payload"
MAX_ENTRIES = 16


@dataclass(frozen=True)
class FleetReply:
    """A node's reply to one instruction. The receiver deletes the payload's files.

    fault: why the reply cannot be used at all; body and payload are empty then.
    """

    message_id: str
    body: bytes
    payload: Mapping[str, Path]
    fault: str = ""


def read_reply(store: ObjectStore, message_id: str, reply_id: str, spool: Path) -> FleetReply:
    """The reply whose root object is `reply_id`. What is not in the form of `pack` becomes a fault.

    Raises StateError when the spool's disk is full.
    """
    written: dict[str, Path] = {}
    try:
        body = _read(store, reply_id, spool, written)
    except OSError as error:
        _discard(written)
        raise StateError(f"cannot write a reply below {spool}: {error.strerror}. Free space.") from error
    except (TransportError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        _discard(written)
        return FleetReply(message_id, b"", {}, fault=f"the reply is malformed: {error}"[:300])
    return FleetReply(message_id, body, written)


def _discard(written: Mapping[str, Path]) -> None:
    for path in written.values():
        path.unlink(missing_ok=True)


def _read(store: ObjectStore, reply_id: str, spool: Path, written: dict[str, Path]) -> bytes:
    _, (content_id,), _ = _object(store, reply_id, Message)
    names: dict[str, str] = _table(_object(store, content_id, RecordDict)[2])
    if not {BODY_RECORD} <= set(names) <= {BODY_RECORD, PAYLOAD_RECORD}:
        raise TransportError(f"it holds the records {sorted(names)}")
    raw, _, _ = _object(store, names[BODY_RECORD], ConfigRecord)
    body, _ = unpack(RecordDict({BODY_RECORD: ConfigRecord.inflate(raw)}))
    if PAYLOAD_RECORD in names:
        entries: dict[str, str] = _table(_object(store, names[PAYLOAD_RECORD], ArrayRecord)[2])
        if len(entries) > MAX_ENTRIES:
            raise TransportError(f"its payload has {len(entries)} entries; at most {MAX_ENTRIES} are taken")
        for name, array_id in entries.items():
            written[name] = spool / uuid.uuid4().hex
            _write_array(store, name, array_id, written[name])
    return body


def _write_array(store: ObjectStore, name: str, array_id: str, path: Path) -> None:
    _, chunk_ids, description = _object(store, array_id, Array)
    about = json.loads(description)
    total = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for index in about["arraychunk_ids"]:
            _, _, chunk = _object(store, chunk_ids[index], ArrayChunk)
            file.write(chunk)
            total += len(chunk)
    if (about["stype"], about["dtype"], about["shape"]) != (STYPE, "uint8", [total]):
        raise TransportError(f"payload {name!r} is not raw bytes of the stated length")


def _table(body: bytes) -> dict[str, str]:
    table = json.loads(body)
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise TransportError("a table of objects is not one")
    return table


def _object(store: ObjectStore, object_id: str, kind: type[InflatableObject]) -> tuple[bytes, list[str], bytes]:
    """(whole content, ids of its children, body) of an object of this kind."""
    content = store.get(object_id)
    if not content:
        raise TransportError(f"object {object_id[:16]} is missing")
    _, children, _ = get_object_head_values_from_object_content(content)
    return content, children, get_object_body(content, kind)
