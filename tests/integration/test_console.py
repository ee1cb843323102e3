"""The console over a coordinator's real control port, with the console's own certificate."""

import re
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import httpx
import pyotp
import pytest
from confide_server.console.federation.connection import Connection
from confide_server.console.roles import RULES, Role
from confide_server.console.settings import Settings
from confide_server.console.web.app import Console
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi.routing import APIRoute

from tests.admin_world import running_world
from tests.console_world import PASSWORD, person, standing


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_world(tmp_path_factory.mktemp("world")) as made:
        made.run_id = made.finished("finished")
        made.waiting = made.submit("waits")
        for node in ("hospital-a", "hospital-b"):
            made.receipt(made.run_id, node, slot=1, spent=1)
        yield made


@pytest.fixture(scope="module")
def console(world, tmp_path_factory):
    connection = Connection(world.members["console"], world.address)
    folder = tmp_path_factory.mktemp("console")
    made = standing(Console(folder, Settings(), connection, issuer="Confide", port=9444))
    yield made
    made.close()
    connection.close()


@pytest.fixture(scope="module")
def people(console):
    return {role: person(console, role, "hospital-a" if role is Role.ORGANIZATION else "") for role in Role}


PAGES = {
    "overview": "/", "runs": "/runs", "run": "/runs/{}", "run_series": "/runs/{}/series", "compare": "/compare?run={}",
    "run_live": "/runs/{}/live", "run_csv": "/runs/{}/rounds.csv", "run_toml": "/runs/{}/specification.toml",
    "members": "/members", "privacy": "/privacy", "models": "/models", "audit": "/audit",
    "audit_export": "/audit/export", "api_runs": "/api/v1/runs", "api_run": "/api/v1/runs/{}",
    "api_members": "/api/v1/members", "api_privacy": "/api/v1/privacy", "api_models": "/api/v1/models",
    "specification": "/specification", "roster_file": "/members/rosters/0.json",
    "privacy_series": "/privacy/series?organization=hospital-b",
}  # fmt: skip
LIES = ("/privacy?organization=hospital-b&run={}", "/runs?organization=hospital-b", "/runs?q=", "/runs/{}?plan=1",
        "/compare?run={}&run={}")  # fmt: skip
ELSEWHERE = frozenset({"live", "account", "knowledge", "knowledge_collection"})
"""Pages of an organization whose guard is tried in tests of their own; `account` asks nobody."""


@pytest.mark.parametrize("role", Role)
def test_what_the_console_lets_through_the_coordinator_lets_through_too(world, people, role):
    for name, address in PAGES.items():
        answer = people[role].get(address.format(world.run_id))
        assert answer.status_code == (200 if RULES[name].allows(role) else 403), (name, answer.text[-300:])


def test_a_run_is_shown_with_who_dropped_and_why(world, people):
    text = people[Role.AUDITOR].get(f"/runs/{world.run_id}").text
    assert "Finished 2 rounds; 1 of them lack an organization." in text
    assert "TransportError: no answer" in text and "hospital-b" in text
    assert "round 2 committed, 1 contributed" in text
    assert "In round 2 it held" in text and "nothing is hidden" in text


def test_every_page_that_an_organization_may_open_is_tried_here(console):
    found, look = {}, [console.inner_app()]
    while look:
        one = look.pop()
        look += getattr(one, "routes", None) or getattr(getattr(one, "original_router", None), "routes", [])
        if isinstance(one, APIRoute) and "GET" in one.methods:
            found[one.name] = one.path
    theirs = {name for name in found if RULES[name].allows(Role.ORGANIZATION) and not RULES[name].public}
    assert theirs <= set(PAGES) | ELSEWHERE


def test_an_organization_sees_no_other_one(world, people):
    assert "hospital-b" in people[Role.AUDITOR].get(f"/privacy?run={world.run_id}").text, "there is something to see"
    for address in (*PAGES.values(), *LIES):
        answer = people[Role.ORGANIZATION].get(address.format(world.run_id, world.waiting))
        assert answer.status_code in {403, 404} or not re.search("hospital-[bc]", answer.text), address
    stranger = people[Role.ORGANIZATION].get(f"/runs/{world.waiting}")
    assert stranger.status_code in {403, 404}, "a run of others"


def test_an_act_is_in_the_audit_log_under_the_persons_name(world, people):
    page = f"/runs/{world.waiting}"
    answer = people[Role.OPERATOR].submit(f"{page}/pause", page=page, reason="a holiday")
    assert "Paused by operator-x@console" in answer.text
    assert "operator-x@console" in people[Role.AUDITOR].get("/audit").text
    people[Role.OPERATOR].submit(f"{page}/resume", page=page)
    assert "Paused by" not in people[Role.OPERATOR].get(page).text


def test_a_release_is_prepared_here_and_signed_elsewhere(world, people):
    fields = {"name": "support", "run_id": world.run_id, "notes": "first"}
    text = people[Role.ADMINISTRATOR].submit("/models/releases", page="/models", **fields).text
    assert "support 1 is not released: 0 of 1 signatures." in text
    release = world.clients["administrator"].list_releases().releases[0]
    world.clients["administrator"].sign_release(release, world.members["administrator"].identity)
    time.sleep(1.1)
    answer = people[Role.ADMINISTRATOR].submit("/models/releases/support/1/publish", page="/models")
    assert "1 model is released." in answer.text


def test_a_wrong_act_says_why(world, people):
    page = f"/runs/{world.run_id}"
    answer = people[Role.OPERATOR].submit(f"{page}/pause", page=page)
    assert answer.status_code == 403 and 'class="wrong"' in answer.text


def self_signed(folder):
    """(certificate, key) for localhost, PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "crt.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "crt.pem", folder / "key.pem"


def test_the_command_serves_over_tls_and_refuses_the_open_network(world, tmp_path):
    certificate, key = self_signed(tmp_path)
    command = [sys.executable, "-m", "confide", "console", "start", str(world.folder / "console")]
    command += ["--port", "0", "--coordinator", world.address]
    opened = subprocess.run([*command, "--bind", "0.0.0.0"], capture_output=True, text=True, timeout=120, check=False)  # noqa: S104
    assert opened.returncode == 1 and "passwords would cross a network in the open" in opened.stderr
    command += ["--bind", "127.0.0.1", "--host", "localhost", "--certificate", str(certificate), "--key", str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[1]
            link = process.stdout.readline().split()[-1]
            assert address.startswith("https://localhost:") and link.startswith(address + "/welcome?link=")
            context = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(verify=context, base_url=address, timeout=60) as client:
                answer = client.get("/sign-in")
                assert answer.status_code == 200 and "max-age" in answer.headers["strict-transport-security"]
                page = client.get(link)
                seed = re.search(r'name="seed" value="([A-Z2-7]+)"', page.text).group(1)
                fields = {"link": link.partition("link=")[2], "seed": seed, "name": "anna", "password": PASSWORD}
                done = client.post("/welcome", data=fields | {"again": PASSWORD, "code": pyotp.TOTP(seed).now()})
                kept = done.headers["set-cookie"]
                assert kept.startswith("__Host-confide=") and "Secure" in kept and "HttpOnly" in kept
                assert client.get("/runs").status_code == 200
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0
