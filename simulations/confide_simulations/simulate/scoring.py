"""The models of a run on held-out records that no node has seen: one figure that runs can be compared by."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from confide.models.store import require_base
from confide.proto import fleet_pb2
from confide.runs.sections import Privacy
from confide.runs.specification import Specification
from confide.tokenizer.counting import texts_of
from confide.tokenizer.export import bytes_per_token, finished
from confide.tokenizer.state import parse_state
from confide.tokenizer.terms import Terms
from confide_client.data.datasets import LocalData
from confide_client.training import LocalTrainer

BYTES_PER_TOKEN = "bytes_per_token"
MOST = 20
"""Models of a run that are scored, unless another number is asked for: the first, the last, and some evenly between."""


def scored_rounds(rounds: int, most: int = MOST) -> list[int]:
    """Which models are scored, 0 being the first one.

    >>> scored_rounds(3), len(scored_rounds(500)), scored_rounds(500)[-1]
    ([0, 1, 2, 3], 20, 500)
    """
    return sorted({round(float(place)) for place in np.linspace(0, rounds, min(rounds + 1, most))})


def score(
    specification: Specification, base: Path | None, held_out: Sequence[Mapping[str, Any]], models: Mapping[int, bytes]
) -> Iterator[tuple[int, dict[str, float]]]:
    """(round, metrics) of each model, as a node evaluates a received one; nothing is trained. Of a tokenizer's
    states: BYTES_PER_TOKEN.

    models: raw trainable tensors by round. Held-out records are the researcher's, so that privacy of the run, which
    forbids nodes to evaluate, does not matter here.
    """
    if not specification.trains_model:
        texts = [text for record in held_out for text in texts_of(record)]
        for number, raw in models.items():
            state = parse_state(raw, Terms.of(specification))
            yield number, {BYTES_PER_TOKEN: bytes_per_token(finished(state, specification.tokenizer), texts)}
        return
    public = specification.model_copy(update={"privacy": Privacy()})
    data = LocalData(train=[], evaluation=held_out)
    slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1, evaluate_only=True)
    with tempfile.TemporaryDirectory(prefix="confide-scoring-") as folder:
        trainer = LocalTrainer(public, require_base(public, base), node="researcher", folder=Path(folder))
        for number, raw in models.items():
            metrics = trainer.contribute(trainer.schema.decode(raw), data, slot).metrics
            yield number, {metric.value: float(value) for metric, value in metrics.items()}
