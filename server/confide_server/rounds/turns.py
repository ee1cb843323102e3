"""Whose turn it is: which runs work with which nodes at the same time.

A node trains for one run at a time. A run takes a turn for each round, over all nodes that accepted it, and gives it
back when the round has ended, or as soon as it has to wait for somebody. At most `most` turns are out at once. Who has
waited longest is next, among runs of the same priority; a higher priority always goes first. A run that waits for its
nodes holds no others up: only nodes that an earlier one waits for are kept free for it. A node that says that it is
busy (with a slot that was given up here, above all) counts as taken for as long as it said.

>>> turns = Turns(most=2)
>>> for run, nodes in (("first", "ab"), ("second", "bc"), ("third", "d")): turns.ask(run, nodes)
>>> [turns.granted(run) for run in ("first", "second", "third")]
[True, False, True]
>>> turns.give_back("first"); turns.granted("second")
True
"""

import itertools
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

PAUSE_S = 0.1
SAY_AFTER_S = 2.0
MOST_BUSY_S = 600.0
"""A node is believed for so long at once; then it is asked again."""


@dataclass(frozen=True)
class _Wish:
    run_id: str
    nodes: frozenset[str]
    order: tuple[int, int]
    """(minus priority, number in line)."""


class Turns:
    """Shared by all runs of one coordinator."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._busy: dict[str, float] = {}
        """Until when a node works for somebody who holds no turn, as it said."""
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[str, _Wish] = {}
        self._out: dict[str, frozenset[str]] = {}

    def ask(self, run_id: str, nodes: Collection[str], priority: int = 0) -> None:
        """Stand in line; again: with the place in line kept."""
        with self._lock:
            if run_id in self._out:
                return
            number = self._waiting[run_id].order[1] if run_id in self._waiting else next(self._numbers)
            self._waiting[run_id] = _Wish(run_id, frozenset(nodes), (-priority, number))

    def granted(self, run_id: str) -> bool:
        """Whether it is this run's turn, which it keeps until it gives it back."""
        with self._lock:
            taken = frozenset[str]().union(*self._out.values(), self._busy_now())
            for wish in sorted(self._waiting.values(), key=lambda one: one.order):
                if len(self._out) >= self._most:
                    break
                if wish.nodes & taken:
                    taken |= wish.nodes
                    continue
                del self._waiting[wish.run_id]
                self._out[wish.run_id] = wish.nodes
                taken |= wish.nodes
            return run_id in self._out

    def busy(self, node: str, seconds: float) -> None:
        """A node said for how long it works for another run; 0: it answered, and does no more."""
        with self._lock:
            self._busy[node] = self._clock() + min(seconds, MOST_BUSY_S)

    def busy_s(self, node: str) -> float:
        """How much of that is left; 0 for none."""
        with self._lock:
            return max(0.0, self._busy.get(node, 0.0) - self._clock())

    def _busy_now(self) -> frozenset[str]:
        now = self._clock()
        self._busy = {node: until for node, until in self._busy.items() if until > now}
        return frozenset(self._busy)

    def give_back(self, run_id: str) -> None:
        """The turn, or the place in line. Idempotent."""
        with self._lock:
            self._out.pop(run_id, None)
            self._waiting.pop(run_id, None)

    def holder(self, node: str, besides: str = "") -> str:
        """The run that works with this node now, if it is another one; "" for none."""
        with self._lock:
            return next((run for run, nodes in self._out.items() if node in nodes and run != besides), "")

    def before(self, run_id: str) -> dict[str, str]:
        """For whom this run waits: {node: the run that works with it, "" where the node is busy by its own word}; empty
        where only a place is missing."""
        with self._lock:
            wish = self._waiting.get(run_id)
            wanted = wish.nodes if wish is not None else frozenset[str]()
            busy = dict.fromkeys(sorted(self._busy_now() & wanted), "")
            return busy | {node: run for run, nodes in sorted(self._out.items()) for node in sorted(nodes & wanted)}


class Turn:
    """One run's side of it."""

    def __init__(
        self,
        turns: Turns,
        run_id: str,
        *,
        priority: Callable[[], int],
        pause: Callable[[float], None],
        say: Callable[[dict[str, str] | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """pause: sleeps, and raises when the run is to end or to rest. say: told for which nodes the run waits (by the
        runs that have them), and None when it waits no more."""
        self._turns = turns
        self._run_id = run_id
        self._priority = priority
        self._pause = pause
        self._say = say
        self._clock = clock
        self.held = False

    def take(self, nodes: Collection[str]) -> bool:
        """Wait for the turn; returns whether it had to be waited for. Held already: nothing happens."""
        if self.held:
            return False
        self._turns.ask(self._run_id, nodes, self._priority())
        began, told = self._clock(), False
        while not self._turns.granted(self._run_id):
            if self._clock() - began >= SAY_AFTER_S:
                self._say(self._turns.before(self._run_id))
                told = True
            self._pause(PAUSE_S)
        self.held = True
        if told:
            self._say(None)
        return self._clock() - began > PAUSE_S

    def give_back(self) -> None:
        """Let others work. Idempotent."""
        self._turns.give_back(self._run_id)
        self.held = False
