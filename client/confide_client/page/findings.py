"""What is on disk, gathered for the page; and the plan of a run, made by a process of its own that ends."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, StateError
from confide.runs.specification import Specification, parse_canonical
from confide.text import paragraph

from confide_client.agent.status import gather
from confide_client.policy.policy import Policy, load_policy, parse_policy
from confide_client.runs.offers import parse_offer
from confide_client.state import StateFolder

PLAN_TIMEOUT_S = 600.0
COMMAND_TIMEOUT_S = 120.0
SENT_SHOWN = 50


@dataclass(frozen=True)
class Verdict:
    """What a policy says of a run that was offered."""

    run: str
    name: str
    now: str
    then: str
    """Each "" for allowed, else why it is refused."""


def status_of(state: StateFolder) -> dict[str, Any]:
    """As `confide node status` has it. Raises StateError."""
    return gather(state, entries=200)


def _policy(state: StateFolder) -> Policy:
    return load_policy(state.policy)


def dry_run(state: StateFolder, text: str) -> list[Verdict]:
    """What another policy would say of the runs offered so far. Nothing is written. Raises PolicyRefusal."""
    other = parse_policy(text, "this text")
    found = []
    for run_id in state.run_ids():
        offer = state.run(run_id) / "offer.bin"
        if offer.exists():
            specification = parse_canonical(parse_offer(offer.read_bytes()).specification)
            now, then = _refusal(partial(_policy, state), specification), _refusal(lambda: other, specification)
            found.append(Verdict(run_id, specification.name, now, then))
    return found


def _refusal(policy: Callable[[], Policy], specification: Specification) -> str:
    try:
        policy().check(specification, group=specification.federation.data)
    except ConfideError as error:
        return str(error)
    return ""


class Plans:
    """Plans in words, each made once by `confide node plan`: it may load the model, and its memory goes with it."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._made: dict[tuple[str, int], str] = {}
        self._running: set[tuple[str, int]] = set()

    def of(self, run_id: str) -> str:
        """The plan, or "" while it is being made; made anew when the policy changed."""
        key = (run_id, self._stamp())
        with self._lock:
            if key in self._made or key in self._running:
                return self._made.get(key, "")
            self._running.add(key)
        threading.Thread(target=self._make, args=(key,), name="plan", daemon=True).start()
        return ""

    def _stamp(self) -> int:
        path = self._state.policy
        return path.stat().st_mtime_ns if path.exists() else 0

    def _make(self, key: tuple[str, int]) -> None:
        said = ""
        try:
            said = command(["node", "plan", str(self._state.root), key[0]], PLAN_TIMEOUT_S)[1]
        except ConfideError as error:
            said = str(error)
        with self._lock:
            self._made[key] = said
            self._running.discard(key)


def command(arguments: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> tuple[bool, str]:
    """(whether it succeeded, what it said) of one `confide` command. Raises StateError when it takes too long."""
    # Its lines come whole: the browser knows how wide the page is.
    environment = {"COLUMNS": "20000", "NO_COLOR": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    environment["HOME"] = str(Path.home())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "confide", *arguments],
            capture_output=True,
            timeout=timeout_s,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StateError(
            f"`confide {' '.join(arguments[:2])}` took longer than {timeout_s:g} s; run it by hand"
        ) from error
    return done.returncode == 0, paragraph((done.stdout + done.stderr).strip(), 20_000)


def pause(state: StateFolder, by: str, reason: str) -> None:
    """Take no further instruction until `resume`; what is under way ends first."""
    state.note_pause(at=time.time(), by=by, reason=reason)


def resume(state: StateFolder) -> None:
    """Take instructions again."""
    state.end_pause()
