"""The administration service against requests that no honest caller sends: an error by name, never a fault inside."""

import grpc
import pytest
from confide.identity.roster import Role
from confide.proto import admin_pb2 as pb
from confide.text import cleaned_message
from confide.transport import failures
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.admin_world import running_world

METHODS = pb.DESCRIPTOR.services_by_name["Admin"].methods_by_name
UNARY = sorted(name for name, method in METHODS.items() if not method.server_streaming)
ROLES = ("administrator", "node")
INSIDE = "the coordinator failed while answering"
REPLIES = sorted({method.output_type.name for method in METHODS.values()})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_world(tmp_path_factory.mktemp("fuzz")) as running:
        running.known = running.finished("known")
        running.client(Role.ADMINISTRATOR).hello()
        running.client(Role.NODE).hello()
        yield running


def ask(world, role, name, data):
    """The reply, or the failure that the coordinator named."""
    client, path = world.client(role), f"/confide.v1.Admin/{name}"
    options = {"metadata": failures.own_metadata(), "timeout": 20}
    try:
        if METHODS[name].server_streaming:
            call = client._channel.unary_stream(path)(data, **options)
            next(call, None)
            call.cancel()
        else:
            client._channel.unary_unary(path)(data, **options)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            said = dict(error.trailing_metadata() or ())
            assert failures.CODE_KEY in said, error
            assert INSIDE not in (error.details() or ""), (name, data)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=120), name=st.sampled_from(sorted(METHODS)), role=st.sampled_from(ROLES))
def test_arbitrary_bytes_are_errors_by_name(world, data, name, role):
    ask(world, Role(role), name, data)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_largest_numbers_are_errors_by_name_or_find_nothing(world, name):
    request = GetMessageClass(METHODS[name].input_type)()
    for field in METHODS[name].input_type.fields:
        largest = {field.TYPE_UINT64: 2**64 - 1, field.TYPE_UINT32: 2**32 - 1, field.TYPE_STRING: "\0" * 16}
        if field.type in largest and not field.is_repeated:
            setattr(request, field.name, largest[field.type])
    ask(world, Role.ADMINISTRATOR, name, request.SerializeToString())


def values(world, field):
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            known = st.sampled_from([world.known, "0" * 32, "hospital-a", "support", "finished", "k" * 16, "1", ""])
            return known | st.text(max_size=80)
        case FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=80) | st.just(world.coordinator.roster.signed)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_INT32:
            return st.integers(-(2**31), 2**31 - 1)
        case FieldDescriptor.TYPE_UINT32:
            return st.integers(0, 3) | st.integers(0, 2**32 - 1)
        case FieldDescriptor.TYPE_UINT64:
            return st.integers(0, 3) | st.integers(0, 2**64 - 1)
    raise AssertionError(field.name)


def fill(world, message, data):
    """Odd values in some of its fields, and of the messages in it."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            getattr(message, field.name).extend(data.draw(st.lists(values(world, field), max_size=3)))
        elif not data.draw(st.booleans()):
            continue
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(world, getattr(message, field.name), data)
        else:
            setattr(message, field.name, data.draw(values(world, field)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(UNARY), role=st.sampled_from(ROLES))
def test_odd_values_in_every_field_are_errors_by_name(world, data, name, role):
    request = GetMessageClass(METHODS[name].input_type)()
    fill(world, request, data)
    if "idempotency_key" in METHODS[name].input_type.fields_by_name:
        request.idempotency_key = data.draw(st.text("abc", min_size=16, max_size=20))
    ask(world, Role(role), name, request.SerializeToString())


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), name=st.sampled_from(REPLIES))
def test_whatever_a_coordinator_answers_can_be_shown(data, name):
    message = getattr(pb, name)()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    cleaned_message(message)
    assert all(text.isprintable() for text in texts(message))


def texts(message):
    """Every text in it that stands on one line."""
    for field, value in message.ListFields():
        if field.name in ("specification_toml", "plan", "notes"):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from (one for one in value.values() if isinstance(one, str))
        elif field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from texts(one)
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield from value if field.is_repeated else [value]
