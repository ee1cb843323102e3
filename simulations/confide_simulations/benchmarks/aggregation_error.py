"""How far is the averaged adapter from the mean of the nodes' own products BA, after real local training?

The demo's task: four organizations with the construction FAQ by category, LoRA on SmolLM2. Each scheme of aggregation
trains the same nodes on the same batches; after each round the product of what was averaged is compared, in float64
and before any quantisation, with the mean of the products that the nodes trained.

    errors = aggregation_errors(seed=1)        # {"average": 0.2, "ffa": 1e-8, ...}
    sent = communicated_bytes()                # {"average": {"none": ..., "sealed": ...}, ...}
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from confide.codec.tensors import TensorSchema
from confide.proto import fleet_pb2
from confide.runs.specification import Adapter, Specification
from confide_client.datasets import LocalData
from numpy.typing import NDArray

from confide_simulations.demo.job import specification
from confide_simulations.demo.shards import split_by_category

Say = Callable[[str], None]
SCHEMES: tuple[str, ...] = get_args(Adapter.model_fields["aggregation"].annotation)
NODES, ROUNDS, LOCAL_STEPS = 4, 2, 3


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
    data = {name: LocalData(train=list(records), evaluation=[]) for name, records in shards.items()}
    errors = {}
    for scheme in SCHEMES:
        errors[scheme] = error_of(_specification(folder, scheme, seed, rounds), folder, data)
        say(f"aggregation {scheme}: relative error {errors[scheme]:.2e}")
    return errors


def error_of(spec: Specification, base: Path, data: dict[str, LocalData]) -> float:
    """The largest error over the rounds of one run, whose nodes take turns on one loaded model."""
    from confide.models.aggregation import after_round
    from confide.models.trainable import initial_state
    from confide_client.training import LocalTrainer

    with tempfile.TemporaryDirectory() as folder:
        first = LocalTrainer(spec, base, node="", folder=Path(folder), threads=1)
        trainers = {name: first.for_node(name, Path(folder) / name) for name in data}
        model, worst = first.schema.flatten(initial_state(spec, base)), 0.0
        for number in range(1, spec.federation.rounds + 1):
            slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
            trained = [
                model.astype(np.float64) + trainer.contribute(model, data[name], slot).update
                for name, trainer in trainers.items()
            ]
            averaged: NDArray[np.float64] = np.mean(trained, axis=0)
            worst = max(worst, product_error(spec, base, first.schema, averaged, trained))
            state = first.schema.unflatten(averaged.astype(np.float32))
            model = first.schema.flatten(after_round(spec, state))
    return worst


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


def communicated_bytes(*, base: Path | None = None, say: Say = quiet) -> dict[str, dict[str, int]]:
    """By scheme, bytes that one node uploads in a run of ROUNDS rounds: {"none": unsealed, "sealed": at 16 bits}."""
    from confide_simulations import assets

    folder = base or assets.smollm2(say)
    return {scheme: _bytes_of(_specification(folder, scheme, 0, ROUNDS), folder) for scheme in SCHEMES}


def _bytes_of(spec: Specification, base: Path) -> dict[str, int]:
    from confide.models.trainable import schema_of
    from confide.models.travel import Travel
    from confide.runs.plan import upload_bytes

    travel = Travel(spec, schema_of(spec, base))
    counts = [travel.count(number) for number in range(1, ROUNDS + 1)]
    sealed = spec.model_copy(update={"sealing": spec.sealing.model_copy(update={"kind": "sealed"})})
    return {
        "none": sum(upload_bytes(spec, NODES, count) for count in counts),
        "sealed": sum(upload_bytes(sealed, NODES, count) for count in counts),
    }


def _specification(base: Path, scheme: str, seed: int, rounds: int) -> Specification:
    from confide.models.architecture import load_config

    config = load_config(base)
    return specification(
        sha256="0" * 64,
        name="base",
        dtype="bfloat16" if "bfloat16" in str(config.dtype) else "float32",
        layers=int(config.num_hidden_layers),
        rounds=rounds,
        nodes=NODES,
        sealing="none",
        aggregation=scheme,
        local_steps=LOCAL_STEPS,
        seed=seed,
    )
