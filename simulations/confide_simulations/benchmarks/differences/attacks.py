"""The attacks by which a lying coordinator comes to two sums that differ by one organization.

Each attack is played against real nodes (differences_world.py). It returns the two sums' difference and what that
would show: the update, counts or metric of the organization that one of them lacks. Nodes that refuse differences end
it with Refused; `Attack.refusal` says by which failure.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confide.runs.specification import Specification, parse_toml
from numpy.typing import NDArray

from confide_simulations.benchmarks.differences.world import Refused, Sum, World, cosine, specify

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """A difference of two sums, and what the organization contributed that it is to show."""

    difference: Vector
    truth: Vector


@dataclass(frozen=True)
class Attack:
    """One way to two sums. nodes: of the consortium; blocks, groups: as the roster has them."""

    play: Callable[[World], Shown]
    refusal: str
    nodes: int = 4
    blocks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def world(self, folder: Path, *, differences: str = "refused", reproducible: bool = False) -> World:
        """Where it is played."""
        names = [f"hospital-{number:02d}" for number in range(self.nodes)]
        return World(
            folder, nodes=self.nodes, differences=differences, reproducible=reproducible,
            blocks=dict(zip(names, self.blocks, strict=False)), groups=dict(zip(names, self.groups, strict=False)),
            group=self.groups[0] if self.groups else "",
        )  # fmt: skip


def _shown(world: World, whole: Sum, less: Sum, missing: str) -> Shown:
    update, metric = world.truth[missing]
    if len(whole.update):
        return Shown(whole.update - less.update, update)
    return _told(whole, less, metric)


def _told(whole: Sum, less: Sum, metric: float) -> Shown:
    return Shown(np.array([whole.metric - less.metric], np.float32), np.array([metric], np.float32))


def _last(world: World) -> str:
    return world.names[-1]


def _attempt_twice(world: World) -> Shown:
    run = world.run("a")
    whole = world.sum(run, round=1)
    truth = dict(world.truth)
    less = world.sum(run, round=1, without={_last(world)})
    world.truth = truth
    return _shown(world, whole, less, _last(world))


def _second_attempt(world: World) -> Shown:
    run = world.run("a")
    whole = world.sum(run, round=1)
    truth = dict(world.truth)
    less = world.sum(run, round=1, attempt=2, present=_others(world))
    world.truth = truth
    return _shown(world, whole, less, _last(world))


def _second_run(world: World) -> Shown:
    whole = world.sum(world.run("a"), round=1)
    truth = dict(world.truth)
    less = world.sum(world.run("b"), round=1, without={_last(world)})
    world.truth = truth
    return _shown(world, whole, less, _last(world))


def _overlapping_run(world: World) -> Shown:
    whole = world.sum(world.run("a"), round=1)
    smaller = specify(differences=world.differences, reproducible=world.reproducible, named=_others(world))
    less = world.sum(world.run("b", specification=smaller), round=1, present=_others(world))
    return _shown(world, whole, less, _last(world))


def _one_ulp(world: World) -> Shown:
    run = world.run("a")
    whole = world.sum(run, round=1)
    truth = dict(world.truth)
    one_ulp = np.zeros(world.learner.size, np.float32)
    one_ulp[0] = np.spacing(np.frombuffer(world.model, "<f4")[0])
    world.step_by(one_ulp)
    less = world.sum(run, round=2, without={_last(world)})
    world.truth = truth
    return _shown(world, whole, less, _last(world))


def _two_evaluations(world: World) -> Shown:
    run = world.run("a")
    whole = world.sum(run, round=1, evaluate_only=True)
    less = world.sum(run, round=2, without={_last(world)}, evaluate_only=True)
    return _shown(world, whole, less, _last(world))


def _evaluation_after_training(world: World) -> Shown:
    run = world.run("a")
    whole = world.sum(run, round=1)
    less = world.sum(run, round=2, without={_last(world)}, evaluate_only=True)
    metric = world.truth[_last(world)][1]
    return _told(whole, less, metric)


def _counted_twice(world: World) -> Shown:
    specification = _tokenizer(world.differences)
    world.count_tokens(specification)
    whole = world.sum(world.run("a", specification=specification), round=1)
    less = world.sum(world.run("b", specification=specification), round=1, without={_last(world)})
    return _shown(world, whole, less, _last(world))


def _tokenizer(differences: str) -> Specification:
    return parse_toml(
        f"""
version = 1
name = "words"
method.name = "tokenizer"
tokenizer.vocabulary = 300
[federation]
rounds = 3
data = "shard"
clip_norm = 1e4
[sealing]
slots_per_epoch = 4
differences = "{differences}"
"""
    )


def _two_partitions(world: World) -> Shown:
    """Blocks of three; a later roster draws them elsewhere. What is left is one against one."""
    first, second = world.names[:3], world.names[1:4]
    one = world.sum(world.run("a"), round=1, present=first)
    truth = world.truth[world.names[0]]
    moved = dict(zip(world.names, ("y", "x", "x", "x", "y", "y"), strict=True))
    roster = world.roster_of(world.names, version=2, blocks=moved)
    other = world.sum(world.run("b", roster=roster), round=1, present=second)
    return Shown(one.update - other.update, truth[0] - world.truth[world.names[3]][0])


def _newcomer(world: World) -> Shown:
    """The roster takes one more into the only block."""
    newcomer = _last(world)
    less = world.sum(world.run("a", roster=world.roster_of(_others(world))), round=1)
    whole = world.sum(world.run("b", roster=world.roster_of(world.names, version=2)), round=1)
    return _shown(world, whole, less, newcomer)


def _revoked(world: World) -> Shown:
    whole = world.sum(world.run("a"), round=1)
    less = world.sum(world.run("b", roster=world.roster_of(_others(world), version=2)), round=1)
    return _shown(world, whole, less, _last(world))


def _another_union(world: World) -> Shown:
    """Two blocks, then one of them on the same model: what is left is a whole block."""
    whole = world.sum(world.run("a"), round=1)
    truth = dict(world.truth)
    less = world.sum(world.run("b"), round=1, present=world.names[:3])
    world.truth = truth
    return _shown(world, whole, less, _last(world))


def _group(world: World) -> Shown:
    run = world.run("a")
    whole = world.sum(run, round=1)
    missing = [name for name, group in world.groups.items() if group == world.group][-1]
    truth = dict(world.truth)
    less = world.sum(run, round=1, attempt=2, without={missing})
    world.truth = truth
    return _shown(world, whole, less, missing)


def _other_retry(world: World) -> Shown:
    """The opening fails by the coordinator's own doing, with some reveals in its hands; the retry has one less."""
    run = world.run("a")
    with contextlib.suppress(Refused):
        world.sum(run, round=1, lost_reveals=world.names[2:])
    less = world.sum(run, round=1, attempt=2, present=_others(world))
    whole = world.sum(world.run("b"), round=1)
    return _shown(world, whole, less, _last(world))


def _rejoining(world: World) -> Shown:
    """First without a member, then with it again."""
    run = world.run("a")
    less = world.sum(run, round=1, present=_others(world))
    whole = world.sum(run, round=1, attempt=2)
    return _shown(world, whole, less, _last(world))


def _others(world: World) -> tuple[str, ...]:
    return world.names[:-1]


ATTACKS: dict[str, Attack] = {
    "two attempts with the same number": Attack(_attempt_twice, "ATTEMPT_WRONG"),
    "a second attempt without a member": Attack(_second_attempt, "BLOCK_SPLIT"),
    "the same submission under a second run id": Attack(_second_run, "BLOCK_SPLIT"),
    "an overlapping run with one member fewer": Attack(_overlapping_run, "BLOCK_SPLIT"),
    "round 2 on a model one ulp away without a member": Attack(_one_ulp, "BLOCK_SPLIT"),
    "two evaluations": Attack(_two_evaluations, "BLOCK_SPLIT"),
    "an evaluation after training": Attack(_evaluation_after_training, "BLOCK_SPLIT"),
    "tokenizer counts twice": Attack(_counted_twice, "BLOCK_SPLIT"),
    "two partitions into blocks": Attack(
        _two_partitions, "BLOCK_SPLIT", nodes=6, blocks=("x", "x", "x", "y", "y", "y")
    ),
    "a newcomer between two sums": Attack(_newcomer, "BLOCK_SPLIT", nodes=5),
    "a member revoked between two sums": Attack(_revoked, "BLOCK_SPLIT"),
    "another union of blocks on the same model": Attack(
        _another_union, "MODEL_REVEALED", nodes=6, blocks=("x", "x", "x", "y", "y", "y")
    ),
    "one member of a group": Attack(
        _group, "BLOCK_SPLIT", nodes=8, groups=("east", "east", "east", "east", "west", "west", "west", "west")
    ),
    "a retry with another list after a failed opening": Attack(_other_retry, "BLOCK_SPLIT"),
    "a member that is away and rejoins": Attack(_rejoining, "BLOCK_SPLIT"),
}


def try_attack(
    name: str, folder: Path, *, differences: str = "refused", reproducible: bool = False
) -> dict[str, object]:
    """{"refused": whether the nodes stopped it, "by": failures, "cosine": of difference and truth, or None}."""
    attack = ATTACKS[name]
    world = attack.world(folder, differences=differences, reproducible=reproducible)
    try:
        shown = attack.play(world)
    except Refused as refused:
        return {"refused": True, "by": sorted(refused.names), "cosine": None}
    finally:
        world.close()
    return {"refused": False, "by": [], "cosine": cosine(shown.difference, shown.truth)}
