"""A coordinator that tells of a failed run by webhook and mail, and notes in its audit log that it did."""

import json
import time

import numpy as np
from confide_server.admin_cli import server
from confide_server.alerts.settings import Alerts, Mail, Webhook
from confide_server.coordinator.process import Coordinator, Settings, read_settings, write_settings
from confide_server.state.events import RunFailed
from confide_server.state.runs.status import RunStatus
from typer.testing import CliRunner

from tests.alert_world import SECRET, mail_server, receiver, secret_file
from tests.coordinator_world import World, specification
from tests.waiting import until

REASON = "Anna's record 17 does not fit"


def test_a_failed_run_is_told_and_noted(tmp_path):
    world = World.create(tmp_path)
    with receiver() as hook, mail_server() as post:
        settings = Alerts(
            webhook=Webhook(address=hook.address, secret_file=str(secret_file(tmp_path))),
            mail=Mail(host="127.0.0.1", port=post.port, security="none", sender="confide@example.org",
                      recipients=("oncall@example.org",)),
            kinds=("failed",), settle_s=0.0, console="https://console.example",
        )  # fmt: skip
        write_settings(world.server, Settings(bind="127.0.0.1", fleet_port=0, control_port=0, alerts=settings))
        assert read_settings(world.server).alerts == settings
        coordinator = Coordinator(world.server)
        coordinator.start()
        try:
            assert coordinator.facts().threads["alerts"]
            run_id = coordinator.book.submit(world.submission(specification(), np.arange(8.0)))
            coordinator.book.end(run_id, RunStatus.FAILED, RunFailed(code="DataError", reason=REASON))
            until(lambda: hook.posts and post.mails)
            until(lambda: len(coordinator.admin.audit.page(limit=9, event="alert_sent")) == 2)
        finally:
            coordinator.stop()
        (document,) = hook.documents
        assert document["needs"][0]["address"] == f"https://console.example/runs/{run_id}"
        assert "failed." in document["needs"][0]["words"] and "failed." in post.mails[0]
        said = json.dumps(hook.documents) + post.mails[0]
        assert REASON not in said and SECRET.decode() not in said + (world.server / "alerts.json").read_text()
        again = Coordinator(world.server)
        again.start()
        time.sleep(3.0)
        again.stop()
        assert len(hook.posts) == 1 and len(post.mails) == 1, "a restart tells nothing twice"
        tried = CliRunner().invoke(server.app, ["try-alerts", str(world.server)])
        assert tried.exit_code == 0 and tried.output == "webhook: sent\nmail: sent\n"
        hook.status = 500
        tried = CliRunner().invoke(server.app, ["try-alerts", str(world.server)])
        assert tried.exit_code == 1 and "webhook: the webhook answered 500" in tried.output
