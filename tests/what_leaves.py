"""Everything that a node's process sends in a private run, field by field, with why it may leave.

`declared` walks every request that tests/recording_node.py noted, down to the last field of every message inside, by
their descriptors: a field that is not in TABLE fails, whether it is set or not, so that nobody can add one
unnoticed. docs/privacy.md, "What leaves", says the same in words.
"""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from confide.privacy.receipts import Receipt
from confide.proto import control_pb2, fleet_pb2, sealing_pb2
from confide.sealing.roles import WORK
from confide_client.agent.envelope import pack, unpack
from flwr.app import Message
from flwr.proto import fleet_pb2 as flower_fleet
from flwr.proto import heartbeat_pb2 as flower_heartbeat
from flwr.proto import message_pb2 as flower_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Protobuf
from google.protobuf.unknown_fields import UnknownFieldSet


class Why(StrEnum):
    """Why a field may leave."""

    CONSTANT = "the same in every message of every run"
    PUBLIC = "known to the coordinator already, or follows from what it sent"
    FRESH = "fresh random bytes, a public key, or a hash or signature over what stands in this table"
    ACCOUNTED = "charged to the ledger before it leaves"
    COUNTED = "counts lines of the ledger: how often, never what"
    TIME = "tells when; declared as not covered"
    MACHINE = "follows from the machine or its settings, never from records"
    WORDS = "fixed text of the program, without data"
    HOLDS = "another message of this table"


C, P, F, A, N, T, M, W, H = Why


def _fields(kind: str, /, **whys: Why) -> dict[str, Why]:
    return {f"{kind}.{name}": why for name, why in whys.items()}


TABLE: dict[str, Why] = {
    # fleet: the envelope of every answer
    **_fields("confide.v1.SignedReply", reply=H, signature=F),
    **_fields(
        "confide.v1.Reply", version=C, release=C, run_id=P, step=P, sequence=P, node=P, payload_digest=F, body=H,
        failure=H,
    ),
    **_fields("confide.v1.Failure", code=W, message=W, busy_s=T),
    **_fields(
        "confide.v1.OfferAnswer", accepted=P, waiting=P, reason=W, preparing=T, round_s=T, precision=M, busy_s=T,
        hardware=H,
    ),
    **_fields("confide.v1.Hardware", cores=M, memory_gib=M, vector_units=M, accelerator=M),
    # beside the answers, while the node works
    **_fields("confide.v1.ProgressReport", node_id=P, progress=H, signature=F),
    **_fields(
        "confide.v1.Progress", version=C, run_id=P, node=P, phase=T, step=C, steps=C, seconds_left=T, number=T
    ),
    **_fields("confide.v1.RunEndsQuery", node_id=P, run_ids=P),
    # a poll and an announcement of Confide's own: Flower's messages stand in them
    **_fields("confide.v1.InstructionQuery", node_id=P),
    **_fields("confide.v1.ReplyPush", node_id=P, message=H, tree=H, objects=H),
    **_fields("confide.v1.SmallObject", object_id=F, content=H),
    # sealing: epoch
    **_fields("confide.v1.SignedBundle", bundle=H, signature=F),
    **_fields(
        "confide.v1.Bundle", version=C, run_id=P, epoch=P, node=P, first_slot=P, share_key=F, mask_keys=F,
        seed_commitments=F, incarnation=F, ledger_length=N, ledger_head=F, specification_sha256=P, roster_version=P,
        roster_sha256=P, ledger_signature=F,
    ),
    **_fields("confide.v1.ShareReply", version=C, epoch=P, dealings=H),
    **_fields("confide.v1.Dealing", dealer=P, receiver=P, ciphertext=H),
    **_fields(
        "confide.v1.DealtShares", self_mask=H, mask_secret=H, ledger_length=N, ledger_head=F, ledger_signature=F,
        earlier=H,
    ),
    **_fields("confide.v1.LedgerClaim", length=N, head=F, signature=F),
    **_fields("confide.v1.DealtShare", share=F, signature=F),
    # sealing: slot
    **_fields("confide.v1.SealedUpload", version=C, slot=P, context=P, upload_digest=F),
    # without sealing, where a policy allows that; MetricValue is not declared, so a metric would fail
    **_fields("confide.v1.PlainUpload", version=C, slot=P, upload_digest=F, weight=C, metrics=H),
    **_fields("confide.v1.Confirmation", version=C, slot=P, node=P, anchored=P, signature=F),
    **_fields("confide.v1.Reveal", version=C, slot=P, shares=H),
    **_fields("confide.v1.RevealedShare", dealer=P, kind=P, share=F, signature=F),
    "payload.upload": A,
    # control service
    **_fields("confide.v1.HelloRequest", nonce=F, roster_version=P),
    **_fields("confide.v1.PublishRosterRequest", roster=P),
    **_fields("confide.v1.PutReceiptRequest", run_id=P, receipt=H, signature=F),
    **_fields(
        "receipt", version=C, run_id=P, slot=P, group=P, specification=P, events_sha256=F, spent_slots=N,
        approved_slots=P, ledger_length=N, ledger_head=F,
    ),
    # enrolment, once, before any run
    **_fields("enrolment", document=H, signature=F),
    **_fields(
        "enrolment.document", addresses=P, created_at=T, csr=F, fleet_key=F, fleet_proof=F, identity_key=F, name=P,
        role=P, version=C,
    ),
    # Flower's own messages, which carry ours
    **_fields("flwr.proto.ActivateNodeRequest", public_key=F, heartbeat_interval=C),
    **_fields("flwr.proto.DeactivateNodeRequest", node_id=P),
    **_fields("flwr.proto.SendNodeHeartbeatRequest", node=H, heartbeat_interval=C),
    **_fields("flwr.proto.PullMessagesRequest", node=H, message_ids=P),
    **_fields("flwr.proto.ConfirmMessageReceivedRequest", node=H, run_id=P, message_object_id=P),
    **_fields("flwr.proto.PullObjectRequest", node=H, run_id=P, object_id=P),
    **_fields("flwr.proto.PushObjectRequest", node=H, run_id=P, object_id=F, object_content=H, session_id=P),
    **_fields(
        "flwr.proto.PushMessagesRequest", node=H, messages_list=H, message_object_trees=H, clientapp_runtime_list=C
    ),
    **_fields("flwr.proto.Message", metadata=H, content=H, error=H),
    **_fields(
        "flwr.proto.Metadata", run_id=P, message_id=F, src_node_id=P, src_task_id=P, dst_task_id=P, dst_node_id=C,
        reply_to_message_id=P, group_id=P, ttl=T, message_type=P, created_at=T,
    ),
    **_fields("flwr.proto.Error", code=C, reason=W),
    **_fields("flwr.proto.ObjectTree", object_id=F, children=H),
    **_fields("flwr.proto.RecordDict", items=C),
    **_fields("flwr.proto.Node", node_id=P),
    # HTTP headers and gRPC metadata
    **_fields(
        "http", **dict.fromkeys(("accept", "accept-encoding", "connection", "content-type", "host"), C),
        **{"content-length": P, "user-agent": C, "flwr-component-name": C, "flwr-package-name": C},
        **{"flwr-package-version": C, "flwr-public-key": F, "flwr-signature": F, "flwr-timestamp": T},
    ),
    **_fields("grpc", **{"confide-protocol": C, "confide-release": C}),
}  # fmt: skip

_REQUESTS: dict[str, type[Protobuf]] = {
    "/v1/fleet/activate-node": flower_fleet.ActivateNodeRequest,
    "/v1/fleet/deactivate-node": flower_fleet.DeactivateNodeRequest,
    "/v1/fleet/pull-messages": flower_fleet.PullMessagesRequest,
    "/v1/fleet/push-messages": flower_fleet.PushMessagesRequest,
    "/v1/fleet/pull-object": flower_message.PullObjectRequest,
    "/v1/fleet/push-object": flower_message.PushObjectRequest,
    "/v1/fleet/confirm-message-received": flower_message.ConfirmMessageReceivedRequest,
    "/v1/fleet/send-node-heartbeat": flower_heartbeat.SendNodeHeartbeatRequest,
    "/v1/fleet/report-progress": fleet_pb2.ProgressReport,
    "/v1/fleet/run-ends": fleet_pb2.RunEndsQuery,
    "/v1/fleet/pull-instruction": fleet_pb2.InstructionQuery,
    "/v1/fleet/push-reply": fleet_pb2.ReplyPush,
    "/confide.v1.Control/Hello": control_pb2.HelloRequest,
    "/confide.v1.Control/GetRoster": control_pb2.GetRosterRequest,
    "/confide.v1.Control/PublishRoster": control_pb2.PublishRosterRequest,
    "/confide.v1.Control/PutReceipt": control_pb2.PutReceiptRequest,
}
_ANSWERS: dict[int, type[Protobuf] | None] = {
    fleet_pb2.OFFER: fleet_pb2.OfferAnswer,
    fleet_pb2.ADVERTISE: sealing_pb2.SignedBundle,
    fleet_pb2.SHARE: sealing_pb2.ShareReply,
    fleet_pb2.TRAIN: sealing_pb2.SealedUpload,
    fleet_pb2.SCORE: sealing_pb2.SealedUpload,
    fleet_pb2.CONFIRM: sealing_pb2.Confirmation,
    fleet_pb2.REVEAL: sealing_pb2.Reveal,
    fleet_pb2.ANCHOR: None,
    fleet_pb2.END: None,
}
_PHASES = (fleet_pb2.PHASE_LOADING, fleet_pb2.PHASE_MEASURING, fleet_pb2.PHASE_WORKING)
Found = tuple[str, Any]


class Undeclared(AssertionError):
    """Something leaves that nobody declared."""


def _declared(name: str) -> None:
    if name not in TABLE:
        raise Undeclared(f"{name} leaves the node and is not in tests/what_leaves.py: is it accounted, or a constant?")


def walk(message: Protobuf) -> Iterator[Found]:
    """(field, value) of a message and all that it holds as messages; every field of its type must be declared."""
    kind = message.DESCRIPTOR
    if len(UnknownFieldSet(message)):
        raise Undeclared(f"{kind.full_name} carries a field that this release does not know")
    for field in kind.fields:
        _declared(f"{kind.full_name}.{field.name}")
    for field, value in message.ListFields():
        name = f"{kind.full_name}.{field.name}"
        for item in value if _repeated(field) else [value]:
            yield name, item
            if isinstance(item, Protobuf):
                yield from walk(item)


def _repeated(field: FieldDescriptor) -> bool:
    return field.is_repeated


def parse(kind: type[Protobuf], data: bytes) -> Protobuf:
    """The message whose bytes these are, all of them."""
    message = kind.FromString(data)
    assert message.SerializeToString(deterministic=True) == data, f"{kind.__name__} has another encoding"
    return message


def within(name: str, value: Any) -> Iterator[Found]:
    """What stands in a bytes field that holds another message."""
    if name == "confide.v1.SignedBundle.bundle":
        yield from opened(parse(sealing_pb2.Bundle, value))
    elif name == "confide.v1.ProgressReport.progress":
        said = parse(fleet_pb2.Progress, value)
        assert isinstance(said, fleet_pb2.Progress)
        assert said.phase in _PHASES and (said.step, said.steps) == (0, 0), f"a private run tells its pace: {said}"
        yield from walk(said)
    elif name == "confide.v1.Dealing.ciphertext":
        # Encrypted to another member, who may be curious: its type is declared like any other.
        for kind in (sealing_pb2.DealtShares, sealing_pb2.LedgerClaim, sealing_pb2.DealtShare):
            for field in kind.DESCRIPTOR.fields:
                _declared(f"{kind.DESCRIPTOR.full_name}.{field.name}")
    elif name == "confide.v1.ReplyPush.message":
        yield from walk(parse(flower_message.Message, value))
    elif name == "confide.v1.ReplyPush.tree":
        yield from walk(parse(flower_message.ObjectTree, value))
    elif name == "confide.v1.PutReceiptRequest.receipt":
        yield from _document("receipt", json.loads(value))
        Receipt.model_validate_json(value)


def opened(message: Protobuf) -> Iterator[Found]:
    """`walk`, and into bytes fields that hold messages."""
    for name, value in walk(message):
        yield name, value
        yield from within(name, value)


def _document(kind: str, document: dict[str, Any]) -> Iterator[Found]:
    for field, value in document.items():
        name = f"{kind}.{field}"
        _declared(name)
        yield name, value
        if isinstance(value, dict):
            yield from _document(name, value)


def answer(body: bytes, payload: dict[str, bytes]) -> Iterator[Found]:
    """A signed reply and its payload."""
    signed = parse(fleet_pb2.SignedReply, body)
    assert isinstance(signed, fleet_pb2.SignedReply)
    yield from walk(signed)
    reply = parse(fleet_pb2.Reply, signed.reply)
    assert isinstance(reply, fleet_pb2.Reply)
    yield from walk(reply)
    kind = _ANSWERS[reply.step]
    if kind is None:
        assert reply.body == b"", f"the answer to step {reply.step} is not empty"
    elif reply.WhichOneof("outcome") == "body":
        yield from opened(parse(_upload_of(reply.body) if reply.step in WORK else kind, reply.body))
    for name, data in payload.items():
        _declared(f"payload.{name}")
        yield f"payload.{name}", data


def _upload_of(body: bytes) -> type[Protobuf]:
    """Sealed or, where a policy allows that, plain: the fourth field is a digest, or a weight."""
    return (
        sealing_pb2.SealedUpload if sealing_pb2.SealedUpload.FromString(body).upload_digest else sealing_pb2.PlainUpload
    )


def enrolment(state: Path) -> Iterator[Found]:
    """The request with which the node asked for admission."""
    yield from _document("enrolment", json.loads((state / "request.json").read_bytes()))


def declared(state: Path) -> tuple[list[Found], list[tuple[fleet_pb2.Reply, dict[str, bytes]]]]:
    """(every field that left the node of this folder, its replies with their payloads). Raises Undeclared."""
    found, objects, messages = list(enrolment(state)), dict[str, bytes](), list[str]()
    for line in (state / "left.jsonl").read_text().splitlines():
        note = json.loads(line)
        for header in note["headers"]:
            _declared(f"{note['road']}.{header}")
        if note["to"] not in _REQUESTS:
            raise Undeclared(f"{note['to']} is called by the node and is not declared")
        request = _REQUESTS[note["to"]].FromString(bytes.fromhex(note["body"]))
        found += opened(request)
        if isinstance(request, flower_message.PushObjectRequest):
            objects[request.object_id] = request.object_content
        if isinstance(request, fleet_pb2.ReplyPush):
            objects |= {one.object_id: one.content for one in request.objects}
            messages.append(flower_message.ObjectTree.FromString(request.tree).object_id)
        if isinstance(request, flower_fleet.PushMessagesRequest):
            messages += [tree.object_id for tree in request.message_object_trees]
    replies = []
    for identifier in messages:
        body, payload = _unpacked(identifier, objects)
        found += answer(body, payload)
        replies.append((fleet_pb2.Reply.FromString(fleet_pb2.SignedReply.FromString(body).reply), payload))
    assert not objects, "objects were sent that belong to no answer"
    return found, replies


def _unpacked(identifier: str, objects: dict[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    """Body and payload of a sent message; its objects are taken out, and must hold nothing else."""
    message = inflate_object_from_contents(identifier, dict(objects), keep_object_contents=True)
    assert isinstance(message, Message)
    body, payload = unpack(message.content)
    message.content = pack(body, payload)
    again = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
    for name, content in again.items():
        assert objects.pop(name) == content, "an object holds more than body and payload"
    return body, payload
