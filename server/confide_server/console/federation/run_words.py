"""A run as people see it: one line, a grid of rounds by organizations, series for the plots.

Of the open round only events tell: who has contributed to it, and who was dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confide.proto import admin_pb2 as pb
from confide.web.pages import duration

from confide_server.alerts.needs import listed
from confide_server.console.words import TEXTS

GRID_ROUNDS = 40
MOODS = {
    "running": "good", "finished": "good", "offering": "calm", "submitted": "calm", "draft": "warn", "paused": "warn",
    "waiting": "bad", "finished_with_fewer": "warn", "failed": "bad", "stopped": "warn",
}  # fmt: skip


@dataclass
class OpenRound:
    """The round that is not committed yet."""

    number: int = 0
    attempt: int = 0
    began: float = 0.0
    deadline_s: float = 0.0
    slot: int = 0
    here: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Of the grid. state: contributed, dropped, not_asked, or open (of the open round, still awaited)."""

    state: str
    said: str = ""


@dataclass(frozen=True)
class Grid:
    """rounds: the columns. rows: by organization."""

    rounds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def open_round(events: Sequence[pb.Event]) -> OpenRound | None:
    """From a run's newest events, oldest first; None where no round is open."""
    found: OpenRound | None = None
    for event in events:
        kind = event.WhichOneof("what")
        if kind == "round_started":
            one = event.round_started
            found = OpenRound(one.round, one.attempt, event.time, one.deadline_s, one.slot)
        elif kind == "contributed" and found is not None and event.contributed.round == found.number:
            found.here.add(event.contributed.node)
        elif kind == "dropped" and found is not None and event.dropped.round == found.number:
            found.dropped[event.dropped.node] = f"{event.dropped.code}: {event.dropped.reason}"
        elif kind in {"round_committed", "slot_abandoned", "run_finished", "run_failed", "run_stopped"}:
            found = None
    return found


def epoch(events: Sequence[pb.Event]) -> pb.EpochStarted | None:
    """The newest sealing epoch that these events, oldest first, tell of."""
    found = [event.epoch_started for event in events if event.WhichOneof("what") == "epoch_started"]
    return found[-1] if found else None


def headline(
    run: pb.RunLine, opened: OpenRound | None, working: Mapping[str, pb.WorkProgress]
) -> tuple[str, str, dict[str, object]]:
    """(mood, key of the text, what stands in its braces). working: what nodes say they do, by name."""
    said: dict[str, object] = {
        "round": run.round,
        "rounds": run.rounds,
        "why": run.detail,
        "who": listed(run.waits_for),
    }
    mood = MOODS.get(run.status, "calm")
    if run.status == "running" and opened is not None:
        awaited = [name for name in run.cohort if name not in opened.here and name not in opened.dropped]
        said |= {"round": opened.number, "here": len(opened.here), "asked": len(run.cohort) or run.organizations}
        said["who"] = listed([f"{name} ({doing(working[name])})" if name in working else name for name in awaited], 3)
        if not awaited:
            return mood, "run.head.opening", said
        return mood, "run.head.round" if opened.here else "run.head.training", said
    if run.status == "paused":
        said |= {"who": run.paused_by or "?", "why": run.pause_reason}
    if run.status == "waiting" or (run.status in {"offering", "running"} and run.waits_for):
        said["why"] = run.waits_reason
        named = run.waits_for and all(name in run.waits_reason for name in run.waits_for)
        key = "run.head.waits" if named else "run.head.waiting"
        return "bad" if run.status == "waiting" else "warn", key, said
    said["count"] = run.short_rounds
    return mood, f"run.head.{run.status}" if run.status in MOODS else "run.head.unknown", said


def doing(work: pb.WorkProgress) -> str:
    """What a node says it does.

    >>> doing(pb.WorkProgress(phase="training", step=3, steps=20, seconds_left=95))
    'training, step 3 of 20, 1 min left'
    """
    words = TEXTS.get(f"phase.{work.phase or 'working'}", work.phase)
    if work.steps:
        words = TEXTS("work.step", doing=words, step=work.step, steps=work.steps)
    return TEXTS("work.left", doing=words, left=duration(work.seconds_left)) if work.seconds_left else words


def grid(run: pb.RunLine, rounds: Sequence[pb.RoundLine], opened: OpenRound | None) -> Grid:
    """The last rounds by organization."""
    shown = rounds[-GRID_ROUNDS:]
    by_round = [{one.organization: one for one in line.participation} for line in shown]
    names = sorted({*run.cohort, *(name for line in by_round for name in line)})
    numbers = [line.round for line in shown]
    if opened is not None:
        numbers.append(opened.number)
    rows = []
    for name in names:
        cells = [_cell(line.get(name)) for line in by_round]
        if opened is not None:
            cells.append(_open_cell(name, opened))
        rows.append((name, tuple(cells)))
    return Grid(tuple(numbers), tuple(rows))


def _cell(part: pb.Participation | None) -> Cell:
    if part is None:
        return Cell("not_asked")
    said = ": ".join(word for word in (part.code, part.reason) if word)
    return Cell(part.state if part.state in {"contributed", "dropped"} else "not_asked", said)


def _open_cell(name: str, opened: OpenRound) -> Cell:
    if name in opened.here:
        return Cell("contributed")
    return Cell("dropped", opened.dropped[name]) if name in opened.dropped else Cell("open")


def series(rounds: Sequence[pb.RoundLine]) -> dict[str, list[float | None]]:
    """Columns by name: round, every metric's mean, update_norm."""
    names = sorted({name for line in rounds for name in line.metrics})
    found: dict[str, list[float | None]] = {"round": [float(line.round) for line in rounds]}
    for name in names:
        found[name] = [line.metrics[name].mean if name in line.metrics else None for line in rounds]
    found["update_norm"] = [line.update_norm or None for line in rounds]
    return found


def dropped(rounds: Sequence[pb.RoundLine]) -> list[tuple[int, str, str]]:
    """(round, organization, why) of everybody who did not contribute although asked, newest first."""
    found = [
        (line.round, part.organization, ": ".join(word for word in (part.code, part.reason) if word))
        for line in rounds
        for part in line.participation
        if part.state == "dropped"
    ]
    return found[::-1]


def event_words(event: pb.Event) -> tuple[str, dict[str, object]]:
    """(key of the text, what stands in its braces) of an event; names and reasons are cleaned where they are shown."""
    kind = event.WhichOneof("what") or event.kind
    what: Any = getattr(event, kind, None)
    said: dict[str, object] = {}
    if what is not None:
        said = {field.name: value for field, value in what.ListFields() if isinstance(value, (str, int, float))}
    form = _FORMS.get(kind)
    if form is None:
        return "event.other", {"kind": kind.replace("_", " ")}
    return form(what, said)


Said = dict[str, object]


def _named(key: str, **zero: object) -> Callable[[Any, Said], tuple[str, Said]]:
    """A text that names fields of the event; zero: what is said of those that are empty, which do not travel."""
    return lambda what, said: (key, {**zero, **said})


def _answered(what: Any, said: Said) -> tuple[str, Said]:
    answer = "accepts" if what.accepted else "waits" if what.waiting else "prepares" if what.preparing else "refuses"
    return _because(f"event.{answer}", what.reason), {"node": what.node, "reason": what.reason}


def _because(key: str, reason: str) -> str:
    """The same text with a reason behind it, where there is one."""
    return f"{key}_because" if reason else key


_FORMS: Mapping[str, Callable[[Any, Said], tuple[str, Said]]] = {
    "offer_answered": _answered,
    "run_submitted": _named("event.submitted", administrator="?"),
    "run_started": lambda what, said: ("event.started", {"who": listed(what.nodes, 8)}),
    "epoch_started": lambda what, said: ("event.epoch", {"members": len(what.members), "slots": what.slots}),
    "round_started": lambda what, said: (
        "event.round_again" if what.attempt > 1 else "event.round", {"round": what.round, "attempt": what.attempt}
    ),
    "contributed": _named("event.contributed", round=0, node="?", bytes=0),
    "dropped": _named("event.dropped", round=0, node="?", code="", reason=""),
    "slot_abandoned": _named("event.abandoned", round=0, attempt=0, code="", reason=""),
    "round_committed": lambda what, said: (
        "event.committed", {"round": what.round, "there": len(what.contributors), "seconds": f"{what.seconds:.1f}"}
    ),
    "paused": lambda what, said: ("event.missing", {"round": what.round, "who": listed(what.missing, 8)}),
    "resumed": _named("event.returned", round=0),
    "run_paused": lambda what, said: (_because("event.paused", what.reason), {"by": what.by, "reason": what.reason}),
    "run_resumed": _named("event.resumed", by="?"),
    "run_waits": lambda what, said: (
        "event.waits_for" if what.waits_for else "event.waits_no_more",
        {"who": listed(what.waits_for, 8), "reason": what.reason},
    ),
    "run_failed": _named("event.failed", code="", reason=""),
    "run_stopped": _named("event.stopped", round=0),
    "run_deleted": _named("event.deleted", by="?"),
    "run_finished": _named("event.finished", rounds=0),
    "run_cosigned": lambda what, said: ("event.cosigned" if what.complete else "event.cosigned_more", {"by": what.by}),
}  # fmt: skip
