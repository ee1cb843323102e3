"""`confide node` and `confide data`, typed as an operator types them."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from confide.cli import app
from confide.errors import ConfideError, IdentityError, StateError
from confide.identity.consortium import Consortium
from confide.identity.member import load_member
from confide.lazy_commands import LazyGroup
from confide.state_option import StateFirst
from confide_client.policy.policy import load_policy
from confide_client.state import StateFolder
from typer.testing import CliRunner

from tests.node_worlds import faq


def run(*arguments: object) -> str:
    """What the command printed; its ConfideError is raised, as `main` sees it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium.create(tmp_path / "root", "trial", fleet_address="127.0.0.1:1")


@pytest.fixture
def node(tmp_path: Path, consortium: Consortium) -> Path:
    """An admitted node, made by the commands."""
    folder = tmp_path / "node"
    root = consortium.root.public.hex()
    assert "denies everything" in run("node", "init", folder, "--name", "hospital-a", "--root", root)
    answer = tmp_path / "admission.json"
    answer.write_bytes(consortium.admit((folder / "request.json").read_bytes()))
    assert "a member of trial" in run("node", "init", folder, "--admission", answer, "--root", root)
    return folder


def test_a_node_is_set_up_private_and_denying(node: Path, consortium: Consortium) -> None:
    assert node.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in node.glob("*.key")} == {0}
    policy = load_policy(node / "policy.toml")
    assert policy.consortium_root == consortium.root.public.hex()
    assert not (policy.methods or policy.models or policy.data_sets or policy.training_hours)
    assert load_member(node).name == "hospital-a"


def test_an_admission_under_another_root_is_refused(tmp_path: Path, node: Path) -> None:
    with pytest.raises(IdentityError, match="was expected"):
        run("node", "init", node, "--admission", tmp_path / "admission.json", "--root", "0" * 64)


def test_a_node_without_a_name_or_admission_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="--name"):
        run("node", "init", tmp_path / "new")
    run("node", "init", tmp_path / "new", "--name", "bank-b")
    with pytest.raises(IdentityError, match="admitted"):
        run("node", "start", tmp_path / "new")
    with pytest.raises(IdentityError, match="cannot read"):
        run("node", "init", tmp_path / "new", "--admission", tmp_path / "nothing.json")


def test_settings_are_kept_and_changed(node: Path, tmp_path: Path) -> None:
    run("node", "init", node, "--models", tmp_path / "models", "--proxy", "http://127.0.0.1:3128", "--threads", "2")
    run("node", "init", node, "--threads", "1", "--max-rank", "4")
    settings = StateFolder(node).settings
    assert settings.max_rank == 4
    assert (settings.threads, settings.proxy, settings.models) == (1, "http://127.0.0.1:3128", str(tmp_path / "models"))
    (node / "node.json").write_text('{"thread": 1}')
    with pytest.raises(StateError, match="thread"):
        _ = StateFolder(node).settings


def test_status_shows_membership_data_and_no_run(node: Path, tmp_path: Path) -> None:
    run("data", "add", node, "notes", faq(tmp_path / "notes.jsonl", 10))
    assert "unchanged" in run("data", "check", node, "notes")
    assert "9 training and 1 evaluation" in run("data", "list", node)
    document = json.loads(run("node", "status", node, "--json"))
    assert document["membership"]["name"] == "hospital-a"
    assert document["agent"]["running"] is False
    assert "no run was offered yet" in run("node", "status", node)
    run("data", "remove", node, "notes")
    assert run("data", "list", node) == ""


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_status_of_a_folder_that_was_never_admitted_fails_and_says_what_comes_next(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    folder = tmp_path / "node"
    run("node", "init", folder, "--name", "hospital-a")
    shown = CliRunner().invoke(app, ["node", "status", str(folder), *more])
    assert shown.exit_code == 1
    for words in (f"give {folder / 'request.json'} to", f"`confide node init {folder} --admission admission.json"):
        assert words in shown.output


def test_unknown_runs_and_plans_are_named(node: Path, tmp_path: Path) -> None:
    for command in ("approve", "refuse", "seal-log", "plan"):
        with pytest.raises(StateError, match="0 runs start with"):
            run("node", command, node, "abc")
    (tmp_path / "bad.toml").write_text("version = 9")
    with pytest.raises(ConfideError, match="version"):
        run("node", "plan", node, tmp_path / "bad.toml")


def test_a_certificate_is_renewed_by_file(node: Path, tmp_path: Path, consortium: Consortium) -> None:
    before = (node / "tls.crt").read_bytes()
    assert "send" in run("node", "renew", node)
    answer = tmp_path / "renewed.json"
    answer.write_bytes(consortium.renew((node / "request.json").read_bytes()))
    run("node", "renew", node, "--admission", answer)
    assert (node / "tls.crt").read_bytes() != before
    assert load_member(node).claim.expires_at > time.time()


def test_a_second_agent_on_one_folder_is_refused(node: Path) -> None:
    from confide.journal import Journal

    journal = Journal(StateFolder(node).audit)
    try:
        with pytest.raises(StateError, match=r"running on .* already"):
            run("node", "start", node)
    finally:
        journal.close()


@pytest.mark.parametrize("arguments", [("node", "status"), ("data", "list"), ("model", "list"), ("ledger", "verify")])
def test_every_command_of_a_node_takes_its_folder_by_state(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    StateFolder.create(tmp_path / "node")
    shown = CliRunner().invoke(app, [*arguments, "--state", str(tmp_path / "node")])
    assert "Missing argument" not in shown.output and "No such option" not in shown.output
    said = f"{shown.output} {shown.exception}"
    assert shown.exit_code in (0, 1, 2) and "Usage:" not in said, said


def folder_commands(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that has an argument called `folder`, with its path."""
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.load(name) if isinstance(group, LazyGroup) else group.get_command(context, name)
            assert command is not None
            yield from folder_commands(command, (*path, name))
    elif any(isinstance(one, click.Argument) and one.name == "folder" for one in group.params):
        yield path, group


@pytest.mark.parametrize("name", ["console", "data", "node", "server"])
def test_every_command_with_a_state_folder_takes_it_by_state(name: str) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, LazyGroup)
    found = list(folder_commands(root.load(name)))
    assert found
    for path, command in found:
        options = [text for one in command.params if isinstance(one, click.Option) for text in one.opts]
        assert isinstance(command, StateFirst) or "--state" in options, path
