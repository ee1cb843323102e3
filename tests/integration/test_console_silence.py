"""A real coordinator is killed: the console tells by webhook and mail, once, and says when it is back."""

import contextlib
import signal
import threading
import time

import pytest
from confide.errors import IdentityError
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.roster import Role
from confide_server.alerts.settings import Alerts, Mail, Quiet, Webhook
from confide_server.alerts.webhook import signature
from confide_server.console import command
from confide_server.console.federation.connection import Connection
from confide_server.console.federation.silence import Silence, alerting
from confide_server.console.settings import Settings, read_settings, write_settings
from confide_server.coordinator import process
from typer.testing import CliRunner

from tests.alert_world import SECRET, mail_server, receiver, secret_file
from tests.console_world import MemoryCoordinator
from tests.coordinator_world import World


@pytest.fixture
def world(tmp_path):
    made = World.create(tmp_path, nodes=2)
    yield made
    made.end_processes()


def console_member(world):
    folder = world.of("console")
    admission = world.consortium.admit(make_request(folder, "console", Role.CONSOLE))
    world.publish()
    return accept_admission(folder, admission, time.time())


def ways(folder, hook, post, **settings):
    mail = Mail(host="127.0.0.1", port=post.port, security="none", sender="confide@example.org",
                recipients=("oncall@example.org",))  # fmt: skip
    webhook = Webhook(address=hook.address, secret_file=str(secret_file(folder)))
    return Alerts(**{"webhook": webhook, "mail": mail, "settle_s": 0.0} | settings)


def test_a_coordinator_that_is_killed_is_told_once_and_so_is_its_return(world, tmp_path):
    member = console_member(world)
    world.start_server()
    port = world.addresses()["control_port"]
    with receiver() as hook, mail_server() as post, contextlib.ExitStack() as opened:
        settings = ways(tmp_path, hook, post, console="https://console.example")
        connection = opened.enter_context(contextlib.closing(Connection(member, f"127.0.0.1:{port}")))
        service = alerting(member.folder, settings, connection, member)
        service.turn()
        assert not hook.posts and not post.mails, "it answers"
        world.processes[-1].send_signal(signal.SIGKILL)
        world.processes[-1].wait()
        for _ in range(3):
            service.turn()
        restarted = alerting(member.folder, settings, connection, member)
        restarted.turn()
        ((_, headers, body),) = hook.posts
        document = hook.documents[0]
        assert headers["Confide-Signature"] == signature(SECRET, document["sent_at"], body)
        assert (document["by"], document["coordinator"], document["consortium"]) == (
            "console", "coordinator", "example",
        )  # fmt: skip
        (need,) = document["needs"]
        assert (need["kind"], need["level"], need["address"]) == ("silent", "bad", "https://console.example/")
        assert (
            need["words"].startswith("The coordinator has not answered since 20")
            and "as console saw it" in post.mails[0]
        )
        process.write_settings(world.server, process.Settings(bind="127.0.0.1", fleet_port=0, control_port=port))
        world.start_server()
        restarted.turn()
        restarted.turn()
        assert len(hook.posts) == 2 and len(post.mails) == 2
        (solved,) = hook.documents[1]["solved"]
        assert not hook.documents[1]["needs"] and solved["words"].startswith("The coordinator answers again.")
        assert "The coordinator answers again." in post.mails[1]


def test_a_silence_that_is_short_or_falls_into_quiet_hours_wakes_nobody(world, tmp_path):
    member, coordinator = console_member(world), MemoryCoordinator(silent=True)
    begins, ends = (time.strftime("%H:%M", time.gmtime(time.time() + hours * 3600)) for hours in (-6, 6))
    night = Quiet(begins=begins, ends=ends, urgent=False)
    with receiver() as hook, mail_server() as post:
        for settings in (ways(tmp_path, hook, post, settle_s=3600.0), ways(tmp_path, hook, post, quiet=night)):
            service = alerting(member.folder, settings, coordinator, member)
            service.turn()
            service.turn()
        assert hook.posts == [] and post.mails == []


def test_a_refusal_is_an_answer():
    coordinator, now = MemoryCoordinator(silent=True), [100.0]
    silence = Silence(coordinator, lambda: now[0])
    assert silence.look().silent_since == 100.0
    now[0] = 160.0
    assert silence.look().silent_since == 100.0, "since when, not when it was asked last"

    def refuse(*_):
        raise IdentityError("this console was revoked")

    coordinator.silent, coordinator.ask = False, refuse
    assert silence.look().silent_since == 0.0


def test_the_command_watches_while_it_serves_and_tries_its_channels(world, tmp_path, monkeypatch):
    import confide_server.bounded_http

    member, watching = console_member(world), []

    class Served:
        def __init__(self, config, quota):
            pass

        def run(self, sockets):
            watching.extend(thread for thread in threading.enumerate() if thread.name == "alerts")

    monkeypatch.setattr(confide_server.bounded_http, "BoundedServer", Served)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    with receiver() as hook, mail_server() as post:
        settings = Settings(port=0, coordinator="127.0.0.1:9", alerts=ways(tmp_path, hook, post, settle_s=3600.0))
        write_settings(member.folder, settings)
        assert read_settings(member.folder) == settings
        command.serve(member.folder, settings)
        assert len(watching) == 1 and not watching[0].is_alive(), "it ends with the console"
        tried = CliRunner().invoke(command.app, ["try-alerts", str(member.folder)])
        assert tried.exit_code == 0 and tried.output == "webhook: sent\nmail: sent\n"
        assert hook.documents[0]["trial"] and hook.documents[0]["by"] == "console"
