"""What is told, when, over which channel, and that it is told once."""

import email
import email.policy
import itertools
import json
import re
from pathlib import Path

import pytest
from confide.errors import StateError, TransportError
from confide.proto import admin_pb2 as pb
from confide_server.alerts import needs
from confide_server.alerts.mail import MailChannel
from confide_server.alerts.message import TEXTS, Message, line_of
from confide_server.alerts.service import AlertService, try_channels
from confide_server.alerts.settings import Alerts, Kind, Mail, Quiet, Webhook
from confide_server.alerts.webhook import WebhookChannel
from confide_server.coordinator.process import Settings, changed

from tests.alert_world import certificate, mail_server, receiver, secret_file

START = 1_800_000_000.0  # 08:00 UTC
NAMES = ("example", "coordinator")
HOUR_S = 3600.0


class Way:
    """Keeps what is sent; fails while told to."""

    def __init__(self, name="memory"):
        self.name, self.sent, self.failing = name, [], False

    def send(self, message):
        if self.failing:
            raise TransportError("nobody listens")
        self.sent.append(message)

    @property
    def words(self):
        """Of each message: what is new, what is solved."""
        return [([one.kind for one in sent.needs], [one.kind for one in sent.solved]) for sent in self.sent]


class Stage:
    """A service whose clock and sight a test sets."""

    def __init__(self, folder, ways=None, **settings):
        self.now, self.seen, self.noted = START, needs.Seen(), []
        self.ways = [Way()] if ways is None else ways
        self.folder, self.settings = folder, Alerts(**settings)
        self.begin()

    def begin(self):
        """As after a restart."""
        self.service = AlertService(
            self.settings, self.folder / "alerts.json", look=lambda: self.seen, note=self.noted.append, names=NAMES,
            ways=self.ways, clock=lambda: self.now,
        )  # fmt: skip

    def after(self, seconds, **seen):
        """Look again later, at this."""
        self.now += seconds
        if seen:
            self.seen = needs.Seen(**seen)
        self.service.turn()
        return self.ways[0].words

    def troubled(self):
        return {"status": pb.ServerStatus(trouble="Anna's record 17 does not fit")}


def away(*names):
    return {"members": [pb.MemberLine(name=name, role="node", state="offline") for name in names]}


def test_a_matter_is_told_once_again_after_a_day_and_when_it_is_solved(tmp_path):
    stage = Stage(tmp_path)
    assert stage.after(0, **away("bank-b")) == [], "it may be gone in a moment"
    assert stage.after(61) == [(["away"], [])]
    for _ in range(20):
        stage.after(600)
    assert len(stage.ways[0].sent) == 1
    assert stage.after(24 * HOUR_S)[1:] == [(["away"], [])]
    stage.after(10, **away())
    assert stage.after(61)[2:] == [([], ["away"])]
    assert stage.after(HOUR_S)[3:] == []
    stage.after(0, **away("bank-b"))
    assert stage.after(61)[3:] == [(["away"], [])]


def test_what_comes_and_goes_within_a_minute_is_not_told(tmp_path):
    stage = Stage(tmp_path)
    for _ in range(10):
        stage.after(50, **away("bank-b"))
        stage.after(50, **away())
    assert stage.after(0) == []
    stage.after(0, **away("bank-b"))
    stage.after(61)
    stage.after(30, **away())
    assert stage.after(30, **away("bank-b")) == [(["away"], [])], "it was not gone long enough to be solved"


def test_a_matter_that_becomes_urgent_is_told_again(tmp_path):
    def disk(free):
        return {"status": pb.ServerStatus(disks=[pb.DiskStatus(what="state", free_bytes=free, total_bytes=100)])}

    stage = Stage(tmp_path)
    stage.after(0, **disk(9))
    stage.after(61)
    stage.after(61, **disk(8))
    assert [one.needs[0].level for one in stage.ways[0].sent] == ["warn"], "another share is the same matter"
    stage.after(61, **disk(1))
    assert [one.needs[0].level for one in stage.ways[0].sent] == ["warn", "bad"]


def test_quiet_hours_let_only_the_urgent_through(tmp_path):
    quiet = Quiet(begins="09:30", ends="07:00", zone="Europe/Berlin")  # from 08:30 UTC in January
    stage = Stage(tmp_path, quiet=quiet)
    stage.after(HOUR_S, **away("bank-b"))
    assert stage.after(61) == []
    stage.after(0, **away("bank-b"), **stage.troubled())
    assert stage.after(61) == [(["trouble"], [])]
    stage.after(0, **away("bank-b"))
    assert stage.after(HOUR_S)[1:] == [], "nobody is woken for what is solved"
    assert stage.after(24 * HOUR_S - 3 * HOUR_S - 122)[1:] == [(["away"], ["trouble"])]
    silent = Stage(tmp_path / "silent", quiet=Quiet(begins="00:00", ends="23:59", urgent=False))
    silent.after(0, **stage.troubled())
    assert silent.after(61) == []


def test_a_restart_tells_nothing_twice(tmp_path):
    stage = Stage(tmp_path)
    stage.after(0, **away("bank-b"))
    stage.after(61)
    stage.begin()
    stage.after(0)
    assert len(stage.after(HOUR_S)) == 1
    stage.begin()
    stage.after(0, **away())
    assert stage.after(61)[1:] == [([], ["away"])], "what was solved meanwhile is told"
    assert (tmp_path / "alerts.json").stat().st_mode & 0o077 == 0
    (tmp_path / "alerts.json").write_text("damaged")
    stage.begin()
    stage.after(0, **away("bank-b"))
    assert len(stage.after(61)) == 3


def test_each_channel_goes_its_own_way_and_a_failure_is_noted_and_tried_again_later_each_time(tmp_path):
    broken, well = Way("webhook"), Way("mail")
    broken.failing = True
    stage = Stage(tmp_path, ways=[well, broken])
    stage.after(0, **stage.troubled())
    assert len(stage.after(61)) == 1
    tried = []
    for _ in range(4000):
        before = len(stage.noted)
        stage.after(10)
        tried += [stage.now] * (len(stage.noted) - before)
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(tried)]
    assert waits[:6] == [20, 40, 80, 160, 320, 640] and max(waits) == 3600
    failed = [one for one in stage.noted if one["event"] == "alert_failed"]
    assert failed[0] == {"event": "alert_failed", "channel": "webhook", "failures": 1, "why": "nobody listens"}
    assert len(well.sent) == 1, "one channel's failure repeats nothing on another"
    broken.failing = False
    stage.after(HOUR_S, **away("bank-b"))
    stage.after(61)
    assert "trouble" not in broken.words[0][0], "what is sent late is what needs somebody then"
    assert stage.noted[-1]["event"] == "alert_sent"


def test_only_the_chosen_kinds_are_told(tmp_path):
    stage = Stage(tmp_path, kinds=("trouble",))
    stage.after(0, **away("bank-b"), **stage.troubled())
    assert stage.after(61) == [(["trouble"], [])]


def test_every_need_is_a_kind_and_has_words():
    keys = {key.removeprefix("needs.") for key in TEXTS.keys if key.startswith("needs.")}
    assert keys == set(Kind.__args__)
    assert {key.removeprefix("bare.") for key in TEXTS.keys if key.startswith("bare.")} <= keys
    bare = {key for key in TEXTS.keys if key.startswith("needs.") and "{why}" in str(TEXTS._texts[key])}
    assert {key.replace("needs.", "bare.") for key in bare} <= TEXTS.keys, "a reason is in no alert"


@pytest.mark.parametrize(
    ("spent", "round", "level"), [(1, 1, None), (2, 1, "warn"), (5, 2, "bad"), (5, 5, None)]
)  # of 5 slots and 5 rounds
def test_a_budget_that_ends_before_the_run_does_is_told(spent, round, level):
    run = pb.RunLine(run_id="a" * 32, name="support", status="running", round=round, rounds=5)
    line = pb.PrivacyLine(organization="bank-b", group="notes", run_id="a" * 32, spent_slots=spent, approved_slots=5)
    found = needs.needs(needs.Seen(live=[run], spent=[line]), now=START)
    assert [need.level for need in found] == ([level] if level else [])
    if level == "bad":
        assert line_of(found[0], "").words == (
            "bank-b has 0 slots left for support (notes): the run would stop at round 2."
        )


def message(**changes):
    stage_lines = [line_of(need, "https://c.example") for need in needs.needs(needs.Seen(
        status=pb.ServerStatus(trouble="Anna's record 17"), **away("bank-b")), now=START)]  # fmt: skip
    given = {"consortium": "example", "coordinator": "coordinator", "sent_at": START, "needs": stage_lines}
    return Message(**given | changes)


def test_the_webhook_gets_a_signed_document(tmp_path):
    with receiver() as there:
        WebhookChannel(Webhook(address=there.address, secret_file=str(secret_file(tmp_path)))).send(message())
    ((path, headers, _),) = there.posts
    assert path == "/hook?to=us" and headers["Content-Type"] == "application/json"
    (document,) = there.documents
    assert document["consortium"] == "example" and document["format"] == 1 and not document["trial"]
    assert document["needs"][0] == {
        "kind": "trouble", "level": "bad", "words": "No run is driven.", "address": "https://c.example/audit",
    }  # fmt: skip


def test_the_mail_is_text_with_a_subject_and_the_pages(tmp_path):
    authority, key = certificate(tmp_path)
    password = secret_file(tmp_path, b"mail password")
    with mail_server((authority, key)) as there:
        settings = Mail(host="localhost", port=there.port, sender="confide@example.org", user="confide",
                        recipients=("a@example.org", "b@example.org"), password_file=str(password),
                        authority=str(authority))  # fmt: skip
        MailChannel(settings).send(message())
    (raw,) = there.mails
    mail = email.message_from_string(raw, policy=email.policy.default)
    assert mail["subject"] == "[Confide example] 2 things need you" and mail["auto-submitted"] == "auto-generated"
    text = mail.get_content().replace("\r", "")
    assert re.search(r"broken:\n- No run is driven\. https://c\.example/audit\n\nAlso:\n- bank-b is away\.", text)
    assert there.logins, "it signed in, after STARTTLS"
    assert there.commands.index("STARTTLS") < [line[:4] for line in there.commands].index("AUTH")


def test_a_mail_server_that_refuses_is_a_failure_by_its_number(tmp_path):
    with mail_server() as there:
        there.refuse = "550 no such mailbox: secret-of-the-server"
        settings = Mail(host="127.0.0.1", port=there.port, security="none", sender="c@example.org",
                        recipients=("a@example.org",))  # fmt: skip
        with pytest.raises(TransportError) as raised:
            MailChannel(settings).send(message())
        assert "secret-of-the-server" not in str(raised.value)
    with pytest.raises(TransportError, match="cannot be used: ConnectionRefusedError"):
        MailChannel(settings).send(message())


def test_a_trial_goes_over_every_channel(tmp_path):
    with receiver() as there, mail_server() as post:
        mail = Mail(host="127.0.0.1", port=post.port, security="none", sender="c@example.org",
                    recipients=("a@example.org",))  # fmt: skip
        hook = Webhook(address=there.address, secret_file=str(secret_file(tmp_path)))
        assert try_channels(Alerts(webhook=hook, mail=mail), NAMES) == {"webhook": "", "mail": ""}
        assert there.documents[0]["trial"] and "This is a trial" in post.mails[0]
        there.status = 503
        assert "answered 503" in try_channels(Alerts(webhook=hook), NAMES)["webhook"]
    with pytest.raises(StateError, match="no channel"):
        try_channels(Alerts(), NAMES)


def test_the_documented_settings_are_settings():
    page = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()
    written = json.loads("{" + re.search(r"```\n(\"alerts\": {.*?\n})\n```", page, re.S).group(1) + "}")
    found = changed(Settings(), written).alerts
    assert found.webhook and found.mail and found.quiet.zone == "Europe/Berlin"
    named = re.search(r"\| `kinds` \|.*?\|(.*?)\|\n", page).group(1)
    assert set(re.findall(r"`([a-z_]+)`", named)) == set(Kind.__args__)


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("webhook", {"address": "http://hooks.example.org/", "secret_file": "s"}, "https://HOST"),
        ("webhook", {"address": "https://user:word@hooks.example.org/", "secret_file": "s"}, "without user"),
        ("webhook", {"address": "file:///etc/passwd", "secret_file": "s"}, "https://HOST"),
        ("webhook", {"address": "https://a.example/\r\nx: y", "secret_file": "s"}, "printable"),
        ("mail", {"host": "m.example", "sender": "c@x.org", "recipients": ["a@x.org"], "security": "none"}, "open"),
        ("mail", {"host": "m.example", "sender": "c@x.org", "recipients": ["a@x.org\nBcc: b@x.org"]}, "name@example"),
        ("mail", {"host": "m.example", "sender": "c@x.org", "recipients": ["a@x.org"], "user": "c"}, "together"),
        ("mail", {"host": "m.example", "sender": "c@x.org", "recipients": []}, "at least 1"),
        ("quiet", {"begins": "25:00", "ends": "07:00"}, "22:00"),
        ("quiet", {"begins": "22:00", "ends": "07:00", "zone": "Mars/Base"}, "no such time zone"),
        ("kinds", ["everything"], "Input should be"),
        ("fax", {}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(section, value, words):
    with pytest.raises(StateError, match=words):
        changed(Settings(), {"alerts": {section: value}})
