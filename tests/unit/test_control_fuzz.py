"""The control service against bytes that no honest peer sends, and errors that no honest coordinator answers."""

import time

import grpc
import pytest
from confide.errors import ConfideError, FailureName, ProtocolFailure, TransportError
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.proto import control_pb2 as pb
from confide.proto import inquiries_pb2
from confide.transport import failures
from confide.transport.control import ControlClient
from confide_server.api.grpc.access import RULES
from confide_server.api.grpc.server import ControlServer
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given, settings
from hypothesis import strategies as st

METHODS = {
    f"{service.name}/{name}": method
    for service in (pb.DESCRIPTOR.services_by_name["Control"], inquiries_pb2.DESCRIPTOR.services_by_name["Inquiries"])
    for name, method in service.methods_by_name.items()
    if name != "AwaitInquiries"  # stays open for as long as its node listens, whatever came
}


@pytest.fixture(scope="module", params=["administrator", "node"])
def channel(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    consortium = Consortium.create(folder / "root", "example")
    members = {
        role: accept_admission(
            folder / role, consortium.admit(make_request(folder / role, role, role, addresses)), time.time()
        )
        for role, addresses in (("coordinator", ["127.0.0.1"]), (request.param, ()))
    }
    server = ControlServer(member=members["coordinator"], folder=folder / "state", address="127.0.0.1:0")
    with ControlClient.of_member(members[request.param], f"127.0.0.1:{server.start()}") as client:
        client.hello()
        yield client._channel
    server.stop()


def test_every_method_has_a_rule():
    assert set(METHODS) <= set(RULES)


@settings(max_examples=150)
@given(data=st.binary(max_size=200), method=st.sampled_from(sorted(METHODS)))
@example(data=b"\xff" * 50, method="Control/Enrol")
@example(data=b"", method="Control/ProveRun")
def test_arbitrary_requests_are_errors_by_name_and_harm_nothing(channel, data, method):
    path, options = f"/confide.v1.{method}", {"metadata": failures.own_metadata(), "timeout": 10}
    try:
        if METHODS[method].client_streaming:
            channel.stream_unary(path)(iter([data]), **options)
        elif METHODS[method].server_streaming:
            list(channel.unary_stream(path)(data, **options))
        else:
            channel.unary_unary(path)(data, **options)
    except grpc.RpcError as error:
        assert "confide-code" in dict(error.trailing_metadata()), error
        assert "its log says why" not in error.details()


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_well_formed_requests_with_odd_fields_are_errors_by_name(channel, method, data):
    fields = {
        name: data.draw(st.binary(max_size=40) if field.type == field.TYPE_BYTES else st.text(max_size=40))
        for name, field in METHODS[method].input_type.fields_by_name.items()
        if field.type in (field.TYPE_BYTES, field.TYPE_STRING)
    }
    kind = GetMessageClass(METHODS[method].input_type)
    test_arbitrary_requests_are_errors_by_name_and_harm_nothing.hypothesis.inner_test(
        channel, kind(**fields).SerializeToString(), method
    )


@given(st.text(max_size=40), st.text(max_size=300))
def test_any_error_code_from_the_other_side_is_an_error(code, message):
    assert isinstance(failures.revive(code, message), ConfideError)


def test_every_error_of_ours_crosses_as_itself():
    for name in FailureName:
        failure = ProtocolFailure(name, "a detail")
        revived = failures.revive(failure.code, failures.message_of(failure))
        assert isinstance(revived, ProtocolFailure) and str(revived) == str(failure)
    for kind in ConfideError.__subclasses__():
        if kind.__module__ == "confide.errors" and kind is not ProtocolFailure:
            assert type(failures.revive(kind("x").code, "x")) is kind
    assert type(failures.revive("os.system", "x")) is TransportError
