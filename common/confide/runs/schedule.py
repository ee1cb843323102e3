"""What follows from a run's schedule: the learning rate of a step, and the clipping norm of a round.

Under a cosine the last rounds' updates are many times shorter than the first ones'. One clip for all either cuts the
first or rounds the last to nothing but its own error. `federation.clip_schedule = "learning_rate"` lets the clip, and
with it the step of sealed coordinates, shrink as updates do. Both sides calculate it from the signed specification.

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> clip_norm(parse_toml(EXAMPLE), round=1)
12.0
"""

import math
from bisect import bisect_left

from confide.errors import SpecificationError
from confide.runs.specification import Specification

_GRID = 1024
_SMALLEST = 64


def learning_rate(specification: Specification, global_step: int) -> float:
    """Of the step `global_step` (0-based over all rounds): linear warm-up, then constant or a cosine down to zero."""
    training = specification.training
    if global_step < training.warmup_steps:
        return training.learning_rate * (global_step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.learning_rate
    total = specification.steps_before(specification.federation.rounds + 1)
    progress = (global_step - training.warmup_steps) / max(1, total - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def clip_norm(specification: Specification, round: int) -> float:
    """L2 norm to which a node scales its update of this round (1-based) down. Raises SpecificationError without one.

    With clip_schedule "learning_rate": federation.clip_norm is that of training.local_steps steps at the full rate, and
    a round's share of it is sqrt(sum of its steps' squared rates / (local_steps * learning_rate^2)), that of a random
    walk with such steps: proportional to the rate, and not too narrow for a round of few steps. It is rounded to
    1/1024, so that machines whose cosine differs in the last digit agree, and at least 1/16, so that what error
    feedback carries out of longer rounds finds its way.
    """
    federation = specification.federation
    if federation.clip_norm is None:
        raise SpecificationError("federation.clip_norm is missing; updates are clipped to it, for example 10.0")
    if federation.clip_schedule == "constant":
        return federation.clip_norm
    return federation.clip_norm * _share(specification, round) / _GRID


def _share(specification: Specification, round: int) -> int:
    """Of clip_norm, in 1/1024."""
    first, last = specification.steps_before(round), specification.steps_before(round + 1)
    squares = math.fsum(learning_rate(specification, step) ** 2 for step in range(first, last))
    share = math.sqrt(squares / specification.training.local_steps) / specification.training.learning_rate
    return min(_GRID, max(_SMALLEST, math.floor(share * _GRID + 0.5)))


def describe_clip(specification: Specification) -> str:
    """What `clip_norm` gives over the run, for its plan. Raises SpecificationError without a clip."""
    federation = specification.federation
    if federation.clip_schedule == "constant":
        return f"clip: an update's L2 norm is at most {clip_norm(specification, round=1):g} in every round"
    last, whole = federation.rounds, min(federation.rounds, federation.warm_start_rounds + 1)
    said = (f"{clip_norm(specification, round=number):.3g} in round {number}" for number in sorted({1, whole, last}))
    text = (
        f"clip: an update's L2 norm is at most {', '.join(said)}, as the learning rate of its steps; "
        f"never below 1/{_GRID // _SMALLEST} of clip_norm"
    )
    # Beyond warm start and warm-up the rate only falls, and so does the clip.
    warmed = specification.training.warmup_steps
    falling = [number for number in range(whole, last + 1) if specification.steps_before(number) >= warmed]
    at_floor = bisect_left(falling, True, key=lambda number: _share(specification, number) == _SMALLEST)
    return text + (f", so from round {falling[at_floor]} on" if at_floor < len(falling) else "")
