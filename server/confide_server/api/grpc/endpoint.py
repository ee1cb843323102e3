"""One method as gRPC calls it: version, caller and rule first, then the request is parsed, then the function works.

A function takes the caller and the request (and, when it streams out, whether the caller is still there and may still
listen). A change is done once for each idempotency key. Where an answer has a field `clock`, the coordinator's time
goes into it.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
from confide.errors import ConfideError, StateError, TransportError
from confide.identity.member import LocalMember
from confide.transport.failures import CODE_KEY, message_of, own_metadata, status_of
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from confide_server.api.grpc.access import RULES, Caller, Rule, acting_of, check_version, claim_of, identify, release_of
from confide_server.state.idempotency import Idempotency

log = logging.getLogger(__name__)
Function = Callable[..., Any]
CLOCK = "clock"
MAX_NUMBER = (1 << 63) - 1
"""What databases hold."""


@dataclass(frozen=True)
class Surroundings:
    """What every endpoint needs beside its function."""

    member: LocalMember
    idempotency: Idempotency | None = None
    on_call: Callable[[str, str, float], None] = lambda name, release, expires_at: None
    """Told of each call that a member was let in with: name, release, when its certificate expires."""
    clock: Callable[[], float] = time.time


class Endpoint:
    """Wraps one function."""

    def __init__(self, name: str, function: Function, request: type[Message], reply: type[Message], at: Surroundings):
        self._name = name
        self._function = function
        self._rule: Rule = RULES[name]
        self._request = request
        self._reply = reply
        self._at = at

    def unary(self, data: bytes, context: grpc.ServicerContext) -> Message:
        """One request, one answer."""
        try:
            caller, request = self._let_in(context), self._parse(data)
            return self._stamped(self._answer(caller, request, self._function))
        except Exception as error:
            failure = error
        _abort(context, failure)

    def stream_out(self, data: bytes, context: grpc.ServicerContext) -> Iterator[Message]:
        """One request, many answers."""
        try:
            caller = self._let_in(context)
            active = lambda: context.is_active() and self._still(caller)  # noqa: E731 - a name for a small thing
            for reply in self._function(caller, self._parse(data), active):
                yield self._stamped(reply)
            return
        except Exception as error:
            failure = error
        _abort(context, failure)

    def stream_in(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> Message:
        """Many parts, one answer. A change's key stands in the first part, which names all that follows by its hash."""
        try:
            caller = self._let_in(context)
            rest = (self._parse(data) for data in parts)
            first = next(rest, None)
            if first is None:
                raise TransportError(f"{self._name} came without its first part, the header")
            work = lambda caller, first: self._function(caller, first, rest)  # noqa: E731 - a name for a small thing
            return self._stamped(self._answer(caller, first, work))
        except Exception as error:
            failure = error
        _abort(context, failure)

    def _let_in(self, context: grpc.ServicerContext) -> Caller:
        metadata = context.invocation_metadata()
        check_version(metadata)
        claim = claim_of(cast(Any, context.auth_context()))
        caller = identify(claim, self._rule, self._at.member.roster.current, acting=acting_of(metadata))
        if caller.member is not None:
            self._at.on_call(caller.name, release_of(metadata), claim.expires_at)
        return caller

    def _still(self, caller: Caller) -> bool:
        # A stream may outlast its caller's membership; raises when that has ended.
        return identify(caller.claim, self._rule, self._at.member.roster.current, acting=caller.acting) is not None

    def _answer(self, caller: Caller, request: Message, work: Function) -> Message:
        """What the function makes of it; of a change that was made before, what it made of it then."""
        if not self._rule.change:
            reply: Message = work(caller, request)
            return reply
        if self._at.idempotency is None:
            raise StateError(f"{self._name} changes something, and this coordinator remembers no changes")
        key: str = request.idempotency_key  # type: ignore[attr-defined]  # of every change, which a test holds
        kept = self._at.idempotency.once(
            caller.by,
            key,
            self._name,
            request.SerializeToString(deterministic=True),
            lambda: work(caller, request).SerializeToString(deterministic=True),
        )
        return self._reply.FromString(kept)

    def _stamped(self, reply: Message) -> Message:
        if CLOCK in reply.DESCRIPTOR.fields_by_name:
            setattr(reply, CLOCK, self._at.clock())
        return reply

    def _parse(self, data: bytes) -> Message:
        message = self._request()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise TransportError(
                f"the request is not a {self._request.DESCRIPTOR.name}; is the caller's release ours?"
            ) from error
        for field, value in message.ListFields():
            if field.type == field.TYPE_UINT64 and not field.is_repeated and value > MAX_NUMBER:
                raise TransportError(
                    f"{field.name} is {value} in a {message.DESCRIPTOR.name}; no such number is in use"
                )
        return message


def _abort(context: grpc.ServicerContext, failure: Exception) -> NoReturn:
    if not isinstance(failure, ConfideError):
        if context.is_active():  # else the caller went away, which is no fault
            log.error("a control call failed", exc_info=failure)
        failure = StateError("the coordinator failed while answering; its log says why")
    context.set_trailing_metadata((*own_metadata(), (CODE_KEY, failure.code)))
    context.abort(status_of(failure), message_of(failure))
    raise AssertionError("abort returns never")


def snake(name: str) -> str:
    """The function's name of a method.

    >>> snake("GetServerStatus")
    'get_server_status'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def handlers(
    service: ServiceDescriptor, functions: Mapping[str, Function], at: Surroundings
) -> "grpc.GenericRpcHandler[Any, Any]":
    """gRPC's handler of a whole service. functions: by name in snake case; one that is missing is a KeyError."""
    made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        request, reply = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        endpoint = Endpoint(f"{service.name}/{method.name}", functions[snake(method.name)], request, reply, at)
        serializer = reply.SerializeToString
        if method.client_streaming:
            made[method.name] = grpc.stream_unary_rpc_method_handler(endpoint.stream_in, None, serializer)
        elif method.server_streaming:
            made[method.name] = grpc.unary_stream_rpc_method_handler(endpoint.stream_out, None, serializer)
        else:
            made[method.name] = grpc.unary_unary_rpc_method_handler(endpoint.unary, None, serializer)
    return grpc.method_handlers_generic_handler(service.full_name, made)
