"""Runs, receipts and faults over real gRPC and mTLS: what crosses unharmed, and what is refused by name."""

import contextlib
import socket
import threading
import time

import pytest
from confide.codec.tensors import model_digest
from confide.errors import (
    IdentityError,
    LedgerError,
    ProtocolFailure,
    SpecificationError,
    StateError,
    TransportError,
)
from confide.identity.submission import MAX_VALID_S, sign_stop, sign_submission, verify_submission
from confide.proto import control_pb2 as pb
from confide.runs.specification import EXAMPLE, parse_toml
from confide_server.api.grpc.incoming_model import CHUNK_BYTES
from confide_server.api.grpc.server import ControlServer
from confide_server.state.receipts import MAX_RECEIPT_BYTES

from tests.control_federation import MODEL, RUN_ID, running_federation

SPECIFICATION = parse_toml(EXAMPLE)


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setattr("confide_server.api.grpc.control.WATCH_POLL_S", 0.05)
    with running_federation(tmp_path) as running:
        yield running


@pytest.fixture
def administrator(federation):
    return federation.admit("admin", "administrator")


@pytest.fixture
def node(federation):
    return federation.admit("hospital-a")


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_submission_crosses_unharmed(federation, administrator):
    with federation.client(administrator) as client:
        run_id = client.submit(SPECIFICATION, MODEL, administrator.identity)
    (submission,) = federation.book.submitted
    signed = submission.signed
    assert verify_submission(federation.coordinator.roster.current, signed) == SPECIFICATION
    assert (signed.run_id, signed.initial_model_sha256, submission.initial_model) == (
        run_id,
        model_digest(MODEL),
        MODEL,
    )


def header(member, specification=None, terms=None, **changes):
    document = SPECIFICATION.canonical_bytes() if specification is None else specification
    signed = sign_submission(member.identity, "admin", document, model_digest(MODEL), **(terms or {}))
    fields = {key: value for key, value in vars(signed).items() if key not in ("administrator", "cosigned")}
    return pb.SubmitRunHeader(**(fields | {"initial_model_bytes": len(MODEL)} | changes))


@pytest.mark.parametrize(
    ("changes", "model", "kind", "match"),
    [
        ({"signature": bytes(64)}, MODEL, IdentityError, "'submission' does not verify"),
        ({"initial_model_sha256": bytes(32)}, MODEL, IdentityError, "'submission' does not verify"),
        ({"run_id": "0" * 32}, MODEL, IdentityError, "'submission' does not verify"),
        ({"nonce": bytes(32)}, MODEL, IdentityError, "'submission' does not verify"),
        ({"expires_at": 1 << 39}, MODEL, IdentityError, "'submission' does not verify"),
        ({"run_id": "../etc"}, MODEL, SpecificationError, "32 characters of hex"),
        ({"nonce": b"x"}, MODEL, SpecificationError, "nonce of 1 bytes"),
        ({"nonce": b"", "expires_at": 0}, MODEL, SpecificationError, "submit it anew"),
        ({"terms": {"valid_s": -301}}, MODEL, ProtocolFailure, "SUBMISSION_EXPIRED"),
        ({"terms": {"valid_s": MAX_VALID_S + 400}}, MODEL, SpecificationError, "at most 90 days"),
        ({"initial_model_sha256": b"short"}, MODEL, SpecificationError, "SHA-256"),
        ({"specification": b"{}"}, MODEL, SpecificationError, "version"),
        ({}, MODEL[:-1] + b"!", SpecificationError, "was signed"),
        ({}, MODEL[:-1], TransportError, f"{len(MODEL) - 1} of {len(MODEL)} announced"),
        ({}, MODEL + b"!", TransportError, "as announced"),
        ({"initial_model_bytes": len(MODEL) + 1}, MODEL, TransportError, "at most"),
    ],
)
def test_a_tampered_submission_is_refused(federation, administrator, changes, model, kind, match):
    with federation.client(administrator) as client, pytest.raises(kind, match=match):
        client.submit_signed(header(administrator, **changes), model)
    assert federation.book.submitted == []


def test_a_specification_that_changed_after_signing_is_refused(federation, administrator):
    changed = SPECIFICATION.canonical_bytes().replace(b'"rounds":3', b'"rounds":9')
    tampered = header(administrator)
    tampered.specification = changed
    with federation.client(administrator) as client, pytest.raises(IdentityError, match="'submission'"):
        client.submit_signed(tampered, MODEL)


def test_chunks_without_a_header_or_too_large_are_refused(federation, administrator):
    big = pb.SubmitRunRequest(chunk=bytes(2 * CHUNK_BYTES))
    with federation.client(administrator) as client:
        for parts, match in [
            ([pb.SubmitRunRequest(chunk=b"x")], "header"),
            ([], "header"),
            ([pb.SubmitRunRequest(header=header(administrator)), big], "too large"),
            ([pb.SubmitRunRequest(header=header(administrator))] * 2, "as announced"),
            ([pb.SubmitRunRequest(header=header(administrator)), pb.SubmitRunRequest(chunk=b"")], "as announced"),
        ]:
            with pytest.raises(TransportError, match=match):
                client._call(client._stub.SubmitRun, iter(parts))
    assert federation.book.submitted == []


def test_runs_are_listed_stopped_and_exported(federation, administrator):
    with federation.client(administrator) as client:
        (run,) = client.runs()
        assert (run.run_id, run.status, run.rounds, run.detail) == (RUN_ID, "running", 3, "über alles")
        client.stop(RUN_ID, administrator.identity)
        assert federation.book.stopped == [(RUN_ID, "admin", sign_stop(administrator.identity, RUN_ID))]
        manifest, model = client.export(RUN_ID, 2)
        assert (manifest["run_id"], manifest["round"], model) == (RUN_ID, 2, MODEL)
        assert client.export(RUN_ID)[0]["round"] == 3
        for unknown, kind in (("ab" * 16, StateError), ("../etc", TransportError)):
            with pytest.raises(kind, match="run list"):
                client.export(unknown)
            with pytest.raises(kind, match="run list"):
                client.stop(unknown, administrator.identity)
            with pytest.raises(kind, match="run list"):
                list(client.watch(unknown))


def test_events_arrive_while_they_happen_and_end_with_the_run(federation, administrator):
    book = federation.book
    book.add("run_started", {"name": "ü"})
    with federation.client(administrator) as client:
        watched = client.watch(RUN_ID)
        first = next(watched)
        assert (first.sequence, first.kind, first.data.decode()) == (1, "run_started", '{"name":"ü"}')
        book.add("round_started", {})
        assert next(watched).kind == "round_started"
        book.add("run_failed", {})
        assert [event.kind for event in watched] == ["run_failed"]
        book.status = "failed"
        assert list(client.watch(RUN_ID, after=3)) == []


def test_what_nodes_say_of_their_work_comes_in_between_and_is_not_counted(federation, administrator):
    book = federation.book
    book.add("run_started", {})
    book.said.append({"node": "a", "phase": "training", "step": 1, "steps": 9, "seconds_left": 5})
    with federation.client(administrator) as client:
        watched = client.watch(RUN_ID)
        next(watched)
        said = next(watched)
        assert (said.sequence, said.kind) == (1, "progress")
        assert said.data.decode() == '{"node":"a","phase":"training","seconds_left":5,"step":1,"steps":9}'
        book.add("run_finished", {})
        assert [(event.sequence, event.kind) for event in watched] == [(2, "run_finished")]


def test_a_watcher_whose_membership_ends_is_cut_off(federation, administrator):
    federation.book.add("run_started", {})
    with federation.client(administrator) as client:
        watched = client.watch(RUN_ID)
        next(watched)
        federation.consortium.revoke("admin")
        federation.coordinator.roster.accept(federation.consortium.roster.signed)
        federation.book.add("round_started", {})
        with pytest.raises(ProtocolFailure, match="REVOKED"):
            list(watched)


def test_a_watcher_that_leaves_frees_its_place(federation, administrator):
    federation.book.add("run_started", {})
    with federation.client(administrator) as client:
        for _ in range(60):  # more than the watchers that are let in at once
            watched = client.watch(RUN_ID)
            for _attempt in range(200):
                try:
                    next(watched)
                    break
                except StateError:
                    time.sleep(0.02)
                    watched = client.watch(RUN_ID)
            else:
                pytest.fail("no place was freed")
            watched.close()


# --- receipts, errors, proxies ---------------------------------------------------------------------------------------


def test_receipts_are_kept_once_and_survive_a_restart(federation, node, tmp_path):
    with federation.client(node) as client:
        for _ in range(2):
            client.put_receipt(RUN_ID, b'{"spent":1}', node.identity)
        (kept,) = federation.server.receipts.of_run(RUN_ID)
        assert (kept["node"], kept["receipt"]) == ("hospital-a", {"spent": 1})
        for receipt, identity, kind, match in [
            (b'{"spent":2}', federation.consortium.root, IdentityError, "'receipt' does not verify"),
            (b'{"spent": 1}', node.identity, LedgerError, "canonical"),
            (b"\xff", node.identity, LedgerError, "not JSON"),
            (b"[]", node.identity, LedgerError, "object"),
            (b'{"run_id":"other"}', node.identity, LedgerError, "for run"),
            (b'"' + b"x" * MAX_RECEIPT_BYTES + b'"', node.identity, LedgerError, "at most"),
        ]:
            with pytest.raises(kind, match=match):
                client.put_receipt(RUN_ID, receipt, identity)
    federation.server.stop()
    again = ControlServer(
        member=federation.coordinator, run_service=federation.book, folder=tmp_path / "state", address="127.0.0.1:0"
    )
    assert len(again.receipts.of_run(RUN_ID)) == 1
    again.stop()


def test_a_fault_of_the_coordinator_tells_the_caller_nothing_of_its_inside(federation, administrator, caplog):
    federation.book.stop = lambda run_id, name, signature: 1 / 0
    with federation.client(administrator) as client, pytest.raises(StateError) as failure:
        client.stop(RUN_ID, administrator.identity)
    assert "division" not in str(failure.value) and "its log says why" in str(failure.value)
    assert "division" in caplog.text


def test_an_outbound_proxy_is_used_and_sees_no_plaintext(federation, node):
    seen, listener = [], socket.create_server(("127.0.0.1", 0))

    def forward(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def proxy():
        inside, _ = listener.accept()
        request = inside.recv(65536)
        seen.append(request)
        host, port = request.split()[1].decode().split(":")
        outside = socket.create_connection((host, int(port)))
        inside.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=forward, args=(inside, outside), daemon=True).start()
        forward(outside, inside)
        inside.close()
        outside.close()

    thread = threading.Thread(target=proxy, daemon=True)
    thread.start()
    with federation.raw(node, proxy=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        client.get_roster()
    thread.join(timeout=10)
    listener.close()
    assert seen[0].startswith(f"CONNECT {federation.address}".encode())
    assert b"hospital-a" not in b"".join(seen)
