"""A mistyped folder is an error, never a new node."""

import stat
import time
from pathlib import Path

import pytest
from confide.errors import StateError
from confide_client.agent.status import _standing
from confide_client.commands.node import app
from confide_client.state import StateFolder
from typer.testing import CliRunner


def test_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="confide node init"):
        StateFolder.at(tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize("command", ["status", "start", "pause", "resume", "page", "seal-log"])
def test_a_folder_of_something_else_is_refused_and_keeps_its_mode(tmp_path: Path, command: str) -> None:
    other = tmp_path / "records"
    other.mkdir()
    other.chmod(0o755)
    refused = CliRunner().invoke(app, [command, str(other)])
    assert isinstance(refused.exception, StateError) and "is no node's state folder" in str(refused.exception)
    assert (stat.S_IMODE(other.stat().st_mode), list(other.iterdir())) == (0o755, [])


def test_a_name_that_no_member_may_have_leaves_nothing_behind(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["init", str(tmp_path / "node"), "--name", "BAD NAME"])
    assert refused.exit_code != 0 and "no member's name" in str(refused.exception)
    assert not (tmp_path / "node").exists()


def test_a_waiting_run_says_for_whom_and_since_when() -> None:
    run = {"status": "waiting", "reason": "", "offered_at": 1_700_000_000.0}
    since = time.strftime("%m-%d %H:%M", time.localtime(1_700_000_000.0))
    assert _standing(run) == f"for a person here, since {since}"
    assert _standing({**run, "reason": "nothing can be learned"}).endswith(f"since {since}: nothing can be learned")
    assert _standing({"status": "refused", "reason": "PolicyRefusal"}) == "PolicyRefusal"
