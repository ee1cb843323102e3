"""Runs, receipts and faults over real gRPC and mTLS: what crosses unharmed, and what is refused by name."""

import contextlib
import secrets
import socket
import threading

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
from confide.proto import admin_pb2 as pb
from confide.runs.specification import EXAMPLE, parse_toml
from confide_server.api.grpc.incoming_model import CHUNK_BYTES
from confide_server.api.grpc.server import ControlServer
from confide_server.state.receipts import MAX_RECEIPT_BYTES

from tests.control_federation import MODEL, RUN_ID, running_federation

SPECIFICATION = parse_toml(EXAMPLE)


@pytest.fixture
def federation(tmp_path, monkeypatch):
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
        run_id = client.submit_run(SPECIFICATION, MODEL, administrator.identity)
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


def test_a_submission_whose_answer_was_lost_is_made_once(federation, administrator):
    said, key = header(administrator), secrets.token_hex(16)
    with federation.client(administrator) as client:
        for _ in range(2):
            assert client.submit_signed(said, MODEL, key=key).run_id == said.run_id
        with pytest.raises(StateError, match="served another request"):
            client.submit_signed(header(administrator), MODEL, key=key)
        with pytest.raises(TransportError, match="as announced"):
            client.submit_signed(header(administrator), MODEL + b"!", key=(again := secrets.token_hex(16)))
        client.submit_signed(header(administrator), MODEL, key=again)  # what failed may be done under its key
    assert len(federation.book.submitted) == 2


def test_what_an_administrator_signed_may_be_handed_over_by_another(federation, administrator):
    second = federation.admit("admin-2", "administrator")
    with federation.client(second) as client:
        with pytest.raises(IdentityError, match="'submission' does not verify"):
            client.submit_signed(header(administrator), MODEL)
        client.submit_signed(header(administrator, administrator="admin"), MODEL)
    (submission,) = federation.book.submitted
    assert submission.signed.administrator == "admin"


def test_a_specification_that_changed_after_signing_is_refused(federation, administrator):
    changed = SPECIFICATION.canonical_bytes().replace(b'"rounds":3', b'"rounds":9')
    tampered = header(administrator)
    tampered.specification = changed
    with federation.client(administrator) as client, pytest.raises(IdentityError, match="'submission'"):
        client.submit_signed(tampered, MODEL)


def test_chunks_without_a_header_or_too_large_are_refused(federation, administrator):
    def begun():
        return pb.SubmitRunRequest(header=header(administrator), idempotency_key=secrets.token_hex(16))

    big = pb.SubmitRunRequest(chunk=bytes(2 * CHUNK_BYTES))
    with federation.client(administrator) as client:
        for parts, match in [
            ([pb.SubmitRunRequest(chunk=b"x", idempotency_key="k" * 16)], "header"),
            ([], "header"),
            ([pb.SubmitRunRequest(header=header(administrator))], "idempotency key"),
            ([begun(), big], "too large"),
            ([begun()] * 2, "as announced"),
            ([begun(), pb.SubmitRunRequest(chunk=b"")], "as announced"),
        ]:
            with pytest.raises(TransportError, match=match):
                client._ask(client._admin.SubmitRun, iter(parts), pb.RunChanged)
    assert federation.book.submitted == []


def test_runs_are_listed_stopped_and_exported(federation, administrator):
    with federation.client(administrator) as client:
        (run,) = client.list_runs().runs
        assert (run.run_id, run.status, run.rounds, run.detail) == (RUN_ID, "running", 3, "über alles")
        client.order_stop(RUN_ID, administrator.identity)
        assert federation.book.stopped == [(RUN_ID, "admin", sign_stop(administrator.identity, RUN_ID))]
        manifest, model = client.export_run(RUN_ID, 2)
        assert (manifest["run_id"], manifest["round"], model) == (RUN_ID, 2, MODEL)
        assert client.export_run(RUN_ID)[0]["round"] == 3
        for unknown, kind in (("ab" * 16, StateError), ("../etc", TransportError)):
            with pytest.raises(kind, match="run list"):
                client.export_run(unknown)


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
    again = ControlServer(member=federation.coordinator, folder=tmp_path / "state", address="127.0.0.1:0")
    assert len(again.receipts.of_run(RUN_ID)) == 1
    again.stop()


def test_a_fault_of_the_coordinator_tells_the_caller_nothing_of_its_inside(federation, administrator, caplog):
    federation.book.stop = lambda run_id, name, signature: 1 / 0
    with federation.client(administrator) as client, pytest.raises(StateError) as failure:
        client.order_stop(RUN_ID, administrator.identity)
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
