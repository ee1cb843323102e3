"""Read a reply out of Flower's object store, chunk by chunk into files: no payload stands in memory as a whole."""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from confide.codec.digest import DigestedFile
from confide.errors import RetryableError, TransportError
from confide.transport.envelope import BODY_RECORD, PAYLOAD_RECORD, check_entry, check_records, checked_body
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.object_store import ObjectStore

MAX_ENTRIES = 16


@dataclass(frozen=True)
class FleetReply:
    """A node's reply to one instruction. The receiver deletes the payload's files.

    fault: why the reply cannot be used at all; body and payload are empty then.
    """

    message_id: str
    body: bytes
    payload: Mapping[str, DigestedFile]
    fault: str = ""


def read_reply(store: ObjectStore, message_id: str, reply_id: str, spool: Path) -> FleetReply:
    """The reply whose root object is `reply_id`. What is not in the form of an envelope becomes a fault.

    Raises RetryableError when the spool's disk is full.
    """
    spooled = _Spool(spool)
    try:
        body, payload = _read(store, reply_id, spooled)
    except OSError as error:
        spooled.discard()
        raise RetryableError(f"cannot write a reply below {spool}: {error.strerror}. Free space.") from error
    except (TransportError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        spooled.discard()
        return FleetReply(message_id, b"", {}, fault=f"the reply is malformed: {error}"[:300])
    return FleetReply(message_id, body, payload)


class _Spool:
    """Where payloads are put down; knows the files of one reply."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []

    def path(self) -> Path:
        self._paths.append(self._folder / uuid.uuid4().hex)
        return self._paths[-1]

    def discard(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)


def _read(store: ObjectStore, reply_id: str, spool: _Spool) -> tuple[bytes, dict[str, DigestedFile]]:
    _, (content_id,), _ = _object(store, reply_id, Message)
    names: dict[str, str] = _table(_object(store, content_id, RecordDict)[2])
    check_records(names)
    raw, _, _ = _object(store, names[BODY_RECORD], ConfigRecord)
    body = checked_body(ConfigRecord.inflate(raw).get("body"))
    payload: dict[str, DigestedFile] = {}
    if PAYLOAD_RECORD in names:
        entries: dict[str, str] = _table(_object(store, names[PAYLOAD_RECORD], ArrayRecord)[2])
        if len(entries) > MAX_ENTRIES:
            raise TransportError(f"its payload has {len(entries)} entries; at most {MAX_ENTRIES} are taken")
        payload = {name: _write_array(store, name, array_id, spool.path()) for name, array_id in entries.items()}
    return body, payload


def _write_array(store: ObjectStore, name: str, array_id: str, path: Path) -> DigestedFile:
    _, chunk_ids, description = _object(store, array_id, Array)
    about = json.loads(description)

    def chunks() -> Iterator[bytes]:
        for index in about["arraychunk_ids"]:
            yield _object(store, chunk_ids[index], ArrayChunk)[2]

    written = DigestedFile.write(path, chunks())
    check_entry(name, stype=about["stype"], dtype=about["dtype"], shape=about["shape"], size=path.stat().st_size)
    return written


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
