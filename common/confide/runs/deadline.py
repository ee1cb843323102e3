"""How long a node may take to train and upload, from what the nodes measured of themselves; and who is too slow.

A node that accepts a run says how long a round takes it, measured on made-up records. The coordinator gives every slot
`deadline_factor` times what the slowest of them said, and never more than the signed specification allows, whatever a
node claims. A node that needs longer than that refuses beforehand, and names what would do.

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> example = parse_toml(EXAMPLE)
>>> step_deadline_s(example, [100.0, 40.0], model_bytes=0), step_deadline_s(example, [1e9], model_bytes=0)
(300.0, 3600.0)
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from confide.errors import ConfideError
from confide.runs.specification import Specification

FLOOR_S = 60.0
"""A round that takes a moment may yet wait for a busy machine."""
UNMEASURED_S = 600.0
"""For nodes that say nothing of their speed."""
SLOW_LINE_BYTES_PER_S = 2**20
"""A model comes and an update goes at least this fast, or the deadline must be longer by hand."""
MOST_CLAIMED_S = 30 * 24 * 3600.0
MARGIN = 1.5
"""A deadline this many times a round's measured time would do."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """step_s: of one optimizer step over the specified batch. evaluation_s: of one evaluation record."""

    step_s: float
    evaluation_s: float

    def round_s(self, specification: Specification, evaluation_records: int) -> float:
        """Of the largest round, evaluation of the received model included where the run has one."""
        evaluated = evaluation_records if specification.privacy.unit == "none" else 0
        return specification.training.local_steps * self.step_s + evaluated * self.evaluation_s


class TooSlow(ConfideError):
    """This machine cannot do a round of the run within its deadline."""

    @property
    def code(self) -> str:
        return "TOO_SLOW"


def step_deadline_s(specification: Specification, measured_s: Collection[float], model_bytes: int) -> float:
    """Of every slot. measured_s: of each node that takes part, what a round takes it; 0 for one that did not measure.

    Guarantee: at most `longest_deadline_s` (or exactly `step_deadline_s`, where that is set), against nodes that claim
    anything.
    """
    federation = specification.federation
    if federation.step_deadline_s is not None:
        return federation.step_deadline_s
    known = [seconds for seconds in measured_s if seconds > 0]
    needed = max(FLOOR_S, federation.deadline_factor * max(known, default=0.0))
    if len(known) < len(measured_s) or not known:
        needed = max(needed, UNMEASURED_S)
    return min(needed + 2 * model_bytes / SLOW_LINE_BYTES_PER_S, federation.longest_deadline_s)


def claimed_s(seconds: float) -> float:
    """What a node said of a round, fit to calculate with and to show: 0, not measured, for what is no time."""
    return min(seconds, MOST_CLAIMED_S) if math.isfinite(seconds) and seconds > 0 else 0.0


def refuse_too_slow(specification: Specification, round_s: float) -> None:
    """Raise TooSlow when a round that takes `round_s` cannot end before the run's deadline.

    Neither the text nor the number follows from records: round_s was measured on made-up ones.
    """
    federation = specification.federation
    limit = federation.deadline_limit_s
    if round_s <= limit:
        return
    field = "longest_deadline_s" if federation.step_deadline_s is None else "step_deadline_s"
    raise TooSlow(
        f"a round takes this node about {round_s:.0f} s, measured on made-up records of full length; the run's "
        f"deadline is {limit:g} s. federation.{field} = {math.ceil(MARGIN * round_s / 10) * 10} would do, or fewer "
        "training.local_steps"
    )
