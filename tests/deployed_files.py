"""Reading what server/deploy and client/deploy hold, and asking typer about the commands in it."""

import importlib.util
import os
import re
import shlex
import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import yaml
from confide.lazy_commands import command_of

ROOT = Path(__file__).resolve().parents[1]
SERVER, CLIENT = ROOT / "server" / "deploy", ROOT / "client" / "deploy"
DOCKERFILES = (SERVER / "Dockerfile", CLIENT / "Dockerfile", CLIENT / "Dockerfile.gpu")
UNITS = tuple(sorted((*SERVER.glob("systemd/*.service"), *CLIENT.glob("systemd/*.service"))))
CHART = SERVER / "helm" / "confide"
PAGE = ROOT / "docs" / "deployment.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER = 10001


def program(path: Path) -> ModuleType:
    """A script that lies outside the packages, as a module."""
    found = importlib.util.spec_from_file_location(f"deployed_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


# --- what is typed


def command_named(name: str) -> click.Command:
    """A command of `confide`, by pyproject.toml's own table: an installation may be older."""
    table = PROJECT["entry-points"]["confide.commands"]
    assert name in table, f"`confide {name}` is no command; there are {', '.join(sorted(table))}"
    module, _, attribute = table[name].partition(":")
    return command_of(getattr(importlib.import_module(module), attribute), name)


def check_command(words: list[str]) -> None:
    """Let typer read the words as it would, without running anything. Raises click.UsageError."""
    command, rest = command_named(words[0]), words[1:]
    context = command.make_context(f"confide {words[0]}", list(rest), resilient_parsing=False)
    while isinstance(command, click.Group):
        left = [*context._protected_args, *context.args]
        if not left:
            assert command.invoke_without_command, f"confide {' '.join(words)} names no command"
            return
        name, found, rest = command.resolve_command(context, left)
        assert found is not None and name is not None
        command, context = found, found.make_context(name, list(rest), parent=context)


def check_mention(words: list[str]) -> None:
    """That a command mentioned in a sentence, its arguments mostly left out, exists with the options named."""
    command, rest = command_named(words[0]), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"confide {' '.join(words)}: there is no {rest[0]!r}"
        command, rest = found, rest[1:]
    known = {option for each in command.params for option in each.opts}
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= known, words


def dockerfile(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, comments gone and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def of_kind(path: Path, kind: str) -> list[str]:
    return [rest for word, rest in dockerfile(path) if word == kind]


def filled(text: str) -> str:
    """${NAME:-default} as its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((SERVER / "compose.yaml").read_text())
    return document


def unit(path: Path) -> dict[str, list[str]]:
    """All settings of a unit, by key; continued lines joined."""
    found: dict[str, list[str]] = {}
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        if "=" in line and not line.startswith("["):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value.strip())
    return found


_TYPED = re.compile(
    r"^\s*(?:sudo -u \S+ |kubectl exec (?:-\w+ )?\S+ -- )?(?:/opt/confide/bin/)?confide (.+)$"
    r"|^\s*docker compose .*run --rm (?:coordinator|admin) (.+)$"
)


def confide_lines(text: str) -> Iterator[list[str]]:
    """Each command of Confide in a shell's lines, directly or in a container, as words; continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        found = _TYPED.match(line)
        if found:
            yield shlex.split((found[1] or found[2]).split(" > ")[0], comments=True)


def shim(folder: Path) -> dict[str, str]:
    """An environment in which `confide` is this checkout's."""
    folder.mkdir()
    path = folder / "confide"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m confide "$@"\n')
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def modes(folder: Path) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*") if path.is_file()}
