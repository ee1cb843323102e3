"""A small node for the coordinator's tests: real Fleet protocol over TLS, real signatures, invented training.

It answers with confide.sealing's real member half; its "training" returns a vector that depends on its name and the
round, so that a test can compute what the federation must give. As a process: python -m tests.fleet_node FOLDER SERVER
"""

import argparse
import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import numpy as np
from confide import __version__
from confide.codec.tensors import TensorSchema
from confide.errors import ConfideError, NotNow, TrainingError
from confide.identity.member import LocalMember, load_member
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import parse_canonical
from confide.sealing.factory import make_member
from confide.sealing.roles import Member
from confide.transport.envelope import payload_digest
from confide_client.agent.envelope import pack, unpack
from flwr.app import Message
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
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

Trainer = Callable[[str, int, int, bytes], np.ndarray]


def invented_update(name: str, round: int, size: int, model: bytes) -> np.ndarray:
    """What the node of this name "learns" in this round; shape (size,), float32."""
    generator = np.random.default_rng([round, *name.encode()])
    return generator.normal(size=size).astype("<f4")


class FleetNode:
    """One node, in the caller's thread (`poll`) or in its own (`start`)."""

    def __init__(self, folder: Path, port: int, trainer: Trainer = invented_update, size: int = 0) -> None:
        self.local: LocalMember = load_member(folder)
        self.name = self.local.name
        self.key = self.local.fleet_key()
        self.port = port
        self.trainer = trainer
        self.size = size
        """Scalars of the model; sealed members need it before the model comes."""
        self.offers: list[str] = []
        self.answer_offers = "accept"
        self.claims_s = 0.0
        """How long it says that a round takes it."""
        self.precision = "float32"
        self.hardware = fleet_pb2.Hardware()
        self.steps: list[tuple[str, int]] = []
        self.ends: list[fleet_pb2.End] = []
        self.client = self.connect()
        self.node_id = 0
        self._member: Member | None = None
        self._run_id = ""
        self._offer_of: dict[str, fleet_pb2.Offer] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def connect(self) -> FleetHttpClient:
        return FleetHttpClient.from_server_address(
            f"127.0.0.1:{self.port}",
            False,
            str(self.local.ca_certificate_path),
            [
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(self.key, self.key.public_key()),
            ],
        )

    @property
    def node(self) -> Node:
        return Node(node_id=self.node_id)

    @property
    def public_pem(self) -> bytes:
        return public_key_to_bytes(self.key.public_key())

    def activate(self) -> None:
        """Connect; a connection that a killed process left behind is closed first."""
        known = self.local.folder / "node_id"
        if known.exists():
            with contextlib.suppress(httpx.HTTPError):
                self.client.DeactivateNode(DeactivateNodeRequest(node_id=int(known.read_text())))
        request = ActivateNodeRequest(public_key=self.public_pem, heartbeat_interval=30)
        self.node_id = self.client.ActivateNode(request).node_id
        known.write_text(str(self.node_id))

    def start(self) -> "FleetNode":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.client.close()

    def _loop(self) -> None:
        beat = 0.0
        while not self._stop.is_set():
            try:
                if not self.node_id:
                    self.activate()
                if time.monotonic() - beat > 10:
                    self.client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30))
                    beat = time.monotonic()
                self.poll()
            except (httpx.HTTPError, RuntimeError) as error:
                print(f"{self.name}: {error}", flush=True)
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
                    self.node_id = 0
                self._stop.wait(0.2)

    def poll(self) -> bool:
        """Take and answer one instruction; False when there was none."""
        pulled = self.pull()
        if pulled is None:
            return False
        message, body, payload = pulled
        reply, upload = self.answer(body, payload)
        self.push(message, reply, upload)
        return True

    def pull(self) -> tuple[Message, bytes, dict[str, bytes]] | None:
        response = self.client.PullMessages(PullMessagesRequest(node=self.node))
        if not response.messages_list:
            return None
        message, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
        run_id = message.metadata.run_id
        contents = {one.object_id: self.pull_object(run_id, one.object_id) for one in iterate_object_tree(tree)}
        inflated = inflate_object_from_contents(message.metadata.message_id, contents)
        assert isinstance(inflated, Message)
        inflated.metadata.__dict__["_message_id"] = message.metadata.message_id
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=message.metadata.message_id)
        )
        body, payload = unpack(inflated.content)
        return inflated, body, payload

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        found = self.client.PullObject(PullObjectRequest(node=self.node, run_id=run_id, object_id=object_id))
        if not found.object_found:
            raise RuntimeError("what was being read was withdrawn")
        return found.object_content

    def push(self, message: Message, body: bytes, payload: Mapping[str, bytes]) -> None:
        reply, tree, objects = self.build_reply(message, body, payload)
        response = self.client.PushMessages(
            PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
        )
        for object_id in response.objects_to_push:
            self.client.PushObject(
                PushObjectRequest(
                    node=self.node,
                    run_id=message.metadata.run_id,
                    object_id=object_id,
                    object_content=objects[object_id],
                    session_id=response.session_id,
                )
            )

    def build_reply(
        self, message: Message, body: bytes, payload: Mapping[str, bytes]
    ) -> tuple[Message, ObjectTree, dict[str, bytes]]:
        reply = Message(pack(body, payload), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {object_id: one.deflate() for object_id, one in get_all_nested_objects(reply).items()}
        return reply, get_object_tree(reply), objects

    # --- what it says

    def answer(self, data: bytes, payload: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
        instruction = fleet_pb2.Instruction.FromString(data)
        assert payload_digest(payload) == instruction.payload_digest
        self.steps.append((fleet_pb2.Step.Name(instruction.step), instruction.sequence))
        upload: dict[str, bytes] = {}
        reply = fleet_pb2.Reply(
            version=1,
            release=__version__,
            run_id=instruction.run_id,
            step=instruction.step,
            sequence=instruction.sequence,
            node=self.name,
        )
        try:
            reply.body, upload = self._handle(instruction, payload.get("model", b""))
        except ConfideError as error:
            reply.failure.code, reply.failure.message = error.code, str(error)
            if isinstance(error, NotNow):
                reply.failure.busy_s = error.seconds
        reply.payload_digest = payload_digest(upload)
        return self.sign(reply), upload

    def sign(self, reply: fleet_pb2.Reply) -> bytes:
        data = reply.SerializeToString(deterministic=True)
        signature = self.local.identity.sign("reply", data)
        return fleet_pb2.SignedReply(reply=data, signature=signature).SerializeToString()

    def _handle(self, instruction: fleet_pb2.Instruction, model: bytes) -> tuple[bytes, dict[str, bytes]]:
        if instruction.step == fleet_pb2.OFFER:
            return self._offer(instruction), {}
        if instruction.step == fleet_pb2.END:
            end = fleet_pb2.End.FromString(instruction.body)
            self.ends.append(end)
            if self._member is not None:
                self._member.slot_ended(end)
            return b"", {}
        member = self._member_of(instruction.run_id, self.size or len(model) // 4)

        def train(slot: fleet_pb2.SlotOpen) -> Contribution:
            update = self.trainer(self.name, slot.round, len(model) // 4, model)
            return Contribution(update, metrics={Metric.TRAIN_LOSS: 1.0 / slot.round})

        answer = member.handle(instruction.step, instruction.body, train, model)
        return answer.body, {"upload": answer.payload.read_bytes()} if answer.payload else {}

    def _member_of(self, run_id: str, size: int) -> Member:
        if self._member is None or self._run_id != run_id:
            offer = self._offer_of.get(run_id)
            if offer is None:
                raise TrainingError("this node was never offered the run")
            self._run_id = run_id
            self._member = make_member(
                parse_canonical(offer.specification),
                self.local.roster.current,
                self.name,
                self.local.identity,
                self.local.folder / "member" / run_id,
                run_id,
                TensorSchema.unnamed(size),
                initial_model_sha256=offer.initial_model_sha256,
            )
        return self._member

    def _offer(self, instruction: fleet_pb2.Instruction) -> bytes:
        offer = fleet_pb2.Offer.FromString(instruction.body)
        self.offers.append(instruction.run_id)
        if self.answer_offers != "accept":
            answer = fleet_pb2.OfferAnswer(
                accepted=False,
                waiting=self.answer_offers in ("wait", "prepare"),
                preparing=self.answer_offers == "prepare",
                reason=f"policy says {self.answer_offers}",
            )
            return answer.SerializeToString()
        self.local.roster.accept(offer.roster)
        self._offer_of[instruction.run_id] = offer
        answer = fleet_pb2.OfferAnswer(
            accepted=True, precision=self.precision, round_s=self.claims_s, hardware=self.hardware
        )
        return answer.SerializeToString()


class Lasting(FleetNode):
    """Follows the coordinator to its new port after a restart."""

    def __init__(self, folder: Path, server: Path, delay_s: float) -> None:
        self._server = server
        self._delay_s = delay_s
        super().__init__(folder, self._port(), self._slow)

    def _port(self) -> int:
        while True:
            with contextlib.suppress(OSError, ValueError):
                return int(json.loads((self._server / "addresses.json").read_text())["fleet_port"])
            time.sleep(0.05)

    def _slow(self, name: str, round: int, size: int, model: bytes) -> np.ndarray:
        print(f"{name} trains round {round}", flush=True)
        time.sleep(self._delay_s)
        return invented_update(name, round, size, model)

    def poll(self) -> bool:
        try:
            return super().poll()
        except httpx.TransportError:
            self.port = self._port()
            self.client = self.connect()
            raise


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("server", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    node = Lasting(arguments.folder, arguments.server, arguments.delay)
    node.start()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
