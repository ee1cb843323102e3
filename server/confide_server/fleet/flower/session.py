"""One live Flower run: instructions go out, replies come in one at a time, as files.

A Confide run outlives it: after a crash the driver opens a session again, which goes on with the same Flower run if
its heartbeat has not lapsed, and else with a new one. Instructions of an earlier process are withdrawn then; the
driver sends what it still needs again, with the same sequence numbers.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from confide.errors import RetryableError, StateError, TransportError
from confide.proto import fleet_pb2
from confide.sealing.roles import WORK
from confide.transport.envelope import BODY_RECORD, DTYPE, PAYLOAD_RECORD, STYPE
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, Status, SubStatus
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from sqlalchemy.exc import SQLAlchemyError

from confide_server.fleet.flower.in_flight import InFlight
from confide_server.fleet.flower.replies import FleetReply, read_reply

HEARTBEAT_EVERY_S = 10.0
MESSAGE_TTL_S = 7 * 24 * 3600.0
"""Deadlines are the driver's business; Flower's own time to live must only not come before them."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Shared:
    """A payload that several nodes get: hashed, cut and stored once."""

    source: Mapping[str, bytes]
    record: ArrayRecord
    tree: ObjectTree
    objects: Mapping[str, InflatableObject]


@dataclass(frozen=True)
class _Written:
    """What several nodes get in the same words: all of a message but to whom it goes."""

    instruction: bytes
    payload: Mapping[str, bytes]
    trains: bool
    record: RecordDict
    tree: ObjectTree
    objects: Mapping[str, InflatableObject]


class FleetSession:
    """One live Flower run with its heartbeat."""

    def __init__(
        self, state: LinkState, board: InFlight, spool: Path, previous_run_id: int | None, reply_limit_bytes: int
    ) -> None:
        self._state = state
        self._board = board
        self._spool = spool
        self._reply_limit_bytes = reply_limit_bytes
        self._shared: _Shared | None = None
        self._last: _Written | None = None
        self.run_id, self._task_id = self._resume(previous_run_id) or self._start()
        self.alive = True
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, name="fleet-heartbeat", daemon=True)
        self._beat.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    # --- the Flower run

    def _resume(self, run_id: int | None) -> tuple[int, int] | None:
        runs = self._state.get_run_info(run_ids=[run_id]) if run_id else []
        if not runs or runs[0].primary_task_id is None:
            return None
        task_id = runs[0].primary_task_id
        if runs[0].status.status == Status.RUNNING and self._state.acknowledge_task_heartbeat(task_id):
            # Earlier releases kept instructions in the database, and their objects in memory that is gone.
            self._state.delete_messages(self._state.get_message_ids_from_run_id(runs[0].run_id))
            return runs[0].run_id, task_id
        self._state.stop_run(runs[0].run_id)
        return None

    def _start(self) -> tuple[int, int]:
        run_id = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        task_id = self._state.get_run_info(run_ids=[run_id])[0].primary_task_id if run_id else None
        # Nothing may be sent before the run is RUNNING: Flower would drop it.
        if task_id is None or self._state.claim_task(task_id) is None or not self._state.activate_task(task_id):
            raise StateError("Flower's state did not start a run; move fleet.db away and start the coordinator again")
        return run_id, task_id

    def _heartbeat(self) -> None:
        while not self._ended.wait(HEARTBEAT_EVERY_S):
            with contextlib.suppress(SQLAlchemyError):  # a busy database is asked again; the claim holds for 60 s
                if not self._state.acknowledge_task_heartbeat(self._task_id):
                    log.warning("the Flower run %d lapsed; the driver will open a new one", self.run_id)
                    self.alive = False
                    return

    def leave(self) -> None:
        """Stop the heartbeat and leave the Flower run as it is, to be resumed."""
        self._ended.set()
        self._beat.join()

    def end(self) -> None:
        """Finish the Flower run and remove what is left of it."""
        self.leave()
        self._state.finish_task(self._task_id, SubStatus.COMPLETED, "")
        self._state.cleanup_run(self.run_id)

    # --- messages

    def send(self, node: str, instruction: bytes, payload: Mapping[str, bytes]) -> str:
        """Send one instruction; returns its message id. The same payload object again is stored only once.

        Raises TransportError when the node is not connected or the Flower run lapsed.
        """
        node_id = self._board.nodes.id_of(node)
        if node_id is None or not self.alive:
            raise TransportError(f"{node} cannot be reached: it is not in the roster, or the Flower run lapsed")
        if not self._board.nodes.has_connected(node_id):
            raise TransportError(f"{node} has not connected yet; start its agent with `confide node start`")
        message, tree, objects = self._build(node_id, instruction, payload)
        store = self._state.object_store
        for object_id in store.preregister(self.run_id, tree):
            try:
                store.put(object_id, objects[object_id].deflate())
            except OSError as error:
                raise RetryableError(
                    f"an instruction for {node} cannot be stored: {error.strerror}. Free space."
                ) from error
        message_id = message.metadata.message_id
        readable = {part.object_id for part in iterate_object_tree(tree)}
        letter = message_to_proto(remove_content_from_message(message))
        self._board.post(letter, tree, node_id, readable, self._reply_limit_bytes)
        self._board.mail(node_id)
        return message_id

    def _build(
        self, node_id: int, instruction: bytes, payload: Mapping[str, bytes]
    ) -> tuple[Message, ObjectTree, Mapping[str, InflatableObject]]:
        content = self._written(instruction, payload)
        metadata = Metadata(
            run_id=self.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=node_id,
            reply_to_message_id="",
            group_id="",
            created_at=now().timestamp(),
            ttl=MESSAGE_TTL_S,
            message_type="train.confide" if content.trains else "query.confide",
        )
        message = make_message(metadata=metadata, content=content.record)
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {**content.objects, message.object_id: message}
        return message, ObjectTree(object_id=message.object_id, children=[content.tree]), objects

    def _written(self, instruction: bytes, payload: Mapping[str, bytes]) -> _Written:
        last = self._last
        if last is not None and last.instruction is instruction and last.payload is payload:
            return last
        self._last = None  # two payloads at a time would be one too many
        small = ConfigRecord({"body": instruction})
        record = RecordDict({BODY_RECORD: small})
        children = [get_object_tree(small)]
        objects: dict[str, InflatableObject] = {small.object_id: small}
        if payload:
            shared = self._share(payload)
            record[PAYLOAD_RECORD] = shared.record
            children.append(shared.tree)
            objects |= shared.objects
        objects[record.object_id] = record
        tree = ObjectTree(object_id=record.object_id, children=children)
        trains = fleet_pb2.Instruction.FromString(instruction).step in WORK
        self._last = _Written(instruction, payload, trains, record, tree, objects)
        return self._last

    def _share(self, payload: Mapping[str, bytes]) -> _Shared:
        if self._shared is None or self._shared.source is not payload:
            record = ArrayRecord(
                {
                    name: Array(dtype=DTYPE, shape=(len(data),), stype=STYPE, data=bytes(data))
                    for name, data in payload.items()
                }
            )
            self._shared = _Shared(payload, record, get_object_tree(record), get_all_nested_objects(record))
        return self._shared

    def replies(self, message_ids: Collection[str], deadline_s: float) -> Iterator[FleetReply]:
        """Replies as they arrive, one at a time, until all are there or the deadline passed.

        A reply is removed from the store before the next one is waited for.
        """
        end = time.monotonic() + deadline_s
        waiting = set(message_ids)
        while waiting:
            answered = self._board.wait_answer(waiting, end - time.monotonic())
            if answered is None:
                return
            message_id, reply_id = answered
            waiting.discard(message_id)
            try:
                reply = read_reply(self._state.object_store, message_id, reply_id, self._spool)
            finally:
                self._forget(message_id)
            yield reply

    def withdraw(self, message_ids: Collection[str]) -> None:
        """Nothing is expected for these any more; a late reply is refused."""
        for message_id in message_ids:
            self._forget(message_id)

    def _forget(self, message_id: str) -> None:
        reply_id = self._board.close(message_id)
        self._state.object_store.delete(message_id)
        if reply_id is not None:
            self._state.object_store.delete(reply_id)
