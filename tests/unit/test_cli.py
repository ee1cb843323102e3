"""Every command of every package loads, quickly enough, and errors are one line."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import typer
from confide.cli import GROUP, app
from confide.lazy_commands import LazyGroup
from confide_simulations.commands.bench import app as bench
from typer.main import get_command

COMMANDS = sorted(entry.name for entry in entry_points(group=GROUP))


def confide(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "confide", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_list_of_commands_shows_all_of_them() -> None:
    shown = confide("--help")
    assert shown.returncode == 0, shown.stderr
    for name in COMMANDS:
        assert f" {name} " in shown.stdout


@pytest.mark.parametrize("group", [app, bench])
def test_the_list_says_what_each_command_says_of_itself(group: typer.Typer) -> None:
    commands = get_command(group)
    assert isinstance(commands, LazyGroup)
    for name, summary in commands.summaries().items():
        own = " ".join((commands.load(name).help or "").split("\n\n")[0].split())
        assert summary == own, name


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys; from confide.cli import app; from typer.main import get_command\n"
        "get_command(app).main(['--help'], standalone_mode=False)\n"
        "slow = {'numpy', 'pydantic', 'cryptography', 'confide_client.commands.node'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["node", "server", "consortium", "run", "data", "ledger"])
def test_commands_of_every_day_do_not_load_torch(name: str) -> None:
    code = (
        "import sys; from confide.cli import app; from typer.main import get_command\n"
        f"get_command(app).main([{name!r}, '--help'], standalone_mode=False)\n"
        "slow = {'torch', 'scipy', 'transformers'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


MISSING = [
    "chat --base /none",
    "evaluate --base /none --tasks a.yaml",
    "evaluate --base /tmp --tasks /none.yaml",
    "simulate /none.toml --data /none.jsonl --nodes 3",
    "compare /none.toml --data /none.jsonl --nodes 3",
    "recipe run support-chatbot --data /none.jsonl",
    "recipe run teleport",
    "reproduce teleport",
    "demo --data /none.jsonl",
    "run plan /none.toml",
    "server start /none",
    "node start /none",
]


def test_what_is_missing_is_said_before_anything_slow_is_loaded() -> None:
    code = (
        "import sys, click; from confide.cli import app; from confide.errors import ConfideError\n"
        "from typer.main import get_command\n"
        "for line in sys.argv[1:]:\n"
        "    try: get_command(app).main(line.split(), standalone_mode=False)\n"
        "    except (ConfideError, click.UsageError) as error: said = str(error)\n"
        "    else: sys.exit(f'{line}: no error')\n"
        "    assert 'none' in said or 'teleport' in said, (line, said)\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    command = [sys.executable, "-c", code, *MISSING]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_deliberate_error_is_one_line_and_status_one() -> None:
    done = confide("node", "status", "/nonexistent/folder/of/nobody")
    assert "Traceback" not in done.stderr
    wrong = confide("run", "plan", "/nonexistent.toml")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ") and "Traceback" not in wrong.stderr


def test_an_unknown_command_is_refused() -> None:
    assert confide("teleport").returncode == 2
