"""Where an answer comes from: every step from the base models to the words, with what pins it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One thing that was made. facts: (name, value) that pin it; made_from: keys of steps; good: False in red."""

    key: str
    kind: str
    title: str
    facts: Sequence[tuple[str, str]]
    made_from: Sequence[str] = ()
    good: bool = True


@dataclass(frozen=True)
class Lineage:
    """rows: steps that stand beside each other, in the order in which they were made.

    ledgers: a table. base, answer: what the two models say.
    """

    rows: Sequence[Sequence[Step]]
    ledgers: Sequence[Mapping[str, str]]
    question: str
    base: str
    answer: str
    quoted: str
    notes: Sequence[str] = field(default_factory=tuple)

    def check(self) -> None:
        """Raise ValueError for a step that was made from nothing that stands above it."""
        known: set[str] = set()
        for row in self.rows:
            for step in row:
                if missing := set(step.made_from) - known:
                    raise ValueError(f"{step.key} is made from {', '.join(sorted(missing))}, which is not above it")
            known |= {step.key for step in row}
