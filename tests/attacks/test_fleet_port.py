"""An admitted node, and a stranger, against the fleet port: nothing of another node's can be read, forged or undone."""

import base64
import datetime
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from confide.identity.keys import generate_p256
from confide.proto import fleet_pb2
from confide_server.coordinator.process import Coordinator
from confide_server.fleet.flower import FleetLink, FleetSession
from confide_server.fleet.flower.request_filter import PATH_LIMITS
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from flwr.app import Message as FlowerMessage
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from google.protobuf.message import Message

from tests.coordinator_world import World
from tests.fleet_node import FleetNode

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass
class Scene:
    """A coordinator, a victim and an attacker, both admitted, and one instruction that is out to the victim."""

    world: World
    coordinator: Coordinator
    session: FleetSession
    victim: FleetNode
    attacker: FleetNode

    @property
    def link(self) -> FleetLink:
        return self.coordinator.link

    def send(self, node: FleetNode, payload: dict[str, bytes] | None = None) -> str:
        instruction = fleet_pb2.Instruction(version=1, run_id="0" * 32, step=fleet_pb2.OFFER, sequence=1)
        return self.session.send(node.name, instruction.SerializeToString(), payload or {})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    world = World.create(tmp_path_factory.mktemp("world"), nodes=3)
    coordinator = Coordinator(world.server)
    coordinator.start()
    victim, attacker = (FleetNode(world.of(name), coordinator.fleet_port) for name in world.node_names[:2])
    victim.activate()
    attacker.activate()
    session = coordinator.link.open_session(None, reply_limit_bytes=100_000)
    yield Scene(world, coordinator, session, victim, attacker)
    session.end()
    victim.stop()
    attacker.stop()
    coordinator.stop()


def status_of(error: pytest.ExceptionInfo[httpx.HTTPStatusError]) -> int:
    return error.value.response.status_code


def signed_headers(key: ec.EllipticCurvePrivateKey, timestamp: str | None = None) -> dict[str, str]:
    timestamp = timestamp or now().isoformat()
    signature = key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": base64.b64encode(signature).decode(),
        "content-type": "application/protobuf",
    }


def post(scene: Scene, path: str, headers: dict[str, str], body: bytes = b"") -> httpx.Response:
    context = ssl.create_default_context(cafile=str(scene.victim.local.ca_certificate_path))
    with httpx.Client(verify=context, timeout=60) as client:
        return client.post(f"https://127.0.0.1:{scene.coordinator.fleet_port}{path}", headers=headers, content=body)


def test_the_helper_signs_as_flower_does(scene: Scene) -> None:
    body = PullMessagesRequest(node=scene.attacker.node).SerializeToString()
    assert post(scene, "/v1/fleet/pull-messages", signed_headers(scene.attacker.key), body).status_code == 200


IN_ANOTHERS_NAME: dict[str, Callable[[FleetNode], Message]] = {
    "activate-node": lambda victim: ActivateNodeRequest(public_key=victim.public_pem, heartbeat_interval=30),
    "deactivate-node": lambda victim: DeactivateNodeRequest(node_id=victim.node_id),
    "send-node-heartbeat": lambda victim: SendNodeHeartbeatRequest(node=victim.node, heartbeat_interval=30),
    "pull-messages": lambda victim: PullMessagesRequest(node=victim.node),
    "push-messages": lambda victim: PushMessagesRequest(node=victim.node),
    "pull-object": lambda victim: PullObjectRequest(node=victim.node),
    "push-object": lambda victim: PushObjectRequest(node=victim.node),
    "confirm-message-received": lambda victim: ConfirmMessageReceivedRequest(node=victim.node),
    "report-progress": lambda victim: fleet_pb2.ProgressReport(node_id=victim.node_id),
    "run-ends": lambda victim: fleet_pb2.RunEndsQuery(node_id=victim.node_id),
    "pull-instruction": lambda victim: fleet_pb2.InstructionQuery(node_id=victim.node_id),
    "push-reply": lambda victim: fleet_pb2.ReplyPush(node_id=victim.node_id),
}


@pytest.mark.parametrize("call", IN_ANOTHERS_NAME)
def test_every_call_in_anothers_name_is_refused(scene: Scene, call: str) -> None:
    """The signature is the attacker's own; also a call that names nobody, or a key that is not the signer's."""
    assert {f"/v1/fleet/{name}" for name in IN_ANOTHERS_NAME} == set(PATH_LIMITS)
    path, before = f"/v1/fleet/{call}", scene.coordinator.link.nodes.activations(scene.victim.node_id)
    for body in (IN_ANOTHERS_NAME[call](scene.victim).SerializeToString(), b""):
        answer = post(scene, path, signed_headers(scene.attacker.key), body)
        assert answer.status_code == 401, answer.text
    assert scene.coordinator.link.nodes.activations(scene.victim.node_id) == before
    presence = scene.coordinator.link.state.get_node_info(node_ids=[scene.victim.node_id])
    assert [node.status for node in presence] == ["online"]


def test_reading_anothers_object_by_hash(scene: Scene) -> None:
    message_id = scene.send(scene.victim, {"model": b"the victim's"})
    response = scene.victim.client.PullMessages(PullMessagesRequest(node=scene.victim.node))
    run_id = response.messages_list[0].metadata.run_id
    for tree in iterate_object_tree(response.message_object_trees[0]):
        with pytest.raises(httpx.HTTPStatusError) as error:
            scene.attacker.pull_object(run_id, tree.object_id)
        assert status_of(error) == 403
        assert scene.victim.pull_object(run_id, tree.object_id)
    scene.session.withdraw([message_id])


def test_confirming_anothers_message_does_not_delete_it(scene: Scene) -> None:
    message_id = scene.send(scene.victim)
    request = ConfirmMessageReceivedRequest(
        node=scene.attacker.node, run_id=scene.session.run_id, message_object_id=message_id
    )
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.ConfirmMessageReceived(request)
    assert status_of(error) == 403
    assert scene.victim.pull() is not None
    scene.session.withdraw([message_id])


@pytest.mark.parametrize("claimed", ["its own name", "the victim's name"])
def test_forging_anothers_reply(scene: Scene, claimed: str) -> None:
    message_id = scene.send(scene.victim)
    pulled = scene.victim.pull()
    assert pulled is not None
    reply, tree, _ = scene.attacker.build_reply(pulled[0], b"forged", {})
    proto = message_to_proto(remove_content_from_message(reply))
    if claimed == "its own name":
        proto.metadata.src_node_id = scene.attacker.node_id
    request = PushMessagesRequest(node=scene.attacker.node, messages_list=[proto], message_object_trees=[tree])
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.PushMessages(request)
    assert status_of(error) == 403
    request.node.node_id = scene.victim.node_id  # and with the victim's node id over the attacker's own signature
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.PushMessages(request)
    assert status_of(error) == 401
    scene.victim.push(pulled[0], b"genuine", {})
    replies = list(scene.session.replies([message_id], 60.0))
    assert [reply.body for reply in replies] == [b"genuine"]


def test_answering_ones_own_instruction_in_anothers_name(scene: Scene) -> None:
    message_id = scene.send(scene.attacker)
    pulled = scene.attacker.pull()
    assert pulled is not None
    reply, tree, _ = scene.attacker.build_reply(pulled[0], b"forged", {})
    proto = message_to_proto(remove_content_from_message(reply))
    proto.metadata.src_node_id = scene.victim.node_id
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.PushMessages(
            PushMessagesRequest(node=scene.attacker.node, messages_list=[proto], message_object_trees=[tree])
        )
    assert status_of(error) == 403
    scene.session.withdraw([message_id])


def test_pushing_into_anothers_reply(scene: Scene) -> None:
    message_id = scene.send(scene.victim)
    pulled = scene.victim.pull()
    assert pulled is not None
    reply, tree, objects = scene.victim.build_reply(pulled[0], b"genuine", {})
    proto = message_to_proto(remove_content_from_message(reply))
    response = scene.victim.client.PushMessages(
        PushMessagesRequest(node=scene.victim.node, messages_list=[proto], message_object_trees=[tree])
    )
    object_id = response.objects_to_push[0]
    for node_id, expected in ((scene.attacker.node_id, 403), (scene.victim.node_id, 401)):
        with pytest.raises(httpx.HTTPStatusError) as error:
            scene.attacker.client.PushObject(
                PushObjectRequest(
                    node=Node(node_id=node_id),
                    run_id=scene.session.run_id,
                    object_id=object_id,
                    object_content=objects[object_id],
                    session_id=response.session_id,
                )
            )
        assert status_of(error) == expected
    with pytest.raises(httpx.HTTPStatusError) as error:  # the right session, content of another hash
        scene.victim.client.PushObject(
            PushObjectRequest(
                node=scene.victim.node,
                run_id=scene.session.run_id,
                object_id=object_id,
                object_content=b"ArrayChunk  1\x00x",
                session_id=response.session_id,
            )
        )
    assert status_of(error) == 400
    scene.session.withdraw([message_id])


def pushed(
    node: FleetNode, message: FlowerMessage, body: bytes, payload: dict[str, bytes], **changes: object
) -> fleet_pb2.ReplyPush:
    """A reply as the node's agent pushes it, with all of its objects inside. changes: of Flower's metadata."""
    reply, tree, objects = node.build_reply(message, body, payload)
    proto = message_to_proto(remove_content_from_message(reply))
    for name, value in changes.items():
        setattr(proto.metadata, name, value)
    return fleet_pb2.ReplyPush(
        node_id=node.node_id,
        message=proto.SerializeToString(),
        tree=tree.SerializeToString(),
        objects=[fleet_pb2.SmallObject(object_id=name, content=content) for name, content in objects.items()],
    )


def call(scene: Scene, node: FleetNode, path: str, request: Message) -> httpx.Response:
    return post(scene, f"/v1/fleet/{path}", signed_headers(node.key), request.SerializeToString())


def test_a_reply_with_its_objects_inside_is_held_to_the_same_rules(scene: Scene) -> None:
    victim, attacker = scene.victim, scene.attacker
    message_id = scene.send(victim)
    pulled = victim.pull()
    assert pulled is not None
    as_itself = pushed(attacker, pulled[0], b"forged", {}, src_node_id=attacker.node_id)
    as_the_victim = pushed(attacker, pulled[0], b"forged", {}, src_node_id=victim.node_id)
    too_big = pushed(victim, pulled[0], b"", {"upload": bytes(200_000)})
    damaged = pushed(victim, pulled[0], b"genuine", {})
    damaged.objects[0].content = b"ArrayChunk  1\x00x"
    other_tree = pushed(victim, pulled[0], b"genuine", {})
    other_tree.tree = pushed(victim, pulled[0], b"other", {}).tree
    garbage = fleet_pb2.ReplyPush(node_id=victim.node_id, message=b"\xff", tree=b"\xff")
    for node, request, expected in (
        (attacker, as_itself, 403),
        (attacker, as_the_victim, 403),
        (victim, damaged, 400),
        (victim, other_tree, 400),
        (victim, garbage, 400),
        (victim, too_big, 403),
    ):
        assert call(scene, node, "push-reply", request).status_code == expected
    assert list(scene.session.replies([message_id], 0.1)) == []
    message_id = scene.send(victim)
    pulled = victim.pull()
    assert pulled is not None
    more = pushed(victim, pulled[0], b"genuine", {})
    more.objects.append(fleet_pb2.SmallObject(object_id="f" * 64, content=b"of no reply"))
    assert call(scene, victim, "push-reply", more).status_code == 200
    assert [reply.body for reply in scene.session.replies([message_id], 60.0)] == [b"genuine"]
    assert scene.link.state.object_store.get("f" * 64) is None
    assert call(scene, victim, "push-reply", more).status_code == 403, "it was answered"


def test_a_poll_hands_over_what_is_its_own_and_small(scene: Scene) -> None:
    message_id = scene.send(scene.victim, {"model": bytes(range(256)) * 1024})
    query = fleet_pb2.InstructionQuery(node_id=scene.attacker.node_id)
    assert call(scene, scene.attacker, "pull-instruction", query).content == b""
    query = fleet_pb2.InstructionQuery(node_id=scene.victim.node_id)
    answer = fleet_pb2.InstructionPulled.FromString(call(scene, scene.victim, "pull-instruction", query).content)
    tree = ObjectTree.FromString(answer.tree)
    wanted = {part.object_id for part in iterate_object_tree(tree)}
    inside = {one.object_id for one in answer.objects}
    assert not answer.complete and inside < wanted and len(wanted - inside) == 1, "the model's chunk is read by itself"
    assert all(scene.victim.pull_object(scene.session.run_id, one) for one in wanted)
    scene.session.withdraw([message_id])
    small = scene.send(scene.victim)
    answer = fleet_pb2.InstructionPulled.FromString(call(scene, scene.victim, "pull-instruction", query).content)
    assert answer.complete and ObjectTree.FromString(answer.tree).object_id == small
    scene.session.withdraw([small])


def test_a_reply_above_its_limit_is_refused(scene: Scene) -> None:
    message_id = scene.send(scene.victim)
    pulled = scene.victim.pull()
    assert pulled is not None
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.victim.push(pulled[0], b"", {"upload": bytes(200_000)})
    assert status_of(error) == 403
    scene.session.withdraw([message_id])


def test_a_withdrawn_instruction_takes_no_reply(scene: Scene) -> None:
    message_id = scene.send(scene.victim)
    pulled = scene.victim.pull()
    assert pulled is not None
    scene.session.withdraw([message_id])
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.victim.push(pulled[0], b"late", {})
    assert status_of(error) == 403


def test_replaying_overheard_headers_on_another_call(scene: Scene) -> None:
    message_id = scene.send(scene.victim)
    headers = signed_headers(scene.victim.key)
    pull = PullMessagesRequest(node=scene.victim.node).SerializeToString()
    assert post(scene, "/v1/fleet/pull-messages", headers, pull).status_code == 200
    confirm = ConfirmMessageReceivedRequest(
        node=scene.victim.node, run_id=scene.session.run_id, message_object_id=message_id
    ).SerializeToString()
    assert post(scene, "/v1/fleet/confirm-message-received", headers, confirm).status_code == 401
    # ECDSA's other signature over the same timestamp, which anyone can make from the first one.
    r, s = decode_dss_signature(base64.b64decode(headers["flwr-signature"]))
    headers["flwr-signature"] = base64.b64encode(encode_dss_signature(r, P256_ORDER - s)).decode()
    assert post(scene, "/v1/fleet/confirm-message-received", headers, confirm).status_code == 401
    scene.session.withdraw([message_id])


def test_headers_from_long_before_the_newest_are_refused(scene: Scene) -> None:
    body = PullMessagesRequest(node=scene.attacker.node).SerializeToString()
    old = signed_headers(scene.attacker.key, (now() - datetime.timedelta(seconds=60)).isoformat())
    assert post(scene, "/v1/fleet/pull-messages", signed_headers(scene.attacker.key), body).status_code == 200
    answer = post(scene, "/v1/fleet/pull-messages", old, body)
    assert answer.status_code == 401 and "used before" in answer.json()["detail"]


@pytest.mark.parametrize("shift_s", [-1000.0, 60.0])
def test_a_clock_that_is_off_is_named(scene: Scene, shift_s: float) -> None:
    headers = signed_headers(scene.attacker.key, (now() + datetime.timedelta(seconds=shift_s)).isoformat())
    answer = post(scene, "/v1/fleet/pull-messages", headers)
    assert answer.status_code == 401 and "clock" in answer.json()["detail"]


def raw_request(scene: Scene, head: str, body: bytes = b"", limit_s: float = 60.0) -> tuple[str, float]:
    """Send exactly these bytes and return the answer's status line and how long it took."""
    context = ssl.create_default_context(cafile=str(scene.victim.local.ca_certificate_path))
    began = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", scene.coordinator.fleet_port), timeout=limit_s) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(head.encode() + body)
        answer = connection.recv(4096).decode()
    return answer.splitlines()[0], time.monotonic() - began


def head_of(path: str, headers: dict[str, str], *more: str) -> str:
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, *more, "", ""])


def test_a_stranger_is_refused_before_its_body_is_read(scene: Scene, tmp_path: Path) -> None:
    headers = signed_headers(generate_p256(tmp_path / "key"))
    # The body of 300 MB is announced and never sent: an answer shows that nobody waited for it.
    status, _ = raw_request(scene, head_of("/v1/fleet/push-object", headers, f"content-length: {300 << 20}"))
    assert " 401 " in status
    status, _ = raw_request(scene, head_of("/v1/fleet/push-object", {}, f"content-length: {300 << 20}"))
    assert " 401 " in status


def test_a_members_signature_is_checked_before_its_body_is_read(scene: Scene, tmp_path: Path) -> None:
    headers = signed_headers(generate_p256(tmp_path / "key"))
    headers["flwr-public-key"] = base64.b64encode(scene.victim.public_pem).decode()
    status, _ = raw_request(scene, head_of("/v1/fleet/push-object", headers, "content-length: 1000"))
    assert " 401 " in status


def test_a_big_body_is_refused_before_it_is_read(scene: Scene) -> None:
    headers = signed_headers(scene.attacker.key)
    status, _ = raw_request(scene, head_of("/v1/fleet/push-object", headers, f"content-length: {9 << 20}"))
    assert " 413 " in status
    headers = signed_headers(scene.attacker.key)
    status, _ = raw_request(scene, head_of("/v1/fleet/pull-messages", headers, f"content-length: {2 << 20}"))
    assert " 413 " in status


def test_a_body_without_a_length_is_counted(scene: Scene) -> None:
    headers = signed_headers(scene.attacker.key)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    head = head_of("/v1/fleet/pull-messages", headers, "transfer-encoding: chunked")
    status, _ = raw_request(scene, head, chunk * 17)  # 1.06 MiB of at most 1 MiB, and no end in sight
    assert " 413 " in status


def test_only_fleet_routes_exist(scene: Scene) -> None:
    offered = {"pull-messages", "push-messages", "pull-object", "push-object"}
    offered |= {"activate-node", "deactivate-node", "send-node-heartbeat", "confirm-message-received"}
    offered |= {"report-progress", "run-ends", "pull-instruction", "push-reply"}
    others = {path for _, path in PROTOBUF_REQUEST_TYPES if path.removeprefix("/v1/fleet/") not in offered}
    assert len([path for path in others if path.startswith(("/v1/control/", "/v1/runtime/"))]) > 50
    others |= {"/", "/docs", "/openapi.json", "/redoc", "/v1/health", "/health", "/v1/fleet", "/v1/fleet/get-fab/"}
    context = ssl.create_default_context(cafile=str(scene.victim.local.ca_certificate_path))
    address = f"https://127.0.0.1:{scene.coordinator.fleet_port}"
    with httpx.Client(verify=context, base_url=address, timeout=60) as client:
        for path in sorted(others):
            for method in ("POST", "GET"):
                answer = client.request(method, path, headers=signed_headers(scene.attacker.key))
                assert answer.status_code == 404, (method, path)


def test_a_revoked_node_is_cut_off_at_once(scene: Scene) -> None:
    gone = FleetNode(scene.world.of(scene.world.node_names[2]), scene.coordinator.fleet_port)
    gone.activate()
    message_id = scene.send(gone)
    scene.world.consortium.revoke(gone.name)
    scene.world.publish()
    scene.link.admit(scene.coordinator.member.roster.current)
    with pytest.raises(httpx.HTTPStatusError) as error:
        gone.pull()
    assert status_of(error) == 401
    assert "roster" in json.loads(error.value.response.text)["detail"]
    assert list(scene.session.replies([message_id], 0.1)) == []
    gone.stop()


def test_garbage_in_place_of_protobuf(scene: Scene) -> None:
    calls = ("push-messages", "pull-object", "push-object", "push-reply", "pull-instruction")
    for path in (f"/v1/fleet/{call}" for call in calls):
        answer = post(scene, path, signed_headers(scene.attacker.key), b"\xff" * 100)
        assert 400 <= answer.status_code < 500
    request = PushMessagesRequest(node=scene.attacker.node)
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.PushMessages(request)
    assert status_of(error) == 400


def test_an_object_tree_of_another_reply(scene: Scene) -> None:
    message_id = scene.send(scene.attacker)
    pulled = scene.attacker.pull()
    assert pulled is not None
    reply, tree, _ = scene.attacker.build_reply(pulled[0], b"x", {})
    proto = message_to_proto(remove_content_from_message(reply))
    assert message_from_proto(proto).metadata.message_id == tree.object_id
    tree.object_id = "f" * 64
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.PushMessages(
            PushMessagesRequest(node=scene.attacker.node, messages_list=[proto], message_object_trees=[tree])
        )
    assert status_of(error) == 400
    request = PullObjectRequest(node=scene.attacker.node, run_id=scene.session.run_id, object_id="f" * 64)
    with pytest.raises(httpx.HTTPStatusError) as error:
        scene.attacker.client.PullObject(request)
    assert status_of(error) == 403
    scene.session.withdraw([message_id])
