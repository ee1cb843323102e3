"""Private runs over real processes, and what must hold after each: charged as planned, noised as charged, no more sent.

Every run has a data set of its own over the nodes' same files, and the whole of that group's budget: the same run
asked for a second time is beyond it.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide import journal
from confide.models.aggregation import rank_mask
from confide.models.sent_coordinates import SentCoordinates
from confide.models.trainable import schema_of
from confide.privacy.accounting import epsilon_by_pld, epsilon_by_rdp
from confide.privacy.counting import run_cost
from confide.privacy.ledger import LEDGER_NAME, replay
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan import planned_slots, unit_plan
from confide.privacy.shared import shared_cost, slot_noise
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.specification import Specification
from confide.sealing.roles import WORK
from confide_client.data.datasets import DataSets
from confide_client.runs.spending import units_in
from confide_simulations.local_federation import LocalFederation, run_command
from numpy.typing import NDArray

from tests.what_leaves import TABLE, Why, declared

RECORDING = ("-m", "tests.recording_node")
EVERY_STEP = set(fleet_pb2.Step.values()) - {fleet_pb2.STEP_UNSPECIFIED, fleet_pb2.ANCHOR, fleet_pb2.SCORE}
"""What every node answers in a sealed run, in a feedback run SCORE in TRAIN's place; ANCHOR comes to nodes that join a
chain late, and has an empty answer."""

ORGANIZATION = {"unit": "organization", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}
ONE_STEP = {"local_steps": 1, "batch_size": 32, "learning_rate": 1.0, "optimizer": "sgd"}
"""One step of all units: the update is the noised gradient."""


@dataclass(frozen=True)
class Asked:
    """One specification, run to its end and then asked for again."""

    specification: Specification
    run_id: str
    events: tuple[tuple[str, dict[str, Any]], ...]
    again_id: str
    again: tuple[tuple[str, dict[str, Any]], ...]


def register(made: LocalFederation, name: str, *options: str) -> str:
    """The nodes' files once more, as a data set and group of its own. options: of `confide data add`."""
    for node, path in made.nodes.items():
        run_command("data", "add", str(made.node_folder(node)), name, str(path), "--group", name, *options)
    made.data = name
    return name


def ask_twice(made: LocalFederation, specification: Specification) -> Asked:
    """Run it, insist that it finished, and ask for it again under another name."""
    made.allow(specification)
    run_id = made.submit(specification)
    events = tuple(made.watch(run_id))
    assert events[-1][0] == "run_finished", events[-4:]
    again_id = made.submit(specification.model_copy(update={"name": "again"}))
    return Asked(specification, run_id, events, again_id, tuple(made.watch(again_id)))


def ledger_of(made: LocalFederation, name: str) -> Any:
    """A node's ledger as it stands."""
    return replay(journal.read(made.node_folder(name) / LEDGER_NAME)[0])


def check_charged(made: LocalFederation, asked: Asked) -> None:
    """Each round's slot went RESERVED -> SPENT at the planned cost; a second run was refused and set nothing aside."""
    specification, privacy = asked.specification, asked.specification.privacy
    rounds = specification.federation.rounds
    committed = [data for kind, data in asked.events if kind == "round_committed"]
    assert [data["contributors"] for data in committed] == [sorted(made.nodes)] * rounds
    assert [data["metrics"] for data in committed] == [{}] * rounds
    assert asked.again[-1][0] == "run_failed"
    reasons = [data["reason"] for kind, data in asked.again if kind == "offer_answered"]
    assert reasons and all("BUDGET_EXHAUSTED" in reason for reason in reasons), reasons
    for name in made.nodes:
        ledger = ledger_of(made, name)
        assert asked.again_id not in ledger.runs
        charged = ledger.run(asked.run_id)
        assert (charged.approved.unit, charged.approved.specification) == (privacy.unit, specification.digest)
        assert (charged.spent_slots, charged.approved.cost.slots) == (rounds, planned_slots(specification))
        assert charged.approved.cost == promised(made, specification, name)
        epsilon = epsilon_by_rdp if privacy.shared else epsilon_by_pld
        spent = epsilon(charged.approved.cost.whole, delta=privacy.delta)
        assert 0.9 * privacy.epsilon < spent <= privacy.epsilon
        lines = [line for line in journal.read(made.node_folder(name) / LEDGER_NAME)[0] if line["run"] == asked.run_id]
        kinds = [line["kind"] for line in lines]
        assert kinds == ["approved", *["reserved", "spent"] * rounds, "released"]
        drawn = [line["slot"] for line in lines if line["kind"] in {"reserved", "spent"}]
        assert drawn == [slot for slot in charged.draws for _ in range(2)]
        run_command("ledger", "verify", "--state", str(made.node_folder(name)))


def promised(made: LocalFederation, specification: Specification, node: str) -> Any:
    """What the accountant says from the specification and this node's own number of units."""
    if specification.privacy.shared:
        return shared_cost(specification, SentCoordinates(specification, schema_of(specification, made.base)).most)
    data = DataSets(made.node_folder(node)).load(specification.federation.data)
    return run_cost(specification, units_in(specification, data))


def check_left(made: LocalFederation, asked: Collection[Asked]) -> set[int]:
    """Every field that any node sent is declared, constants are constant, and every upload was charged.

    Returns the steps that were answered. Nothing of the records stands in anything that left unencrypted.
    """
    known = {one.run_id: one.specification for one in asked}
    values: dict[str, set[Any]] = {}
    sizes: dict[tuple[str, int], set[int]] = {}
    steps = set[int]()
    for name in made.nodes:
        state = made.node_folder(name)
        found, replies = declared(state)
        for field, value in found:
            if TABLE[field] is Why.CONSTANT and isinstance(value, str | int | float | bytes):
                values.setdefault(field, set()).add(value)
        ledger = ledger_of(made, name)
        for reply, payload in replies:
            steps.add(reply.step)
            if reply.step not in WORK or reply.WhichOneof("outcome") != "body":
                assert not payload
                continue
            specification = known[reply.run_id]
            sealed = specification.sealing.kind == "sealed"
            kind = sealing_pb2.SealedUpload if sealed else sealing_pb2.PlainUpload
            slot = kind.FromString(reply.body).slot
            assert ledger.run(reply.run_id).draws.get(slot) is True, "an upload left that no ledger line pays for"
            sizes.setdefault((reply.run_id, slot), set()).add(len(payload["upload"]))
    assert {field: seen for field, seen in values.items() if len(seen) > 1} == {}
    assert {run_id for run_id, _ in sizes} == set(known)
    assert all(len(seen) == 1 for seen in sizes.values()), "an upload's length tells of its data"
    return steps


def without_noise(patch: pytest.MonkeyPatch) -> None:
    """In this process the steps add no noise. Where every batch holds all units, nothing else is random."""
    patch.setattr(SecureRandom, "rounded_gaussian", lambda self, count, *, stddev: np.zeros(count, dtype=np.int64))


def expected_stddev(
    made: LocalFederation, specification: Specification, ranks: dict[str, int], *, steps: int = 1
) -> NDArray[np.float64]:
    """Of the noise in each coordinate of the opened mean, from what the ledgers charged. Shape (schema.size,).

    Of `steps` SGD steps on each node; ranks: of nodes that train less than the run's.
    """
    schema = schema_of(specification, made.base)
    variance = np.zeros(schema.size)
    for name in made.nodes:
        data = DataSets(made.node_folder(name)).load(specification.federation.data)
        plan = unit_plan(specification, units_in(specification, data))
        rank = ranks.get(name, specification.adapter.rank)
        masks = [_mask(specification, entry, shape, rank) for entry, shape in schema.entries]
        variance += np.concatenate(masks) * (specification.training.learning_rate * plan.noise_stddev) ** 2 * steps
    return np.asarray(np.sqrt(variance) / len(made.nodes))


def _mask(specification: Specification, name: str, shape: tuple[int, ...], rank: int) -> NDArray[np.float64]:
    if not name.rsplit(".", 1)[-1].startswith("lora_"):
        return np.ones(int(np.prod(shape)))
    return rank_mask(name, shape, rank).numpy().ravel().astype(np.float64)


def shared_stddev(made: LocalFederation, specification: Specification) -> float:
    """Of each coordinate of the opened mean: every node's share of Skellam noise, in the update's units."""
    trained = SentCoordinates(specification, schema_of(specification, made.base)).most
    noise: Any = slot_noise(specification, trained, members=len(made.nodes))
    return float(np.sqrt(len(made.nodes) * noise.variance) * noise.run.step / len(made.nodes))


def check_noise(residual: NDArray[np.floating], stddev: NDArray[np.floating] | float, *, slack: float = 0.02) -> None:
    """The residual is centred noise of this standard deviation, by six of the estimates' own; nothing where it is 0.

    slack: relative, for what is not noise (the rounding of sealed coordinates).
    """
    whole = np.broadcast_to(stddev, residual.shape)
    rests = whole == 0
    assert np.abs(residual[rests]).max(initial=0.0) < 1e-3 * whole.max(), "something moved that is not trained"
    scaled = residual[~rests] / whole[~rests]
    assert abs(scaled.std() - 1) < 6 / np.sqrt(2 * scaled.size) + slack, (scaled.std(), scaled.size)
    assert abs(scaled.mean()) < 6 / np.sqrt(scaled.size) + slack, scaled.mean()


def texts_nowhere(made: LocalFederation, words: Collection[str]) -> None:
    """No note of what left holds a word of the records, in any encoding of its bytes that is not encrypted."""
    for name, word in itertools.product(made.nodes, words):
        assert word.encode().hex() not in (Path(made.node_folder(name)) / "left.jsonl").read_text(), word
