"""Flower's Fleet protocol, each call behind the check of ownership that Flower's handlers leave out.

Who calls was settled before (request filter, then binding, which holds the request's node id against the signing
key). Here the request's other ids are held against the record of what is in flight: 403 for what belongs to
somebody else.

Flower's protocol has no word for how far a node's work is, nor for what ended while a node was away, and takes nine
requests for an instruction and its reply, however small: report-progress, run-ends, pull-instruction and push-reply are
Confide's own. Flower's calls for the same stay, for nodes of earlier releases and for what is big.

Connections go through Flower's handlers and its state. Instructions stand in the record of what is in flight, objects
and replies in the object store: that record knows what is out and what is awaited, so that Flower's rows of messages,
push sessions and traffic (a dozen statements for each object) are not needed. With them, the polls of many nodes that
all got something waited for each other at SQLite's one lock, a fifth of a second a node and round.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

from confide.proto.fleet_pb2 import (
    InstructionPulled,
    InstructionQuery,
    ProgressReport,
    ProgressTaken,
    ReplyPush,
    ReplyTaken,
    RunEnds,
    RunEndsQuery,
    SmallObject,
)
from fastapi import APIRouter, Depends, HTTPException, Request
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.protobuf.routing import ProtobufRoute
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES, get_protobuf_request
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError, Message
from starlette.concurrency import run_in_threadpool

from confide_server.fleet.flower.in_flight import InFlight
from confide_server.fleet.flower.store import FileObjectStore

SILENT_S = 3.0
"""A node that is there asks for something that soon after a poll of its was held: whoever comes with its key after a
longer silence is the same one, started again."""
INLINE_BYTES = 1 << 20
"""Of an instruction's objects in one answer to a poll."""
MAX_OBJECTS = 20_000
"""In one reply: 100 GB in chunks of 5 MiB."""

OnReport = Callable[[str, ProgressReport], None]
TellEnds = Callable[[Sequence[str]], RunEnds]

router = APIRouter(prefix="/v1/fleet", route_class=ProtobufRoute)
# Flower's decoder goes by this table; the calls that are Confide's own stand in it too.
PROTOBUF_REQUEST_TYPES["POST", "/v1/fleet/report-progress"] = ProgressReport
PROTOBUF_REQUEST_TYPES["POST", "/v1/fleet/run-ends"] = RunEndsQuery
PROTOBUF_REQUEST_TYPES["POST", "/v1/fleet/pull-instruction"] = InstructionQuery
PROTOBUF_REQUEST_TYPES["POST", "/v1/fleet/push-reply"] = ReplyPush


async def get_board(request: Request) -> InFlight:
    """What is in flight in this app."""
    board = request.app.state.board
    assert isinstance(board, InFlight)  # noqa: S101 - set by the link that made the app
    return board


async def get_on_report(request: Request) -> OnReport:
    """Who is told what nodes report of their work."""
    told: OnReport = request.app.state.on_report
    return told


async def get_run_ends(request: Request) -> TellEnds:
    """Who says how runs ended."""
    ends: TellEnds = request.app.state.run_ends
    return ends


async def get_state(request: Request) -> LinkState:
    """Flower's state."""
    return get_linkstate(request)


async def get_asked(request: Request) -> Message:
    """What Flower's decoder made of the request."""
    return get_protobuf_request(request)


# Coroutines, all of them: for each plain function FastAPI would wait for a thread, at every request.
ASKED = Depends(get_asked)
State = Annotated[LinkState, Depends(get_state)]
Board = Annotated[InFlight, Depends(get_board)]
Told = Annotated[OnReport, Depends(get_on_report)]
Ends = Annotated[TellEnds, Depends(get_run_ends)]


def _refuse(what: str) -> NoReturn:
    raise HTTPException(status_code=403, detail=f"{what} is not this node's, or no longer open")


@router.post("/activate-node")
def activate_node(request: Annotated[ActivateNodeRequest, ASKED], state: State, board: Board) -> ActivateNodeResponse:
    """A node connects; what it had pulled on an earlier connection is lost.

    One that was killed before it had noted its number cannot give its place back: it is taken from it, which Flower
    does only when its heartbeats have stayed away for a minute. Beside an agent that polls, a second one is refused.
    """
    node = board.nodes.of_key(request.public_key)
    if node is not None and board.nodes.silent_s(node.node_id) >= board.hold_s + SILENT_S:
        state.deactivate_node(node.node_id)  # changes nothing where it was not active
    response = fleet_handlers.activate_node(request=request, state=state)
    board.nodes.activated(response.node_id)
    board.mail(response.node_id)
    return response


@router.post("/deactivate-node")
def deactivate_node(
    request: Annotated[DeactivateNodeRequest, ASKED], state: State, board: Board
) -> DeactivateNodeResponse:
    """A node leaves."""
    response = fleet_handlers.deactivate_node(request=request, state=state)
    board.nodes.said_goodbye(request.node_id)
    return response


@router.post("/send-node-heartbeat")
async def send_node_heartbeat(
    request: Annotated[SendNodeHeartbeatRequest, ASKED], state: State, board: Board
) -> SendNodeHeartbeatResponse:
    """A node is alive. Flower's state hears of it once in a third of the time for which it then takes it to be."""
    node_id = request.node.node_id
    if board.nodes.is_alive(node_id):
        return SendNodeHeartbeatResponse(success=True)
    response = await run_in_threadpool(fleet_handlers.send_node_heartbeat, request=request, state=state)
    if response.success:
        board.nodes.alive(node_id, request.heartbeat_interval * HEARTBEAT_PATIENCE / 3)
    return response


@router.post("/pull-messages")
async def pull_messages(request: Annotated[PullMessagesRequest, ASKED], board: Board) -> PullMessagesResponse:
    """The next instruction; held open for a moment when there is none."""
    taken = board.take(request.node.node_id) if await board.wait_mail(request.node.node_id) else None
    if taken is None:
        return PullMessagesResponse()
    return PullMessagesResponse(messages_list=[taken[0]], message_object_trees=[taken[1]])


@router.post("/pull-instruction")
async def pull_instruction(
    request: Annotated[InstructionQuery, ASKED], state: State, board: Board
) -> InstructionPulled:
    """The next instruction with its small objects; held open as `pull_messages` is."""
    taken = board.take(request.node_id) if await board.wait_mail(request.node_id) else None
    if taken is None:
        return InstructionPulled()
    return await run_in_threadpool(_with_objects, *taken, state)


def _with_objects(message: FlowerMessage, tree: ObjectTree, state: LinkState) -> InstructionPulled:
    objects, complete = _small_objects(tree, state)
    if complete:
        state.object_store.delete(tree.object_id)
    return InstructionPulled(
        message=message.SerializeToString(), tree=tree.SerializeToString(), objects=objects, complete=complete
    )


def _small_objects(tree: ObjectTree, state: LinkState) -> tuple[list[SmallObject], bool]:
    """(the objects that fit into an answer, whether those are all). A payload's chunks are read one by one as ever."""
    objects, room, complete = [], INLINE_BYTES, True
    for object_id in dict.fromkeys(part.object_id for part in iterate_object_tree(tree)):
        content = state.object_store.get_small(object_id) if isinstance(state.object_store, FileObjectStore) else None
        if content is None or len(content) > room:
            complete = False
            continue
        room -= len(content)
        objects.append(SmallObject(object_id=object_id, content=content))
    return objects, complete


@router.post("/push-messages")
def push_messages(request: Annotated[PushMessagesRequest, ASKED], state: State, board: Board) -> PushMessagesResponse:
    """Announce a reply: in the caller's own name, to an instruction that is out to it."""
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise HTTPException(status_code=400, detail="exactly one reply with its object tree goes into a call")
    metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    missing, session_id = _announce(request.node.node_id, metadata, tree, state, board)
    return PushMessagesResponse(results={metadata.message_id: 0}, objects_to_push=missing, session_id=session_id)


def _announce(
    node_id: int, metadata: Metadata, tree: ObjectTree, state: LinkState, board: InFlight
) -> tuple[list[str], str]:
    """(ids of the objects that are missing, session in which they may be pushed)."""
    if metadata.src_node_id != node_id:
        _refuse(f"the reply's sender {metadata.src_node_id}")
    if not board.is_to(node_id, metadata.reply_to_message_id):
        _refuse(f"the instruction {metadata.reply_to_message_id[:64]}")
    if tree.object_id != metadata.message_id or _count(tree, MAX_OBJECTS) > MAX_OBJECTS:
        raise HTTPException(status_code=400, detail="the object tree is not that of the reply, or is too big")
    try:
        missing = state.object_store.preregister(metadata.run_id, tree)
    except ValueError as error:
        raise HTTPException(status_code=400, detail="an object id in the tree is not a SHA-256") from error
    session_id = uuid.uuid4().hex
    board.begin_reply(metadata.reply_to_message_id, tree.object_id, session_id, missing)
    return missing, session_id


@router.post("/push-reply")
def push_reply(request: Annotated[ReplyPush, ASKED], state: State, board: Board) -> ReplyTaken:
    """Announce a reply and hand over its small objects, each as if it came by itself; others are not looked at."""
    try:
        message, tree = FlowerMessage.FromString(request.message), ObjectTree.FromString(request.tree)
    except DecodeError as error:
        raise HTTPException(status_code=400, detail="the reply or its object tree cannot be read") from error
    missing, session_id = _announce(request.node_id, message.metadata, tree, state, board)
    for one in (one for one in request.objects if one.object_id in set(missing)):
        _take_object(request.node_id, session_id, one.object_id, one.content, state, board)
    came = {one.object_id for one in request.objects}
    return ReplyTaken(objects_to_push=[name for name in missing if name not in came], session_id=session_id)


def _count(tree: ObjectTree, most: int) -> int:
    total, waiting = 0, [tree]
    while waiting and total <= most:
        total += 1
        waiting.extend(waiting.pop().children)
    return total


@router.post("/push-object")
def push_object(request: Annotated[PushObjectRequest, ASKED], state: State, board: Board) -> PushObjectResponse:
    """An object of a reply that this node announced, within the reply's limit."""
    _take_object(request.node.node_id, request.session_id, request.object_id, request.object_content, state, board)
    return PushObjectResponse(stored=True)


def _take_object(
    node_id: int, session_id: str, object_id: str, content: bytes, state: LinkState, board: InFlight
) -> None:
    if not board.may_push(node_id, session_id, object_id, len(content)):
        _refuse(f"the object {object_id[:64]} (with these {len(content)} bytes)")
    try:
        state.object_store.put(object_id, content)
    except (ValueError, NoObjectInStoreError) as error:
        raise HTTPException(status_code=400, detail=f"the object is not what its id says: {error}") from error
    board.pushed(session_id, object_id)


@router.post("/pull-object")
def pull_object(request: Annotated[PullObjectRequest, ASKED], state: State, board: Board) -> PullObjectResponse:
    """An object of an instruction that is out to this node."""
    if not board.may_read(request.node.node_id, request.object_id):
        _refuse(f"the object {request.object_id[:64]}")
    content = state.object_store.get(request.object_id)
    return PullObjectResponse(
        object_found=content is not None, object_available=bool(content), object_content=content or b""
    )


@router.post("/confirm-message-received")
def confirm_message_received(
    request: Annotated[ConfirmMessageReceivedRequest, ASKED], state: State, board: Board
) -> ConfirmMessageReceivedResponse:
    """The node has all of an instruction that is out to it; its objects may go."""
    if not board.is_to(request.node.node_id, request.message_object_id):
        _refuse(f"the instruction {request.message_object_id[:64]}")
    state.object_store.delete(request.message_object_id)
    return ConfirmMessageReceivedResponse()


@router.post("/report-progress")
def report_progress(request: Annotated[ProgressReport, ASKED], board: Board, told: Told) -> ProgressTaken:
    """What a node is doing. Every report gets the same answer, also one that is dropped."""
    name = board.nodes.name_of(request.node_id)
    if name is not None:
        told(name, request)
    return ProgressTaken()


@router.post("/run-ends")
def run_ends(request: Annotated[RunEndsQuery, ASKED], ends: Ends) -> RunEnds:
    """Which of the runs that a node takes for open have ended."""
    return ends(list(request.run_ids))
