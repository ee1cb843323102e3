"""Every command of every package loads, quickly enough, and errors are one line."""

import io
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import typer
from confide import cli
from confide.cli import GROUP, app
from confide.errors import StateError
from confide.lazy_commands import LazyGroup
from confide.text import table
from confide_simulations.commands.bench import app as bench
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

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


@pytest.mark.parametrize("command", ["server status", "server gc", "server start", "console link", "console start"])
def test_a_folder_of_something_else_gets_nothing(tmp_path: Path, command: str) -> None:
    wrong = confide(*command.split(), str(tmp_path))
    assert (
        wrong.returncode == 1
        and f"is no {'coordinator' if 'server' in command else 'console'}'s folder" in wrong.stderr
    )
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_refused() -> None:
    assert confide("teleport").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model", "add", "/nowhere/model"), "/nowhere/model is not there"),
        (("run", "plan", "/nowhere.toml"), "/nowhere.toml"),
        (("data", "add", "{node}", "x", "/nowhere.csv"), "/nowhere.csv is not a file"),
        (("chat", "--base", "/nowhere", "--prompt", "x"), "/nowhere"),
        (("evaluate", "--base", "/nowhere"), "/nowhere"),
    ],
)
def test_a_missing_file_is_said_before_torch_is_loaded(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "node.json").touch()
    code = (
        "import sys; from confide.cli import app; from typer.testing import CliRunner\n"
        f"shown = CliRunner().invoke(app, {[one.format(node=tmp_path) for one in arguments]!r})\n"
        "assert shown.exit_code, shown.output\n"
        f"assert {said!r} in f'{{shown.output}} {{shown.exception}}', (shown.output, shown.exception)\n"
        "slow = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_one_command_that_cannot_be_loaded_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "nowhere.at_all:app", GROUP)
    known = {"broken": broken, "data": cli._entries()["data"]}
    monkeypatch.setattr(cli, "_entries", lambda: known)
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0 and "Cannot be loaded" in shown.output and "Register and check" in shown.output
    assert CliRunner().invoke(app, ["data", "--help"]).exit_code == 0
    failed = CliRunner().invoke(app, ["broken"])
    assert isinstance(failed.exception, StateError) and "`confide broken` cannot be loaded" in str(failed.exception)


def test_completion_knows_the_commands_of_the_root() -> None:
    environment = {**os.environ, "_CONFIDE_COMPLETE": "complete_bash", "COMP_WORDS": "confide con", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['confide']; from confide.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert "consortium" in done.stdout.split(), done.stderr


def test_no_color_and_warnings_of_libraries() -> None:
    code = (
        "import sys, warnings; from confide import cli\n"
        "import click, typer\n"
        "def warn() -> None:\n    warnings.warn('for developers')\n    typer.secho('red', fg='red')\n"
        "single = typer.Typer(); single.command()(warn); cli.app = single; sys.argv = ['confide']; cli.main()"
    )
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr) == ("red\n", "")


RUNS = "import sys; from confide import cli; import typer; one = typer.Typer(); one.command()(act); cli.app = one; "


@pytest.mark.parametrize("ends", ["pass", "raise SystemExit(3)", "raise KeyboardInterrupt"])
def test_a_command_that_ended_leaves_nothing_to_search_for_garbage(ends: str) -> None:
    """Going through torch and LanceDB once more took up to a second of every command that had used them."""
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000))"
    )
    code = f"{code}\ndef act() -> None: {ends}\n{RUNS}sys.argv = ['confide']; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr


def test_a_path_that_the_system_does_not_take_is_an_error_of_one_line(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path\ndef act() -> None: Path('x' * 300).stat()\n{RUNS}sys.argv = ['confide']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "File name too long" in done.stderr


def test_a_terminal_without_a_letter_shows_a_question_mark_for_it() -> None:
    code = f"from rich.console import Console\ndef act() -> None: Console().print('caf\u00e9\u2026')\n{RUNS}"
    code += "sys.argv = ['confide']; cli.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf??\n", "")


def test_a_table_of_eighty_columns_cuts_nothing() -> None:
    shown = table("name", "sha256", "from", keys={"sha256": 64}, title="models")
    row = ("a-model-with-a-rather-long-name", "0123456789abcdef" * 4, "https://example.org/a/long/address")
    shown.add_row(*row)
    console = Console(file=io.StringIO(), width=80)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if line.count("│") == 4]
    assert row[1] in text
    assert ["".join(parts) for parts in zip(*cells, strict=True)] == list(row)
