"""kill -9 at every write of the ledger: a forked process dies there, and the history goes on from what is on disk."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from confide.errors import ProtocolFailure
from confide.journal import read
from confide.privacy.events import SampledGaussian
from confide.privacy.filter import Budget
from confide.privacy.ledger import LEDGER_NAME, Ledger
from confide.privacy.ledger_entries import RunCost

RUN, OTHER = "a" * 32, "b" * 32
BUDGET = Budget(epsilon=20.0, delta=1e-5)
COST = RunCost(slot=(SampledGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=20),), slots=3)


def approve(ledger: Ledger, run: str) -> None:
    ledger.approve(
        run=run, group="notes", data="notes", unit="record", specification="0" * 64, cost=COST, budget=BUDGET
    )


def live(folder: Path) -> None:
    """A node's life, written so that it can be started again at any point. What is sent is noted in `sent`."""
    ledger = Ledger(folder / LEDGER_NAME)
    for run, slots in ((RUN, (1, 2, 4)), (OTHER, (1,))):
        approve(ledger, run)
        for slot in slots:
            contribute(ledger, folder, run, slot)
        if run == RUN and not ledger.state.run(RUN).ended:
            ledger.release(RUN)
    ledger.close()


def contribute(ledger: Ledger, folder: Path, run: str, slot: int) -> None:
    state = ledger.state.run(run)
    if state.draws.get(slot) is not True:
        try:
            ledger.reserve(run, slot, BUDGET)
        except ProtocolFailure:
            return  # the slot is over: its draw moved on
        if slot == 2:
            return  # its work is lost; slot 4 goes on under the same draw
        ledger.spend(run, slot)
    with (folder / "sent").open("a") as sent:
        sent.write(f"{run} {slot}\n")


class Dying:
    """Counts writes and fsyncs and dies at number `at`, before it, in the middle of it, or just after it."""

    def __init__(self, at: int, manner: str) -> None:
        self.at, self.manner, self.count = at, manner, 0
        self.write, self.fsync = os.write, os.fsync
        os.write, os.fsync = self.dying_write, self.dying_fsync  # type: ignore[assignment]

    def dying_write(self, descriptor: int, data: bytes) -> int:
        return self._reached(
            lambda: self.write(descriptor, data), lambda: self.write(descriptor, data[: len(data) // 2])
        )

    def dying_fsync(self, descriptor: int) -> None:
        self._reached(lambda: self.fsync(descriptor), lambda: None)

    def _reached(self, whole: Callable[[], object], half: Callable[[], object]) -> int:
        self.count += 1
        if self.count == self.at:
            {"before": lambda: None, "half": half, "after": whole}[self.manner]()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole()  # type: ignore[return-value]


def live_until_killed(folder: Path, at: int, manner: str) -> bool:
    """Whether the child was killed; otherwise it lived to its end."""
    child = os.fork()
    if child == 0:
        Dying(at, manner)
        try:
            live(folder)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the node's life failed by itself"
    return False


def shape(path: Path) -> list[tuple[str, str, int | None]]:
    return [(body["kind"], body["run"], body.get("slot")) for body in read(path)[0]]


@pytest.mark.parametrize("manner", ["before", "half", "after"])
def test_killed_at_every_write(tmp_path: Path, manner: str) -> None:
    calm = tmp_path / "calm"
    calm.mkdir()
    live(calm)
    expected = shape(calm / LEDGER_NAME)
    assert [kind for kind, _, _ in expected] == [
        "approved", "reserved", "spent", "reserved", "moved", "spent", "released", "approved", "reserved", "spent",
    ]  # fmt: skip
    at = 0
    while True:
        at += 1
        folder = tmp_path / f"{manner}-{at}"
        folder.mkdir()
        if not live_until_killed(folder, at, manner):
            break
        path = folder / LEDGER_NAME
        survived = shape(path)
        assert survived == expected[: len(survived)]
        already = set((folder / "sent").read_text().splitlines()) if (folder / "sent").exists() else set()
        assert already <= {f"{run} {slot}" for kind, run, slot in survived if kind == "spent"}
        live(folder)
        assert shape(path) == expected, "a budget was counted twice or forgotten"
        assert set((folder / "sent").read_text().splitlines()) == {f"{RUN} 1", f"{RUN} 4", f"{OTHER} 1"}
    assert at > 2 * len(expected)


def test_killed_again_and_again(tmp_path: Path) -> None:
    """A node that dies at the third write or fsync of every life still gets to the end, with one history."""
    deaths = 0
    while live_until_killed(tmp_path, 3, "half"):
        deaths += 1
        assert deaths < 60
    kinds = [kind for kind, _, _ in shape(tmp_path / LEDGER_NAME)]
    assert kinds.count("spent") == 3 and kinds.count("approved") == 2 and deaths >= 5
