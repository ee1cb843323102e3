"""Many light nodes in one process: each its own keys, connections, polls and heartbeats, over the real Fleet protocol.

    python -m confide_simulations.benchmarks.fleet.light_nodes FOLDER HOST:PORT CA.PEM < names

Every request is signed as an agent signs it, and polls and heartbeats come as an agent's do. A node accepts what it is
offered and trains on nothing: it keeps no model, no audit log and no roster, so that a thousand fit into one process.
Unsealed runs only. Prints one line of JSON when all are connected.
"""

import asyncio
import contextlib
import json
import random
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
from confide import __version__
from confide.codec.tensors import TensorSchema
from confide.identity.keys import SigningKey, load_p256
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import parse_canonical
from confide.sealing.plain import PlainMember
from confide.transport.envelope import payload_digest
from confide_client.agent.envelope import pack, unpack
from confide_client.agent.fleet import KEPT_OPEN_S, PULL_PATH, PUSH_PATH
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import Message as Protobuf

_MEDIA = {"content-type": "application/protobuf", "accept": "application/protobuf", "accept-encoding": "identity"}
_CONNECTING_AT_ONCE = 16
_BROKEN = (httpx.TransportError, httpx.HTTPStatusError)
R = TypeVar("R", bound=Protobuf)


@dataclass
class LightNode:
    """One node. `run` ends with the process."""

    folder: Path
    name: str
    address: str
    context: ssl.SSLContext
    node_id: int = 0
    _members: dict[str, PlainMember] = field(default_factory=dict)
    _offers: dict[str, fleet_pb2.Offer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._identity = SigningKey.load(self.folder / "identity.key")
        key = load_p256(self.folder / "fleet.key")
        self._public = public_key_to_bytes(key.public_key())
        self._auth = NodeAuthHttpInterceptor(key, key.public_key())
        self._version = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        limits = httpx.Limits(keepalive_expiry=KEPT_OPEN_S)
        self._client = httpx.AsyncClient(verify=self.context, timeout=60.0, trust_env=False, limits=limits)

    async def connect(self) -> None:
        """Take this node's place at the coordinator; a connection of its own that broke is closed first."""
        if self.node_id:
            goodbye = DeactivateNodeRequest(node_id=self.node_id)
            await self._call("/v1/fleet/deactivate-node", goodbye, DeactivateNodeResponse)
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        self.node_id = (await self._call("/v1/fleet/activate-node", request, ActivateNodeResponse)).node_id

    async def run(self) -> None:
        """Poll, answer and be alive; where that fails, connect anew a little later, as an agent does."""
        connected = True
        while True:
            with contextlib.suppress(*_BROKEN):
                if not connected:
                    await self.connect()
                connected = False
                await self._serve()
            await asyncio.sleep(random.uniform(1.0, 5.0))

    async def _serve(self) -> None:
        """Until one of the two fails; raises what it raised."""
        tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._beat())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(
            node=Node(node_id=self.node_id), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        await asyncio.sleep(random.uniform(0, HEARTBEAT_DEFAULT_INTERVAL / 3))
        while True:
            await self._call("/v1/fleet/send-node-heartbeat", request, SendNodeHeartbeatResponse)
            await asyncio.sleep(HEARTBEAT_DEFAULT_INTERVAL / 3)

    async def _poll(self) -> None:
        query = fleet_pb2.InstructionQuery(node_id=self.node_id)
        while True:
            pulled = await self._call(PULL_PATH, query, fleet_pb2.InstructionPulled)
            if not pulled.message:
                continue
            try:
                message = await self._complete(pulled)
                await self._push(Message(pack(*self._answer(*unpack(message.content))), reply_to=message))
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.FORBIDDEN:
                    raise
                # As for an agent: nobody waits for this answer any more.

    async def _complete(self, pulled: fleet_pb2.InstructionPulled) -> Message:
        tree, node = ObjectTree.FromString(pulled.tree), Node(node_id=self.node_id)
        run_id = FlowerMessage.FromString(pulled.message).metadata.run_id
        contents = {one.object_id: one.content for one in pulled.objects}
        for one in iterate_object_tree(tree):
            if one.object_id not in contents:
                wanted = PullObjectRequest(node=node, run_id=run_id, object_id=one.object_id)
                found = await self._call("/v1/fleet/pull-object", wanted, PullObjectResponse)
                contents[one.object_id] = found.object_content
        if not pulled.complete:
            said = ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=tree.object_id)
            await self._call("/v1/fleet/confirm-message-received", said, ConfirmMessageReceivedResponse)
        message = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(message, Message)  # noqa: S101 - of our own coordinator
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    async def _push(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        push = fleet_pb2.ReplyPush(
            node_id=self.node_id,
            message=message_to_proto(remove_content_from_message(reply)).SerializeToString(),
            tree=get_object_tree(reply).SerializeToString(),
            objects=[fleet_pb2.SmallObject(object_id=name, content=one.deflate()) for name, one in objects.items()],
        )
        await self._call(PUSH_PATH, push, fleet_pb2.ReplyTaken)

    def _answer(self, body: bytes, payload: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
        instruction = fleet_pb2.Instruction.FromString(body)
        upload: dict[str, bytes] = {}
        reply = fleet_pb2.Reply(
            version=1, release=__version__, run_id=instruction.run_id, step=instruction.step,
            sequence=instruction.sequence, node=self.name,
        )  # fmt: skip
        if instruction.step == fleet_pb2.OFFER:
            self._offers[instruction.run_id] = fleet_pb2.Offer(
                specification=fleet_pb2.Offer.FromString(instruction.body).specification
            )
            reply.body = fleet_pb2.OfferAnswer(accepted=True, precision="float32").SerializeToString()
        elif instruction.step == fleet_pb2.TRAIN:
            reply.body, upload = self._train(instruction, payload["model"])
        reply.payload_digest = payload_digest(upload)
        data = reply.SerializeToString(deterministic=True)
        signed = fleet_pb2.SignedReply(reply=data, signature=self._identity.sign("reply", data))
        return signed.SerializeToString(), upload

    def _train(self, instruction: fleet_pb2.Instruction, model: bytes) -> tuple[bytes, dict[str, bytes]]:
        member = self._members.get(instruction.run_id)
        if member is None:
            specification = parse_canonical(self._offers[instruction.run_id].specification)
            schema = TensorSchema.unnamed(len(model) // 4)
            member = PlainMember(specification=specification, folder=self.folder / "member", schema=schema)
            self._members[instruction.run_id] = member
        nothing = Contribution(np.zeros(len(model) // 4, dtype=np.float32), metrics={Metric.TRAIN_LOSS: 1.0})
        answer = member.handle(instruction.step, instruction.body, lambda slot: nothing, model)
        return answer.body, {"upload": answer.payload.read_bytes()} if answer.payload else {}

    async def _call(self, path: str, request: Protobuf, kind: type[R]) -> R:
        content = request.SerializeToString(deterministic=True)
        built = self._client.build_request("POST", f"https://{self.address}{path}", content=content, headers=_MEDIA)
        built.headers.update(self._version)
        context = ProtobufRequestContext(rpc_method=path, message=request, request=built)
        self._auth.intercept(context, lambda context: httpx.Response(200))  # puts its headers into the request
        response = await self._client.send(built)
        response.raise_for_status()
        return kind.FromString(response.content)


async def serve(folder: Path, address: str, authority: str, names: list[str]) -> None:
    """Connect all of them, say so, and go on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority)
    nodes = [LightNode(folder / name, name, address, context) for name in names]
    gate = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def connect(node: LightNode) -> "asyncio.Task[None]":
        async with gate:
            while True:
                try:
                    await node.connect()
                    break
                except httpx.TransportError:
                    await asyncio.sleep(random.uniform(0.2, 2.0))
        return asyncio.create_task(node.run())

    outcomes = await asyncio.gather(*(connect(node) for node in nodes), return_exceptions=True)
    for error in {repr(one) for one in outcomes if isinstance(one, BaseException)}:
        print(error, file=sys.stderr)
    running = [one for one in outcomes if not isinstance(one, BaseException)]
    print(json.dumps({"connected": len(running)}), flush=True)
    await asyncio.gather(*running)


def main() -> None:
    """See the module's docstring. Names come on standard input, one a line."""
    folder, address, authority = sys.argv[1:4]
    asyncio.run(serve(Path(folder), address, Path(authority).read_text(), sys.stdin.read().split()))


if __name__ == "__main__":
    main()
