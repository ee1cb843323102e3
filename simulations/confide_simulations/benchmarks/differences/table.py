"""What two sums tell of one organization, where nothing stops a coordinator from subtracting them.

One federation without sealing, since a sealed sum is that sum: nodes train, the mean update makes the next model. The
first sum is over everybody; the second, so many rounds later, over all but one, over all but its block, or over all but
one under organization-level privacy. Each is compared with what the missing organization contributed to the first sum.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from confide.privacy.organization import organization_plan
from confide.proto import fleet_pb2
from confide.runs.specification import EXAMPLE, Specification, parse_toml
from numpy.typing import NDArray

from confide_simulations.benchmarks.differences.training import Learner
from confide_simulations.benchmarks.differences.world import cosine, specify

FIRST_ROUND = 3
BLOCK = 4
"""Organizations of a block in the table; with four in all there is one block."""
EPSILON, DELTA, ROUNDS = 8.0, 1e-5, 50
CLIP = 4.0
Vector = NDArray[np.float32]
Row = dict[str, Any]


def rows(members: Sequence[int], steps: Sequence[int], apart: Sequence[int], seeds: Sequence[int]) -> Iterator[Row]:
    """One for each number of members, local steps and rounds apart; means over seeds."""
    for count in members:
        for local in steps:
            found = [_federation(count, local, apart, seed) for seed in seeds]
            for between in apart:
                yield {"members": count, "local_steps": local, "rounds_apart": between} | {
                    kind: _means([each[between][kind] for each in found]) for kind in found[0][between]
                }


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([each[name] for each in found])), 4) for name in found[0]}


def _federation(count: int, steps: int, apart: Sequence[int], seed: int) -> dict[int, dict[str, dict[str, float]]]:
    """By rounds apart and kind of protection: cosine, relative error, metric error of the best guess at hand.

    The guess is the difference over the number of members that the second sum lacks. "one_sum" is what the first sum
    alone tells, its mean as a guess at each: what is left when differences tell nothing.
    """
    names = tuple(f"hospital-{number:02d}" for number in range(count))
    learner, specification = Learner(names, steps=steps, seed=seed), specify(differences="accepted")
    random = np.random.default_rng(seed)
    found: dict[int, dict[str, dict[str, float]]] = {}
    with TemporaryDirectory() as folder:
        model, first = learner.first, {}
        losses: dict[str, float] = {}
        for number in range(1, FIRST_ROUND + max(apart) + 1):
            slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
            made = _train(learner, specification, model, slot, Path(folder))
            if number == FIRST_ROUND:
                first, losses = made, {name: learner.loss(model, name) for name in names}
            if number - FIRST_ROUND in apart:
                again = made
                if number == FIRST_ROUND:
                    slot = fleet_pb2.SlotOpen(slot=1000, round=number, attempt=2)
                    again = _train(learner, specification, model, slot, Path(folder))
                now = {name: learner.loss(model, name) for name in names}
                found[number - FIRST_ROUND] = _compare(names, (first, losses), (again, now), random)
            mean = np.mean(list(made.values()), axis=0)
            model = (np.frombuffer(model, "<f4") + mean).astype("<f4").tobytes()
    return found


def _train(
    learner: Learner, specification: Specification, model: bytes, slot: fleet_pb2.SlotOpen, folder: Path
) -> dict[str, Vector]:
    made = {}
    for name in learner.names:
        update = learner.train(specification, model, name, slot, folder / name)
        made[name] = update * np.float32(min(1.0, CLIP / float(np.linalg.norm(update))))
    return made


def _compare(
    names: Sequence[str],
    first: tuple[dict[str, Vector], dict[str, float]],
    second: tuple[dict[str, Vector], dict[str, float]],
    random: np.random.Generator,
) -> dict[str, dict[str, float]]:
    missing, truth = names[-1], first[0][names[-1]]
    block = set(names[-BLOCK:]) if len(names) > BLOCK else set()

    def against(left_out: set[str], noise: float = 0.0) -> dict[str, float]:
        kept = [name for name in names if name not in left_out]
        difference = np.sum(list(first[0].values()), axis=0) - np.sum([second[0][name] for name in kept], axis=0)
        difference = difference + random.normal(scale=noise * np.sqrt(2), size=difference.shape)
        guess = difference / max(1, len(left_out))
        metric = sum(first[1].values()) - sum(second[1][name] for name in kept)
        result = {
            "cosine": cosine(difference.astype(np.float32), truth),
            "relative_error": _error(guess, truth),
        }
        told = metric / max(1, len(left_out))
        # Under privacy no metric leaves.
        return result if noise else result | {"metric_error": abs(told - first[1][missing]) / first[1][missing]}

    mean = np.mean(list(first[0].values()), axis=0)
    loss = sum(first[1].values()) / len(names)
    alone = {
        "cosine": cosine(mean, truth),
        "relative_error": _error(mean, truth),
        "metric_error": abs(loss - first[1][missing]) / first[1][missing],
    }
    noised = against({missing}, noise_stddev(len(names), len(truth)))
    return {"one_missing": against({missing}), "blocks": against(block), "organization_privacy": noised} | {
        "one_sum": alone
    }


def _error(guess: NDArray[np.floating], truth: Vector) -> float:
    return float(np.linalg.norm(guess - truth) / np.linalg.norm(truth))


def noise_stddev(members: int, trained: int) -> float:
    """Of each coordinate of a sum, by the product's own plan for a run of 50 rounds at epsilon 8."""
    text = EXAMPLE.replace("rounds = 3", f"rounds = {ROUNDS}").replace("clip_norm = 12.0", f"clip_norm = {CLIP}")
    privacy = f'[privacy]\nunit = "organization"\nepsilon = {EPSILON}\ndelta = {DELTA}\nclip = {CLIP}\n'
    return organization_plan(parse_toml(f"{text}\n{privacy}"), members=members, trained=trained).noise_stddev
