"""Tells people that a run waits for them, by a command that they chose: `confide node init FOLDER --notify "..."`.

The command is a list of arguments and never a shell's text. `{text}` in an argument is replaced by one line about the
run, `{run}` by its id; the line also comes on standard input. What is in it from elsewhere (names) was cleaned.

>>> filled(["mail", "-s", "{text}", "ops@example.org"], "1f" * 16, "run 1f1f1f1f waits")
['mail', '-s', 'run 1f1f1f1f waits', 'ops@example.org']
"""

import logging
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Sequence

from confide.errors import StateError
from confide.text import line

TIMEOUT_S = 60.0
TEXT_CHARS = 300
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "TZ")
log = logging.getLogger(__name__)


def parse_command(text: str) -> list[str]:
    """What an operator typed, as arguments. Raises StateError when its program is not there. "" is no command."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise StateError(f"--notify {text!r} cannot be split into arguments: {error}; close its quotes") from error
    if arguments and shutil.which(arguments[0]) is None:
        raise StateError(f"--notify: the program {arguments[0]!r} is not there, or may not be run; give its full path")
    return arguments


def filled(arguments: Sequence[str], run_id: str, text: str) -> list[str]:
    """The arguments with `{text}` and `{run}` put in, in one pass: braces in a text stay what they are."""
    parts = {"{text}": line(text, TEXT_CHARS), "{run}": run_id}
    return ["".join(parts.get(piece, piece) for piece in _pieces(argument)) for argument in arguments]


def notify(arguments: Sequence[str], run_id: str, text: str) -> threading.Thread | None:
    """Run the command beside everything else; what goes wrong with it is logged and changes nothing."""
    if not arguments:
        return None
    command = filled(arguments, run_id, text)
    thread = threading.Thread(target=_run, args=(command, line(text, TEXT_CHARS)), name="notify", daemon=True)
    thread.start()
    return thread


def _run(command: list[str], text: str) -> None:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(
            command,
            input=text + "\n",
            text=True,
            capture_output=True,
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        log.warning("the notification command did not run: %s", line(error, 200))
        return
    if done.returncode:
        said = line(done.stderr, 200)
        log.warning("the notification command ended with %d: %s", done.returncode, said)


def _pieces(argument: str) -> list[str]:
    pieces: list[str] = []
    rest = argument
    while rest:
        found = [(rest.find(name), name) for name in ("{text}", "{run}") if name in rest]
        if not found:
            return [*pieces, rest]
        at, name = min(found)
        pieces += [rest[:at], name]
        rest = rest[at + len(name) :]
    return pieces
