"""What a seed runs, and what is to go wrong in it: drawn once, before anything happens."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from confide.runs.specification import Specification

from confide_simulations.chaos.chance import Chance
from confide_simulations.chaos.consortium import COORDINATOR, DATA, NODES
from confide_simulations.chaos.training import CLIP
from confide_simulations.stand_in_run import stand_in_run


class Fault(StrEnum):
    """What can go wrong. Closed: the table of a report names them."""

    KILL = "kill"
    """A process dies at a boundary, its machine goes on."""
    POWER_LOSS = "power loss"
    """A process dies at a boundary, and what was not durable is lost or torn."""
    PARTITION = "partition"
    FULL_DISK = "full disk"
    CLOCK_FORWARD = "clock forward"
    CLOCK_BACK = "clock back"
    OLD_NODE_DISK = "old node disk"
    """A node comes back with an older copy of its folder."""
    OLD_COORDINATOR_DISK = "old coordinator disk"
    """The coordinator comes back from a backup (docs/deployment.md, "Restore an older copy")."""
    REPEATED = "repeated message"
    LATE = "late message"
    LOST = "lost answer"


@dataclass(frozen=True)
class Doomed:
    """A kill at a boundary. after_s: from when on. times: at the how manieth passing."""

    process: str
    boundary: str
    after_s: float
    times: int
    power: bool
    down_s: float


@dataclass(frozen=True)
class Trouble:
    """Another fault. What it does to the process lasts so long."""

    kind: Fault
    process: str
    at_s: float
    lasts_s: float
    size_s: float = 0.0
    """Of a clock's jump."""


@dataclass(frozen=True)
class Scenario:
    """One seed's."""

    nodes: int
    groups: int
    runs: int
    specification: Specification
    dooms: tuple[Doomed, ...]
    troubles: tuple[Trouble, ...]
    slow_s: float
    repeats: float
    loses: float


_PRIVACY = {"unit": "record", "epsilon": 8.0, "delta": 1e-6, "clip": 1.0}
MEMBER_MOMENTS = (
    "member.epoch_written",
    "member.bundle_ready",
    "member.dealt",
    "member.reserved",
    "member.trained",
    "member.upload_written",
    "member.spent",
    "member.list_written",
    "member.memory_written",
    "member.reveal_written",
    "member.ended",
)
COLLECTOR_MOMENTS = (
    "collector.epoch_written",
    "collector.bundle_kept",
    "collector.dealing_kept",
    "collector.epoch_stands",
    "collector.slot_written",
    "collector.upload_kept",
    "collector.list_written",
    "collector.confirmation_kept",
    "collector.quorum_written",
    "collector.reveal_kept",
    "collector.decided",
    "collector.ended",
)
_NODE_FILES = (
    "seal-log.jsonl",
    "heights.log",
    "heights.json",
    "revealed.jsonl",
    "memory.log",
    "audit.log",
    "run.json",
    "offer.bin",
    "reply",
    "reply note",
    "upload",
    "model",
    "folder",
)
_COORDINATOR_FILES = ("collector.jsonl", "dealings", "kept upload", "checkpoint", "folder")
_STEPS = ("OFFER", "ADVERTISE", "SHARE", "TRAIN", "CONFIRM", "REVEAL", "END")
PRIVATE_FILES = ("privacy-ledger.jsonl",)
NODE_BOUNDARIES = (
    *MEMBER_MOMENTS,
    *(f"{name} {when}" for name in _NODE_FILES for when in ("written", "synced")),
    *(f"{when} {step}" for step in _STEPS for when in ("reply", "replied")),
)
COORDINATOR_BOUNDARIES = (
    *COLLECTOR_MOMENTS,
    *(f"{name} {when}" for name in _COORDINATOR_FILES for when in ("written", "synced")),
    "commit",
    "committed",
    *(f"{when} {step}" for step in _STEPS for when in ("send", "sent")),
)
_OFTEN = ("commit", "committed", "folder written", "folder synced", "audit.log written", "audit.log synced")
"""Passed many times in a round."""
_HORIZON_S = 30.0


def draw(seed: int, base_sha256: str) -> Scenario:
    """The scenario of this seed."""
    random = Chance(seed).of("scenario")
    nodes = random.choices((3, 4, 5), (14, 5, 1))[0]
    groups = 2 if nodes == 5 and random.random() < 0.5 else 1
    nodes = 6 if groups == 2 else nodes
    specification = _specification(random, nodes if groups == 1 else 3, base_sha256)
    names = NODES[:nodes]
    return Scenario(
        nodes=nodes,
        groups=groups,
        runs=2 if random.random() < 0.1 else 1,
        specification=specification,
        dooms=tuple(_doomed(random, names, specification) for _ in range(random.choice((1, 1, 2, 2, 3, 4)))),
        troubles=tuple(_trouble(random, names) for _ in range(random.choice((0, 1, 1, 2, 3)))),
        slow_s=random.choice((0.01, 0.05, 0.3, 1.0)),
        repeats=random.choice((0.0, 0.03, 0.1)),
        loses=random.choice((0.0, 0.0, 0.01, 0.03)),
    )


def _specification(random: Random, nodes: int, base_sha256: str) -> Specification:
    sealed = random.random() < 0.85
    private = random.random() < 0.2
    federation = {  # drawn in this order, so that a seed stays what it was
        "data": DATA,
        "clip_norm": CLIP,
        "rounds": 2 if private else random.choice((1, 1, 2, 3)),
        "min_cohort": random.randint(2, nodes) if nodes > 3 else random.choice((2, 2, 3)),
        "weights": random.choice(("uniform", "examples")) if not private else "uniform",
        "max_examples": 8,
        "step_deadline_s": 15.0,
        "exchange_deadline_s": 8.0,
        "grace_s": random.choice((0.0, 6.0)),
        "outer": {"learning_rate": 1.0},
    }
    sealing = {
        "kind": "sealed" if sealed else "none",
        "slots_per_epoch": random.choice((1, 2, 4)),
        "max_attempts": 2 if private else random.choice((2, 3)),
        "differences": "refused" if sealed and random.random() < 0.25 else "accepted",
    }
    return stand_in_run("chaos", base_sha256, federation, sealing, _PRIVACY if private else None)


def _doomed(random: Random, names: tuple[str, ...], specification: Specification) -> Doomed:
    process = COORDINATOR if random.random() < 0.45 else random.choice(names)
    boundaries = COORDINATOR_BOUNDARIES if process == COORDINATOR else NODE_BOUNDARIES
    if process != COORDINATOR and specification.privacy.unit != "none":
        boundaries += tuple(f"{name} {when}" for name in PRIVATE_FILES for when in ("written", "synced") * 3)
    boundary = random.choice(boundaries)
    return Doomed(
        process=process,
        boundary=boundary,
        after_s=random.choice((0.0, random.uniform(0.0, _HORIZON_S))),
        times=random.randint(1, 40 if boundary in _OFTEN else 4),
        power=random.random() < 0.5,
        down_s=random.choice((0.2, random.uniform(0.0, 12.0))),
    )


def _trouble(random: Random, names: tuple[str, ...]) -> Trouble:
    kind = random.choices(
        (
            Fault.PARTITION,
            Fault.FULL_DISK,
            Fault.CLOCK_FORWARD,
            Fault.CLOCK_BACK,
            Fault.OLD_NODE_DISK,
            Fault.OLD_COORDINATOR_DISK,
        ),
        (6, 4, 2, 2, 2, 1),
    )[0]
    process = random.choice((COORDINATOR, *names))
    if kind in (Fault.PARTITION, Fault.OLD_NODE_DISK):
        process = random.choice(names)
    if kind is Fault.OLD_COORDINATOR_DISK:
        process = COORDINATOR
    jump_s = random.choice((30.0, 3600.0, 8 * 86400.0, 60 * 86400.0))
    return Trouble(
        kind=kind,
        process=process,
        at_s=random.uniform(0.0, _HORIZON_S),
        lasts_s=random.uniform(0.5, 25.0),
        size_s=jump_s if kind is Fault.CLOCK_FORWARD else -jump_s,
    )
