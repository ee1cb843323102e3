"""DPO over four organizations against DPO on their pairs pooled: as many pairs seen, the product's own steps.

SmolLM2-135M on llamafactory's dpo_en_demo, whose chosen answers are no longer than the rejected on the whole. Few
pairs and short texts, so that it fits into minutes on two cores: what is compared is the two arms, not a good model.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confide.methods.reference import FILE_NAME
from confide.models.store import folder_digest
from confide.models.trainable import initial_state, load_trainable
from confide.proto import fleet_pb2
from confide.rounds.outer_step import OuterStep
from confide.runs.specification import Specification, parse_document
from confide_client.training import LocalTrainer
from numpy.typing import NDArray

from confide_simulations import assets

NODES, EACH, HELD_OUT = 4, 32, 60
ROUNDS, STEPS, BATCH, LENGTH, BETA, FIRST_LAYER = 4, 2, 4, 64, 0.1, 18
Pairs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Shard:
    """confide_client.training.LocalData."""

    train: Pairs
    evaluation: Pairs = field(default_factory=list)
    digest: str = ""


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Held-out accuracy and margin of both arms and of the base, with the interval of their difference."""
    base, records = assets.smollm2(say), assets.preference_pairs(say)
    order = np.random.default_rng(7).permutation(len(records))
    held = [records[i] for i in order[:HELD_OUT]]
    rest = [records[i] for i in order[HELD_OUT : HELD_OUT + NODES * EACH]]
    margins = {}
    with tempfile.TemporaryDirectory() as work:
        arms = (("federated", [rest[n * EACH : (n + 1) * EACH] for n in range(NODES)]), ("central", [rest]))
        for name, shards in arms:
            say(f"DPO, {name}: {ROUNDS} rounds")
            folder = _folder(work, name)
            margins[name] = _trained(base, shards, held, folder, steps=STEPS * NODES // len(shards))
            # Both arms have one reference and the same pairs: what it makes of them is computed once.
            shutil.copy(folder / "0" / FILE_NAME, work)
    difference = (margins["federated"] > 0).astype(float) - (margins["central"] > 0)
    half = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return {
        "pairs": len(rest), "held_out": len(held), "rounds": ROUNDS, "max_length": LENGTH,
        **{
            name: {"accuracy": float((found > 0).mean()), "margin": float(BETA * found.mean())}
            for name, found in margins.items()
        },
        "federated_minus_central": [float(difference.mean()), float(difference.mean() - half),
                                    float(difference.mean() + half)],
    }  # fmt: skip


def _specification(sha256: str, steps: int) -> Specification:
    return parse_document(
        {
            "version": 1, "name": "dpo", "seed": 7, "reproducible": True, "model": {"sha256": sha256},
            "method": {"name": "dpo", "max_length": LENGTH, "beta": BETA},
            "adapter": {"rank": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"], "first_layer": FIRST_LAYER},
            "training": {"local_steps": steps, "batch_size": BATCH, "micro_batch_size": BATCH, "learning_rate": 1e-3},
            "federation": {"rounds": ROUNDS, "data": "pairs"}, "sealing": {"kind": "none"},
        },
        "the benchmark's run",
    )  # fmt: skip


def _trained(base: Path, shards: Sequence[Pairs], held: Pairs, work: Path, *, steps: int) -> NDArray[np.float64]:
    """(held-out pairs,): by how much more the chosen answer gained than the rejected one, in nats."""
    specification = _specification(folder_digest(base), steps)
    folders = [_folder(work, number) for number in range(len(shards))]
    if (known := work.parent / FILE_NAME).exists():
        shutil.copy(known, folders[0])
    first = LocalTrainer(specification, base, node="node-0", folder=folders[0])
    trainers = [first, *(first.for_node(f"node-{folder.name}", folder) for folder in folders[1:])]
    data = [Shard(shard) for shard in shards]
    model = first.schema.flatten(initial_state(specification, base))
    outer = OuterStep(specification.federation.outer, b"")
    for number in range(1, ROUNDS + 1):
        slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
        updates = [one.contribute(model, shard, slot).update for one, shard in zip(trainers, data, strict=True)]
        model = outer.apply(model, np.sum(updates, axis=0), float(len(updates)))
    return _margins(first, model, held)


def _folder(parent: str | Path, name: str | int) -> Path:
    folder = Path(parent) / str(name)
    folder.mkdir(mode=0o700)
    return folder


def _margins(trainer: LocalTrainer, model: NDArray[np.float32], held: Pairs) -> NDArray[np.float64]:
    method: Any = trainer.method
    load_trainable(trainer.model, trainer.schema.unflatten(model))
    trainer.model.eval()
    examples = method.prepare(held)
    found = []
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            batch = method.collate(examples[start : start + BATCH], seed=0)
            found.append(method.margins(trainer.model, batch).double())
    method.finish()
    return np.asarray(torch.cat(found).numpy(), dtype=np.float64)
