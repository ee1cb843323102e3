"""What a node tells its operator: lines in the log, and the command of the node's own."""

# ruff: noqa: F811 - bench and store are fixtures

import getpass
import json
import logging
import sys
import time
from pathlib import Path

import pytest
from confide.errors import StateError
from confide.proto import fleet_pb2
from confide_client.agent.notifying import filled, notify, parse_command
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.node_bench import SIZE, Bench, bench, store  # noqa: F401
from tests.waiting import until


def test_the_log_tells_a_night_in_a_line_each(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.policy('approval = "auto"', 'approval = "ask"')
    bench.offer()
    bench.decide("approved")
    bench.offer()
    bench.train()
    slot_end = fleet_pb2.End(slot=1, committed=True, contributors=["node-a"])
    for _ in range(2):
        bench.ask(bench.run.make(fleet_pb2.END, slot_end.SerializeToString()))
    bench.end("STOPPED", "admin")
    run = f"run {bench.run.run_id[:8]}: "
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith(run)]
    by = getpass.getuser()
    name = bench.spec.name
    assert [text.removeprefix(run) for text in said] == [
        f"offer {name} of admin: waits for a person; see `confide node plan`, then `confide node approve` or `refuse`",
        f"offer {name} of admin: accepted by {by}",
        "round 1 begins (slot 1, attempt 1)",
        f"update sent, {4 * SIZE} bytes",
        "round 1 is committed, with this node's update",
        "ended: STOPPED by admin; its training files, replies and uploads here are erased",
    ]


def test_a_person_is_told_by_the_command_of_the_node(bench: Bench, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    script = "import json, sys; json.dump([sys.argv[2:], sys.stdin.read()], open(sys.argv[1], 'w'))"
    command = (sys.executable, "-c", script, str(told), "{text}", "$(id) {run}")
    bench.node.state.save_settings(bench.node.state.settings.model_copy(update={"notify": command}))
    bench.policy('approval = "auto"', 'approval = "ask"')
    assert bench.offer().waiting
    until(lambda: told.exists() and told.read_text().endswith("]"), 60)
    (text, literal), given = json.loads(told.read_text())
    run = bench.run.run_id
    assert text == f"confide: run {run[:8]}, {bench.spec.name} of admin, waits for approval at node node-a"
    assert (literal, given) == (f"$(id) {run}", text + "\n")
    told.unlink()
    assert bench.offer().waiting  # nobody is told twice
    time.sleep(0.3)
    assert not told.exists()


@settings(max_examples=80)
@given(st.text(max_size=400), st.lists(st.text(max_size=20), max_size=4))
def test_text_from_elsewhere_stays_one_clean_argument(text: str, arguments: list[str]) -> None:
    command = filled(["program", "{text}", *arguments], "ab" * 16, text)
    assert len(command) == 2 + len(arguments)
    assert command[1].isprintable() and len(command[1]) <= 300
    assert [one for one in command if "\x00" in one and one not in arguments] == []


def test_a_notification_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for command in (["/nowhere/program"], [sys.executable, "-c", "import sys; sys.exit('\\x1b[2Jno mail today')"]):
        thread = notify(command, "ab" * 16, "a run waits")
        assert thread is not None
        thread.join(60)
    said = [record.getMessage() for record in caplog.records]
    assert "did not run" in said[0] and "no mail today" in said[1] and "\x1b" not in said[1]
    assert notify([], "ab" * 16, "nothing") is None
    with pytest.raises(StateError, match="'nowhere-program' is not there"):
        parse_command("nowhere-program --loud")
    with pytest.raises(StateError, match="close its quotes"):
        parse_command("mail 'ops")
