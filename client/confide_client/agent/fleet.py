"""The one module that touches Flower's internals on the node: an own connection to the coordinator's Fleet routes.

Flower's connection swallows exceptions, signals its own process and ends it from a thread; ours raises. It calls only
what moves messages: activate, heartbeat, pull, confirm, push. Code (a FAB) is never asked for, so none can be sent.

    with FleetLink(FleetSettings(coordinator="coordinator.example:9443", ...)) as link:
        if (message := link.receive()) is not None:
            link.send(app(message, context))

tests/unit/test_client_fleet.py fails first when flwr changes what is used here.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from confide import canonical
from confide.errors import IdentityError, RetryableError, TransportError
from confide.files import write_atomic
from confide.proto import fleet_pb2
from confide.text import line
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import HEARTBEAT_CALL_TIMEOUT, HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import Message as ProtobufMessage

from confide_client.state import read_json

CALL_TIMEOUT_S = 30.0
LEAVE_TIMEOUT_S = 2.0
REPORT_TIMEOUT_S = 5.0
REPORT_PATH = "/v1/fleet/report-progress"
RUN_ENDS_PATH = "/v1/fleet/run-ends"
PULL_PATH = "/v1/fleet/pull-instruction"
PUSH_PATH = "/v1/fleet/push-reply"
INLINE_BYTES = 1 << 20
"""Of a reply's objects that go with its announcement."""
SMALL_BYTES = 64 << 10
"""Of one of them: what is larger, a chunk of an upload, goes by itself."""
KEPT_OPEN_S = 60.0
"""How long a connection waits for its next request: longer than between two heartbeats, each of which would make a new
one else, and less than the 75 s after which the coordinator closes it."""
PULL_TIMEOUT_S = 600.0
MAX_MESSAGE_BYTES = 16 * 2**30
"""More than any trainable model that one message carries; a coordinator cannot fill the node's memory beyond it."""

MAX_RESPONSE_BYTES = 32 << 20
"""Of one answer: an object has at most 5 MiB, and a message's tree names at most 20,000 of them."""

T = TypeVar("T")
R = TypeVar("R", bound=ProtobufMessage)


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """What a connection needs."""

    coordinator: str
    """host:port of the fleet port."""
    fleet_key: ec.EllipticCurvePrivateKey
    ca_pem: str
    """The consortium's authority; the system's certificates are not trusted."""
    node_id_path: Path
    """Where Flower's number of this node is kept."""
    proxy: str = ""


class FleetRefusal(TransportError):
    """The coordinator was reached and answered a call with an HTTP error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RunOver(FleetRefusal):
    """The Flower run that a message belonged to has ended: the message and its answer no longer matter."""


class _VersionHeaders:
    """Flower's own interceptor would end the process when the other side says that versions differ."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._headers)
        return call_next(context)


class _Bounded(httpx.SyncByteStream):
    """A response's body that ends with an error at MAX_RESPONSE_BYTES."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            if size > MAX_RESPONSE_BYTES:
                raise TransportError(f"the coordinator answered with more than {MAX_RESPONSE_BYTES} bytes")
            yield part

    def close(self) -> None:
        self._stream.close()


def _bound_response(response: httpx.Response) -> None:
    """Before a body is read: refuse a compressed one, which could become any size in memory, and bound the rest."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise TransportError(f"the coordinator answered in the encoding {line(encoding, 40)!r}; none was asked for")
    assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - of a client that is not async
    response.stream = _Bounded(response.stream)


def _client(settings: FleetSettings) -> FleetHttpClient:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=settings.ca_pem)
        auth = NodeAuthHttpInterceptor(settings.fleet_key, settings.fleet_key.public_key())
        client = FleetHttpClient(f"https://{settings.coordinator}", interceptors=[_VersionHeaders(), auth])
        client.close()
        # Flower offers no proxy, follows redirects and obeys environment variables; an own client does none of it.
        client._client = httpx.Client(
            verify=context,
            timeout=CALL_TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
            proxy=settings.proxy or None,
            limits=httpx.Limits(keepalive_expiry=KEPT_OPEN_S),
            headers={"accept-encoding": "identity"},
            event_hooks={"response": [_bound_response]},
        )
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(
            f"cannot prepare a connection to {settings.coordinator!r}: {error}. Check ca.crt and the proxy setting."
        ) from error
    return client


def _translated(where: str, call: Callable[[], T]) -> T:
    """Run a call; its failures become ours, each with a remedy."""
    try:
        return call()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            raise IdentityError(
                f"{where} does not accept this node's signature. Was it admitted, is the newest roster published, and "
                "is this machine's clock right (a few seconds)?"
            ) from error
        if status == httpx.codes.FORBIDDEN:
            raise RunOver(f"{where} says that the run is not open any more", status) from error
        flower = FlowerError.from_json(error.response.text[:4096])
        detail = f" ({line(flower.message, 200)})" if flower else ""
        raise FleetRefusal(f"{where} answered with HTTP status {status}{detail}", status) from error
    except httpx.InvalidURL as error:
        raise TransportError(f"{where} is not a host:port: {error}; correct the coordinator's address") from error
    except httpx.TransportError as error:
        reason = line(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise IdentityError(
                f"{where} shows a certificate that this consortium's authority did not issue, or that has expired "
                f"({reason}). Is the address right? Ask the consortium's administrator."
            ) from error
        raise TransportError(f"{where} cannot be reached: {reason}") from error
    except (IdentityError, TransportError):
        raise
    except Exception as error:  # Flower's parsers raise many kinds for odd bytes
        raise TransportError(
            f"{where} answered with something unreadable: {type(error).__name__}: {line(error)}"
        ) from error


def _small(objects: Mapping[str, InflatableObject]) -> list[fleet_pb2.SmallObject]:
    """Those that go with the announcement."""
    room, chosen = INLINE_BYTES, []
    for object_id, one in objects.items():
        if isinstance(one, ArrayChunk) and len(one.data) > SMALL_BYTES:
            continue  # not even turned into bytes here: an upload has gigabytes of them
        content = one.deflate()
        if len(content) <= min(SMALL_BYTES, room):
            room -= len(content)
            chosen.append(fleet_pb2.SmallObject(object_id=object_id, content=content))
    return chosen


class FleetLink:
    """One live connection. Its heartbeat runs in a thread of its own, so that long training does not end it."""

    def __init__(self, settings: FleetSettings) -> None:
        """Take this node's place at the coordinator. Raises IdentityError or TransportError."""
        self._settings = settings
        self._where = f"the coordinator at {settings.coordinator}"
        self._client = _client(settings)
        self._inline = True
        """Whether small objects go inside a poll's answer and an announcement; not with a coordinator of before."""
        self._stop = threading.Event()
        self._lost = threading.Event()
        try:
            self._node = Node(node_id=self._activate())
        except BaseException:
            self._client.close()
            raise
        self._heart = threading.Thread(target=self._beat, name="fleet-heartbeat", daemon=True)
        self._heart.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def node_id(self) -> int:
        """Flower's number of this node."""
        return int(self._node.node_id)

    def _activate(self) -> int:
        public = public_key_to_bytes(self._settings.fleet_key.public_key())
        known = read_json(self._settings.node_id_path).get("node_id")
        if isinstance(known, int):
            # After a crash the coordinator holds our place for a minute, unless we give it back first.
            with contextlib.suppress(FleetRefusal, IdentityError):
                _translated(self._where, lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=known)))
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            node_id = int(_translated(self._where, lambda: self._client.ActivateNode(request)).node_id)
        except FleetRefusal as error:
            if error.status >= 500:
                raise
            raise IdentityError(
                f"{error}: this node is not registered there, or is active from elsewhere. Is the newest roster "
                "published, and does no second agent run with these keys?"
            ) from error
        if node_id != known:
            with contextlib.suppress(RetryableError):  # after a crash it then waits a minute for its place
                write_atomic(self._settings.node_id_path, canonical.encode({"node_id": node_id}))
        return node_id

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        while not self._stop.wait(HEARTBEAT_DEFAULT_INTERVAL / 3):
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self._lost.set()
            except (httpx.HTTPError, ValueError, RuntimeError, TransportError):
                # Not reached: the next poll of the main thread says why.
                self._stop.wait(HEARTBEAT_CALL_TIMEOUT / 5)

    def receive(self) -> Message | None:
        """The next message, complete and confirmed, or None. Raises TransportError, IdentityError or RunOver."""
        if self._lost.is_set():
            raise TransportError(f"{self._where} does not know this node as active any more")
        if self._inline:
            try:
                return self._receive_inline()
            except FleetRefusal as error:
                if error.status != httpx.codes.NOT_FOUND:
                    raise
                self._inline = False  # a coordinator of an earlier release
        request = PullMessagesRequest(node=self._node)
        response = _translated(self._where, lambda: self._client.PullMessages(request))
        if not response.messages_list:
            return None
        head = _translated(self._where, lambda: message_from_proto(response.messages_list[0]))
        return self._complete(head.metadata.run_id, response.message_object_trees[0], {}, confirm=True)

    def _receive_inline(self) -> Message | None:
        query = fleet_pb2.InstructionQuery(node_id=self.node_id)
        pulled = self._own(PULL_PATH, "PullInstruction", query, fleet_pb2.InstructionPulled, CALL_TIMEOUT_S)
        if not pulled.message:
            return None
        head, tree = _translated(
            self._where,
            lambda: (message_from_proto(FlowerMessage.FromString(pulled.message)), ObjectTree.FromString(pulled.tree)),
        )
        inside = {one.object_id: one.content for one in pulled.objects}
        return self._complete(head.metadata.run_id, tree, inside, confirm=not pulled.complete)

    def _complete(self, run_id: int, tree: ObjectTree, inside: dict[str, bytes], *, confirm: bool) -> Message:
        """The message with what is still missing of it. confirm: say that it came."""
        message = _translated(self._where, lambda: self._pull(run_id, tree, inside))
        if confirm:
            say = make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, self._node, run_id)
            _translated(self._where, lambda: say(tree.object_id))
        return message

    def _pull(self, run_id: int, tree: ObjectTree, inside: dict[str, bytes]) -> Message:
        pull_one = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id)
        room = [MAX_MESSAGE_BYTES]

        def pull(object_id: str) -> bytes:
            content = pull_one(object_id)
            room[0] -= len(content)
            if room[0] < 0:
                raise TransportError(f"{self._where} sends more than {MAX_MESSAGE_BYTES} bytes in one message")
            return content

        wanted = list({item.object_id for item in iterate_object_tree(tree)} - set(inside))
        contents = inside | pull_objects(
            wanted, pull, max_time=PULL_TIMEOUT_S, max_tries_per_object=None, initial_backoff=0.02, backoff_cap=0.5
        )
        message = inflate_object_from_contents(tree.object_id, contents)
        if not isinstance(message, Message) or not message.has_content():
            raise TransportError(f"{self._where} sent something that is not a message with content")
        # The identifier is the hash of the message's own bytes, so it cannot stand in them.
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def send(self, reply: Message) -> None:
        """Push a reply and its objects. Raises as `receive` does."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            missing, session_id = self._announce(reply, objects)
            run_id = reply.metadata.run_id
            push = make_push_object_fn_protobuf(self._client.PushObject, self._node, run_id, session_id)
            if missing:
                _translated(self._where, lambda: push_objects(objects, push, object_ids_to_push=missing))

    def _announce(self, reply: Message, objects: Mapping[str, InflatableObject]) -> tuple[set[str], str]:
        """(ids of the objects that are still to be pushed, the session for it)."""
        message, tree = message_to_proto(remove_content_from_message(reply)), get_object_tree(reply)
        if self._inline:
            push = fleet_pb2.ReplyPush(
                node_id=self.node_id,
                message=message.SerializeToString(),
                tree=tree.SerializeToString(),
                objects=_small(objects),
            )
            taken = self._own(PUSH_PATH, "PushReply", push, fleet_pb2.ReplyTaken, CALL_TIMEOUT_S)
            return set(taken.objects_to_push), taken.session_id
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message],
            message_object_trees=[tree],
            # How long the work took says something about the data; nobody needs it.
            clientapp_runtime_list=[0.0],
        )
        response = _translated(self._where, lambda: self._client.PushMessages(request))
        return set(response.objects_to_push), response.session_id

    def _own(self, path: str, name: str, request: Any, kind: type[R], timeout_s: float) -> R:
        """A call of Confide's own."""
        return _translated(
            self._where,
            lambda: self._client._unary_unary(
                path=path,
                rpc_method=f"/confide.v1.Fleet/{name}",
                request=request,
                response_type=kind,
                timeout=timeout_s,
            ),
        )

    def report(self, report: fleet_pb2.ProgressReport) -> None:
        """Tell what the node is doing, from any thread. Raises as `receive` does; nothing depends on it."""
        report.node_id = self.node_id
        self._own(REPORT_PATH, "ReportProgress", report, fleet_pb2.ProgressTaken, REPORT_TIMEOUT_S)

    def run_ends(self, run_ids: list[str]) -> fleet_pb2.RunEnds:
        """Which of these runs have ended, as the coordinator says. Raises as `receive` does."""
        query = fleet_pb2.RunEndsQuery(node_id=self.node_id, run_ids=run_ids)
        return self._own(RUN_ENDS_PATH, "RunEnds", query, fleet_pb2.RunEnds, CALL_TIMEOUT_S)

    def close(self) -> None:
        """Give the place back and end the heartbeat; a coordinator that is gone is no error here."""
        self._stop.set()
        # Who stops does not wait long: the coordinator may be stopping too.
        self._client._client.timeout = httpx.Timeout(LEAVE_TIMEOUT_S)
        with contextlib.suppress(TransportError, IdentityError):
            request = DeactivateNodeRequest(node_id=self._node.node_id)
            _translated(self._where, lambda: self._client.DeactivateNode(request))
        self._heart.join(timeout=LEAVE_TIMEOUT_S)
        self._client.close()
