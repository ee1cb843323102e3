"""What a node measures of the model that it received."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from confide.errors import TrainingError
from confide.methods.base import Example, Method
from confide.models.arithmetic import precision
from confide.runs.metrics import Metric
from confide.runs.specification import Specification

from confide_client.progress import Phase, tell


def evaluate(
    specification: Specification, method: Method, model: Any, examples: Sequence[Example], support: Sequence[Example]
) -> dict[Metric, float]:
    """The method's metrics on the node's evaluation examples; none without examples.

    support: training examples, for methods that learn from them in context. Raises TrainingError for NaN or infinity.
    """
    if not examples:
        return {}
    tell(Phase.EVALUATING)
    training = specification.training
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad(), precision.autocast(specification, device):
        metrics = method.evaluate(model, examples, support, training.micro_batch_size)
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise TrainingError(f"the received model evaluates to NaN or infinity ({bad[0]}); it is not trained on")
    return metrics
