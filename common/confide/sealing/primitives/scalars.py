"""What travels beside the update as exact integers: the weight, and each metric with a flag that it was reported.

The order is fixed by the installed enumeration: weight, then per metric of roles.Metric its value and its flag.

>>> from confide.runs.contribution import Contribution
>>> import numpy as np
>>> one = encode(Contribution(np.zeros(0, np.float32), weight=1.0, metrics={Metric.TRAIN_LOSS: 2.5}))
>>> two = encode(Contribution(np.zeros(0, np.float32), weight=0.5))
>>> weight, metrics = decode([a + b for a, b in zip(one, two)], contributors=2)
>>> weight, {name.value: (round(total, 6), count) for name, (total, count) in metrics.items()}
(1.5, {'train_loss': (2.5, 1)})
"""

import math
from collections.abc import Mapping, Sequence

from confide.errors import FailureName, ProtocolFailure
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric

FULL = 2**32 - 2
"""The integer of a weight of 1, and of a metric at its ceiling: even, so that a half is exact."""
COUNT = 1 + 2 * len(Metric)


def check_weight(weight: float) -> None:
    """Raise SUM_OUT_OF_RANGE unless 0 < weight <= 1."""
    if not (math.isfinite(weight) and 0.0 < weight <= 1.0):
        raise ProtocolFailure(FailureName.SUM_OUT_OF_RANGE, f"weight is {weight}; it must be above 0 and at most 1")


def checked_metrics(metrics: Mapping[Metric, float]) -> dict[Metric, float]:
    """The metrics in enumeration order, clipped to their ranges. Raises METRIC_NOT_ALLOWED for anything else."""
    for name, value in metrics.items():
        if not isinstance(name, Metric):
            raise ProtocolFailure(FailureName.METRIC_NOT_ALLOWED, f"{name!r} is not an installed metric")
        if not math.isfinite(value):
            raise ProtocolFailure(FailureName.METRIC_NOT_ALLOWED, f"{name.value} is {value}; leave it out instead")
    return {name: min(max(metrics[name], 0.0), name.ceiling) for name in Metric if name in metrics}


def encode(contribution: Contribution) -> list[int]:
    """COUNT integers in [0, 2^32): weight, then value and flag of each metric; an absent metric is 0, 0."""
    check_weight(contribution.weight)
    metrics = checked_metrics(contribution.metrics)
    integers = [max(1, round(contribution.weight * FULL))]
    for name in Metric:
        integers += [round(metrics[name] / name.ceiling * FULL), 1] if name in metrics else [0, 0]
    return integers


def decode(
    sums: Sequence[int], contributors: int, *, uniform: bool = False
) -> tuple[float, dict[Metric, tuple[float, int]]]:
    """Weight sum and (sum of values, number that reported) per metric, from the opened integer sums.

    uniform: every weight is 1 by the specification, so that their sum is known exactly.
    Raises SUM_OUT_OF_RANGE for sums that `contributors` honest nodes cannot make.
    """
    if len(sums) != COUNT:
        raise ProtocolFailure(FailureName.SUM_OUT_OF_RANGE, f"{len(sums)} scalars were opened, not {COUNT}")
    if not 1 <= sums[0] <= contributors * FULL:
        raise _out_of_range("the weight", sums[0], contributors)
    if uniform and sums[0] != contributors * FULL:
        raise ProtocolFailure(
            FailureName.SUM_OUT_OF_RANGE,
            f"the opened sum of the weights is {sums[0]}; {contributors} contributors of weight 1 make exactly "
            f"{contributors * FULL}. Somebody in the sum sent another weight, and who cannot be seen; nothing of it is "
            "used",
        )
    metrics: dict[Metric, tuple[float, int]] = {}
    for name, total, count in zip(Metric, sums[1::2], sums[2::2], strict=True):
        if count > contributors or total > count * FULL:
            raise _out_of_range(name.value, total, contributors)
        if count:
            metrics[name] = (total / FULL * name.ceiling, count)
    return sums[0] / FULL, metrics


def _out_of_range(what: str, total: int, contributors: int) -> ProtocolFailure:
    return ProtocolFailure(
        FailureName.SUM_OUT_OF_RANGE,
        f"the opened sum of {what} is {total}, more than {contributors} contributors can make; nothing of it is used",
    )
