"""Somebody attacks alerts: redirects the webhook, forges its body, names things after headers, reads its secret."""

import email
import email.policy
import hmac
import re
import runpy
import time
from pathlib import Path

import pytest
from confide.errors import StateError, TransportError
from confide.proto import admin_pb2 as pb
from confide_server.alerts import needs
from confide_server.alerts.mail import MailChannel
from confide_server.alerts.message import Message, line_of
from confide_server.alerts.settings import Mail, Webhook
from confide_server.alerts.webhook import WebhookChannel
from hypothesis import given
from hypothesis import strategies as st

from tests.alert_world import SECRET, certificate, mail_server, receiver, secret_file

DOCS = Path(__file__).parents[2] / "docs" / "alerts.md"
HOSTILE = (
    "x\r\nBcc: thief@evil.example\r\n\r\nbody",
    "\r\n.\r\nMAIL FROM:<thief@evil.example>",
    "<img src=x onerror=alert(1)>",
    "\u202egnp.exe\x1b[2J\x00",
    "a" * 5000,
)


def message(name="support", reason="a reason of somebody's own"):
    seen = needs.Seen(
        status=pb.ServerStatus(trouble=reason),
        live=[pb.RunLine(run_id="a" * 32, name=name, status="waiting", waits_for=[name], waits_reason=reason)],
        ended=[pb.RunLine(run_id="b" * 32, name=name, status="failed", detail=reason, ended_at=time.time())],
        members=[pb.MemberLine(name=name, role="node", state="offline")],
    )
    lines = [line_of(need, "https://console.example") for need in needs.needs(seen, now=time.time())]
    return Message(consortium=name, coordinator=name, sent_at=time.time(), needs=lines, solved=lines[:1])


def webhook(folder, address, **more):
    return WebhookChannel(Webhook(address=address, secret_file=str(secret_file(folder)), **more))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_leads_nowhere(tmp_path, status):
    with receiver() as there, receiver() as elsewhere:
        there.status, there.location = status, elsewhere.address
        with pytest.raises(TransportError, match=f"answered {status} .redirects are not followed"):
            webhook(tmp_path, there.address).send(message())
        assert len(there.posts) == 1 and elsewhere.posts == []


def test_a_proxy_of_the_environment_is_not_used(tmp_path, monkeypatch):
    with receiver() as there, receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        webhook(tmp_path, there.address).send(message())
        assert there.posts and not proxy.posts


def documented(folder):
    """The receiver's check that docs/alerts.md shows."""
    page = folder / "receiver.py"
    page.write_text(re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S).group(1))
    return runpy.run_path(str(page))["genuine"]


def test_a_body_that_was_altered_replayed_or_made_without_the_secret_is_told_apart(tmp_path):
    genuine = documented(tmp_path)
    with receiver() as there:
        webhook(tmp_path, there.address).send(message())
    (_, headers, body), signature = there.posts[0], there.posts[0][1]["Confide-Signature"]
    assert headers and genuine(SECRET, signature, body)
    assert not genuine(SECRET, signature, body.replace(b"support", b"suppord"))
    assert not genuine(b"another secret!!", signature, body)
    at = int(signature[2:].partition(",")[0])
    moved = signature.replace(f"t={at}", f"t={at + 1}")
    assert not genuine(SECRET, moved, body), "a signature of one moment is none of another"
    old = hmac.new(SECRET, f"{at - 600}.".encode() + body, "sha256").hexdigest()
    assert not genuine(SECRET, f"t={at - 600},v1={old}", body), "what is older than five minutes is a replay"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_secret_that_others_can_read_is_not_used(tmp_path, mode):
    path = secret_file(tmp_path, mode=mode)
    with receiver() as there:
        with pytest.raises(StateError, match="chmod 600") as raised:
            WebhookChannel(Webhook(address=there.address, secret_file=str(path))).send(message())
        assert there.posts == [] and SECRET.decode() not in str(raised.value)


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 1025])
def test_a_secret_that_is_too_short_or_too_long_is_refused(tmp_path, secret):
    secret_file(tmp_path, secret)
    with receiver() as there, pytest.raises(StateError, match="16 to 1024"):
        WebhookChannel(Webhook(address=there.address, secret_file=str(tmp_path / "secret"))).send(message())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_cannot_become_a_header_a_command_or_a_second_mail(tmp_path, name):
    with mail_server() as there:
        settings = Mail(host="127.0.0.1", port=there.port, security="none", sender="confide@example.org",
                        recipients=("oncall@example.org",))  # fmt: skip
        MailChannel(settings).send(message(name=name))
    (raw,) = there.mails
    mail = email.message_from_string(raw, policy=email.policy.default)
    assert {key.lower() for key in mail} == {
        "subject", "from", "to", "date", "message-id", "auto-submitted", "content-type", "content-transfer-encoding",
        "mime-version",
    }  # fmt: skip
    assert not [line for line in there.commands if "evil.example" in line]
    assert mail["to"] == "oncall@example.org" and mail.get_content_type() == "text/plain"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", mail.get_content().replace("\r", ""))


@given(name=st.text(max_size=200), reason=st.text(min_size=12, max_size=200))
def test_no_reason_is_in_an_alert_and_every_line_is_one(name, reason):
    made = message(name="support", reason=f"R{reason}R")
    assert f"R{reason}R" not in made.text() and f"R{reason}R" not in str(made.document())
    for line in message(name=name).needs:
        assert "\n" not in line.words and "\r" not in line.words and len(line.words) < 1000
    assert "\n" not in message(name=name).subject()


def test_a_mail_server_without_tls_or_with_anybodys_certificate_gets_nothing(tmp_path):
    password = secret_file(tmp_path, b"mail password")
    authority, key = certificate(tmp_path)
    others, _ = certificate(tmp_path, "other.example")
    for served, trusted in ((None, authority), ((authority, key), others)):
        with mail_server(served) as there:
            settings = Mail(host="localhost", port=there.port, sender="c@example.org", recipients=("a@example.org",),
                            user="confide", password_file=str(password), authority=str(trusted))  # fmt: skip
            with pytest.raises(TransportError):
                MailChannel(settings).send(message())
            assert there.mails == [] and there.logins == []
