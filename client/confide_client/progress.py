"""What this node is doing right now: for its operator, and in a few numbers for the coordinator.

Who works says so by `tell`, which costs next to nothing and cannot fail; nobody listens unless the node's agent does.
A thread of the agent (telling.py) looks every two seconds, so that telling never delays work.

>>> progress = Progress()
>>> with progress.of("1f" * 16, private=False):
...     tell(Phase.TRAINING, 3, 30)
...     progress.now().words()
'training, step 3 of 30'
>>> progress.now() is None
True
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from confide.proto import fleet_pb2
from confide.transport.envelope import VERSION

Listener = Callable[["Phase", int, int], None]


class Phase(StrEnum):
    """What a node may be at, in the order in which it comes to it."""

    LOADING = "loading"
    MEASURING = "measuring"
    ENCODING = "encoding"
    EVALUATING = "evaluating"
    TRAINING = "training"
    SEALING = "sealing"
    WORKING = "working"


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tell(phase: Phase, step: int = 0, steps: int = 0) -> None:
    """`step` of `steps` are done (0 of 0: this phase is not counted). Heard by whoever called `heard_by`, if anyone."""
    listener = _listener.get()
    if listener is not None:
        listener(phase, step, steps)


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """What is told in this thread within the block goes to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@dataclass(frozen=True, kw_only=True)
class Doing:
    """A moment of work. seconds_left: until the work on the slot is done, about; 0: not known."""

    run_id: str
    phase: Phase
    step: int = 0
    steps: int = 0
    seconds_left: int = 0
    private: bool = False
    """Of a run with differential privacy."""
    public_seconds_left: int = 0
    """As seconds_left, from what the node measured on made-up records alone."""

    @property
    def busy_s(self) -> int:
        """What another run may be told of how long this takes, at least 1: of a private run's work what was measured
        on made-up records, since its own pace follows from records."""
        return max(1, self.public_seconds_left if self.private else self.seconds_left)

    def words(self) -> str:
        """For people."""
        step = f", step {self.step} of {self.steps}" if self.steps else ""
        left = f", about {self.seconds_left} s left" if self.seconds_left else ""
        return f"{self.phase}{step}{left}"

    def message(self, node: str, number: int) -> fleet_pb2.Progress:
        """What may leave. Of a private run's work only that there is some: the pace of its parts follows from records,
        and nobody charged for it.
        """
        hidden = self.private and self.phase not in (Phase.LOADING, Phase.MEASURING)
        phase = Phase.WORKING if hidden else self.phase
        return fleet_pb2.Progress(
            version=VERSION,
            run_id=self.run_id,
            node=node,
            phase=f"PHASE_{phase.name}",
            step=0 if hidden else self.step,
            steps=0 if hidden else self.steps,
            seconds_left=self.public_seconds_left if self.private else self.seconds_left,
            number=number,
        )


@dataclass
class _Work:
    """Of one instruction."""

    run_id: str
    private: bool
    began: float
    expected_s: float
    phase: Phase = Phase.WORKING
    step: int = 0
    steps: int = 0
    counted_from: tuple[int, float] | None = None
    """Step at which training was first heard of, and when."""

    def left_s(self, now: float) -> float:
        """By the pace so far; before there is one, by what was measured beforehand."""
        if self.counted_from is not None:
            first, since = self.counted_from
            if self.step > first:
                return (self.steps - self.step) * (self._last - since) / (self.step - first)
        return self.public_left_s(now)

    _last: float = 0.0

    def public_left_s(self, now: float) -> float:
        return max(0.0, self.expected_s - (now - self.began))

    def heard(self, phase: Phase, step: int, steps: int, now: float) -> None:
        if phase is Phase.TRAINING and steps and self.counted_from is None:
            self.counted_from = (step, now)
        self.phase, self.step, self.steps, self._last = phase, step, steps, now


class Progress:
    """The node's current work. One thread works, others ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._work: _Work | None = None
        self._beside: dict[str, Phase] = {}

    @contextlib.contextmanager
    def of(self, run_id: str, *, private: bool, expected_s: float = 0.0) -> Iterator[None]:
        """Within the block this thread works on the run. expected_s: as measured beforehand, 0 if it was not."""
        work = self._work = _Work(run_id, private, self._clock(), expected_s)

        def heard(phase: Phase, step: int, steps: int) -> None:
            work.heard(phase, step, steps, self._clock())

        try:
            with heard_by(heard):
                yield
        finally:
            self._work = None

    @contextlib.contextmanager
    def beside(self, run_id: str, phase: Phase) -> Iterator[None]:
        """Within the block a thread of the run's gets something ready, while instructions are answered."""
        self._beside[run_id] = phase
        try:
            yield
        finally:
            self._beside.pop(run_id, None)

    def now(self) -> Doing | None:
        """None while the node waits."""
        working = self.working()
        if working is None:
            ready = next(iter(list(self._beside.items())), None)
            return None if ready is None else Doing(run_id=ready[0], phase=ready[1])
        return working

    def working(self) -> Doing | None:
        """The slot that is worked on; None while there is none, whatever gets ready beside."""
        work, now = self._work, self._clock()
        if work is None:
            return None
        return Doing(
            run_id=work.run_id,
            phase=work.phase,
            step=work.step,
            steps=work.steps,
            seconds_left=round(work.left_s(now)),
            private=work.private,
            public_seconds_left=round(work.public_left_s(now)),
        )
