"""How far is the averaged adapter from the mean of the nodes' own products BA, after real local training?

The demo's task: four organizations with the construction FAQ by category, LoRA on SmolLM2. Each scheme of aggregation
trains the same nodes on the same batches; after each round the product of what was averaged is compared, in float64
and before any quantisation, with the mean of the products that the nodes trained.

    errors = aggregation_errors(seed=1)        # {"average": 0.2, "ffa": 1e-8, ...}
    sent = communicated_bytes(spec, base)      # {"none": ..., "sealed": ...}
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from confide.codec.tensors import TensorSchema
from confide.runs.sections import Adapter
from confide.runs.specification import Specification
from numpy.typing import NDArray

from confide_simulations.benchmarks.aggregation.federation import NODES, InTurn, Record, Round, demo_specification
from confide_simulations.demo.shards import split_by_category

Say = Callable[[str], None]
SCHEMES: tuple[str, ...] = get_args(Adapter.model_fields["aggregation"].annotation)
ROUNDS, LOCAL_STEPS = 2, 3


def quiet(_: str) -> None:
    """Says nothing."""


def aggregation_errors(
    seed: int, *, rounds: int = ROUNDS, base: Path | None = None, say: Say = quiet
) -> dict[str, float]:
    """By scheme, the largest relative error over the rounds, in Frobenius norm over all adapted layers together.

    base: a model folder instead of SmolLM2. About two CPU-minutes with SmolLM2.
    """
    from confide_simulations import assets

    folder = base or assets.smollm2(say)
    shards = split_by_category(assets.construction_faq(say), nodes=NODES).shards
    errors = {}
    for scheme in SCHEMES:
        spec = demo_specification(folder, aggregation=scheme, local_steps=LOCAL_STEPS, seed=seed, rounds=rounds)
        errors[scheme] = error_of(spec, folder, shards)
        say(f"aggregation {scheme}: relative error {errors[scheme]:.2e}")
    return errors


def error_of(spec: Specification, base: Path, shards: Mapping[str, Sequence[Record]]) -> float:
    """The largest error over the rounds of one run."""
    with tempfile.TemporaryDirectory() as folder:
        federation = InTurn(spec, base, shards, Path(folder))
        return max(error_in(federation, base, done) for done in federation.rounds())


def error_in(federation: InTurn, base: Path, done: Round) -> float:
    """The error of one round's average."""
    return product_error(federation.specification, base, federation.schema, done.averaged, done.trained)


def product_error(
    spec: Specification,
    base: Path,
    schema: TensorSchema,
    averaged: NDArray[np.floating],
    trained: Sequence[NDArray[np.floating]],
) -> float:
    """|| BA of the average - mean of the nodes' BA || / || mean of the nodes' BA ||, over all adapted layers."""
    from confide.models.trainable import lora_matrices

    ours = lora_matrices(spec, base, schema.unflatten(averaged))
    nodes = [lora_matrices(spec, base, schema.unflatten(one)) for one in trained]
    difference = size = 0.0
    for target, (a, b) in ours.items():
        true = torch.stack([one[target][1].double() @ one[target][0].double() for one in nodes]).mean(0)
        difference += float((b.double() @ a.double() - true).square().sum())
        size += float(true.square().sum())
    return float(np.sqrt(difference / size)) if size else 0.0


def communicated_bytes(spec: Specification, base: Path) -> dict[str, int]:
    """Bytes that one node uploads in a whole run: {"none": unsealed, "sealed": at the run's bits}."""
    from confide.models.sent_coordinates import SentCoordinates
    from confide.models.trainable import schema_of
    from confide.planning.run_plan import upload_bytes

    coordinates = SentCoordinates(spec, schema_of(spec, base))
    counts = [coordinates.count(number) for number in range(1, spec.federation.rounds + 1)]
    kinds = {
        kind: spec.model_copy(update={"sealing": spec.sealing.model_copy(update={"kind": kind})})
        for kind in ("none", "sealed")
    }
    return {kind: sum(upload_bytes(one, NODES, count) for count in counts) for kind, one in kinds.items()}
