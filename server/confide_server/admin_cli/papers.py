"""What of a member's papers ends soon: said on standard error by every command that uses its folder."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import typer
from confide.errors import ConfideError
from confide.identity.expiry import Notice, notices
from confide.identity.member import LocalMember
from confide.identity.member import load_member as load


def load_member(folder: Path) -> LocalMember:
    """As confide.identity.member.load_member, with a word about what ends soon."""
    member = load(folder)
    warn(folder)
    return member


def warn(folder: Path, find: Callable[[Path, float], list[Notice]] = notices) -> list[Notice]:
    """Say what is due in a member's folder, and return it. Damaged files are left to whoever needs them."""
    try:
        found = find(folder, time.time())
    except ConfideError:
        return []
    say(found)
    return found


def say(found: Iterable[Notice]) -> None:
    """One line each."""
    for notice in found:
        typer.secho(f"! {notice.text}", fg=typer.colors.RED if notice.over else typer.colors.YELLOW, err=True)
