"""A coordinator that moves what did not travel, or refactors FedSVD's matrices into something else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import FailureName
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.specification import Specification
from confide.sealing.roles import Opened
from numpy.typing import NDArray

from tests.attacks.liar import A, B, C, refused, rewrite, stop_before
from tests.sealing_harness import Federation, specify

Flat = NDArray[np.float32]
RANK, IN, OUT = 3, 12, 10
SCHEMA = TensorSchema(
    (
        ("k.lora_A", (RANK, IN)),
        ("k.lora_B", (OUT, RANK)),
        ("q.lora_A", (RANK, IN)),
        ("q.lora_B", (OUT, RANK)),
        ("score.weight", (2, OUT)),
    )
)


def aggregated(scheme: str, **federation: object) -> Specification:
    """The example run with another aggregation."""
    spec = specify(clip=1.0)
    return spec.model_copy(
        update={
            "adapter": spec.adapter.model_copy(update={"aggregation": scheme}),
            "federation": spec.federation.model_copy(update=federation),
        }
    )


def part(flat: Flat, name: str) -> Flat:
    """A view of one tensor."""
    start, shape = SCHEMA.places()[name]
    return flat[start : start + int(np.prod(shape))].reshape(shape)


def rows(count: int, width: int, seed: int = 0) -> Flat:
    """Orthonormal rows."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, count)))
    return q.T.astype("<f4")


def federated(folder: Path) -> Federation:
    """Three nodes with FedSVD, two rounds in: B is no longer zero."""
    first = np.zeros(SCHEMA.size, dtype="<f4")
    part(first, "k.lora_A")[:], part(first, "q.lora_A")[:] = rows(RANK, IN, 1), rows(RANK, IN, 2)
    federation = Federation(folder, 3, aggregated("fedsvd"), schema=SCHEMA, model=first)
    for _ in range(2):
        assert isinstance(federation.slot(), Opened)
    return federation


def admit(federation: Federation, change: Callable[[Flat], None], **fields: object) -> None:
    """The honest next TRAIN with the model changed, before node A."""
    body = stop_before(federation, fleet_pb2.TRAIN, **fields).bodies[A]
    model = federation.model.copy()
    change(model)
    body = rewrite(sealing_pb2.SealedOpen, body, lambda m: setattr(m, "model_sha256", model_digest(model.tobytes())))
    federation.members[A].handle(fleet_pb2.TRAIN, body, lambda plan: federation.contribution(A, plan), model.tobytes())


def test_honest_refactoring_passes_and_moves_no_product_beyond_the_sum(tmp_path: Path) -> None:
    federation = federated(tmp_path)
    before = federation.model.copy()
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and not federation.failures
    assert len(outcome.update_sum) == federation.coordinates.count(3) == 2 * OUT * RANK + 2 * OUT
    assert (tmp_path / A / "seal-log.jsonl").exists() and all(
        m.context.chain.anchored for m in federation.members.values()
    )
    moved = 0.0
    for layer in ("k", "q"):
        old = part(before, f"{layer}.lora_B") @ part(before, f"{layer}.lora_A")
        new = part(federation.model, f"{layer}.lora_B") @ part(federation.model, f"{layer}.lora_A")
        moved += float(np.square(new - old).sum())
        a = part(federation.model, f"{layer}.lora_A")
        np.testing.assert_allclose(a @ a.T, np.eye(RANK), atol=1e-6)
        assert np.abs(part(federation.model, f"{layer}.lora_A") - part(before, f"{layer}.lora_A")).max() > 0.01
    moved += float(np.square(part(federation.model, "score.weight") - part(before, "score.weight")).sum())
    mean = outcome.update_sum / outcome.weight_sum
    assert moved == pytest.approx(float(np.square(mean).sum()), rel=1e-4)


def test_a_node_that_missed_rounds_follows_the_refactored_model(tmp_path: Path) -> None:
    federation = federated(tmp_path)
    federation.kill(A)
    for _ in range(2):
        federation.members.pop(A, None)
        federation.slot(present=(B, C))
    federation.start_member(A)
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and A in outcome.contributors


def test_rows_that_are_not_orthonormal(tmp_path: Path) -> None:
    def scaled(model: Flat) -> None:  # the same product, yet gradients of B would be a hundred times as large
        part(model, "q.lora_A")[:] *= 100
        part(model, "q.lora_B")[:] /= 100

    def doubled(model: Flat) -> None:
        part(model, "k.lora_A")[1] = part(model, "k.lora_A")[0]

    for number, change in enumerate((scaled, doubled)):
        with refused(FailureName.MODEL_CHAIN_BROKEN) as caught:
            admit(federated(tmp_path / str(number)), change)
        assert "not orthonormal" in str(caught.value)


def test_rows_that_span_something_else(tmp_path: Path) -> None:
    """Where B has lost a rank the product alone would not notice."""

    def swapped(model: Flat) -> None:
        part(model, "q.lora_A")[:] = rows(RANK, IN, 9)
        part(model, "q.lora_B")[:] = 0

    with refused(FailureName.MODEL_CHAIN_BROKEN) as caught:
        admit(federated(tmp_path), swapped)
    assert "left the space" in str(caught.value)


def test_a_product_that_moved_too_far(tmp_path: Path) -> None:
    federation = federated(tmp_path)
    bound = federation.members[A].context.chain.link.bound

    def pushed(by: float) -> Callable[[Flat], None]:
        def change(model: Flat) -> None:
            last, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(OUT, RANK)))
            part(model, "q.lora_B")[:] += (by * last / np.linalg.norm(last)).astype("<f4")

        return change

    with refused(FailureName.MODEL_CHAIN_BROKEN) as caught:
        admit(federation, pushed(2.1 * bound))
    assert "moved by" in str(caught.value)


def test_turned_rows_without_the_turned_b(tmp_path: Path) -> None:
    """Each matrix looks sound by itself: A spans the same rows, B has the same norm."""
    federation = federated(tmp_path)

    def turned(model: Flat) -> None:
        part(model, "q.lora_A")[:] = part(model, "q.lora_A")[::-1].copy()
        part(model, "q.lora_B")[:] *= 5

    with refused(FailureName.MODEL_CHAIN_BROKEN) as caught:
        admit(federation, turned)
    assert "moved by" in str(caught.value)


def test_a_signed_first_model_that_fedsvd_cannot_begin_with(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3, aggregated("fedsvd"), schema=SCHEMA)
    body = stop_before(federation, fleet_pb2.TRAIN).bodies[A]
    with refused(FailureName.MODEL_CHAIN_BROKEN):
        federation.ask(fleet_pb2.TRAIN, A, body)


def test_what_did_not_travel_must_not_move(tmp_path: Path) -> None:
    """RoLoRA: odd rounds exchange B. A speck on A is far within the bound, and refused."""
    federation = Federation(tmp_path, 3, aggregated("rolora"), schema=SCHEMA)
    federation.slot()

    def speck(model: Flat) -> None:
        part(model, "k.lora_A")[0, 0] += 1e-6

    with refused(FailureName.MODEL_CHAIN_BROKEN) as caught:
        admit(federation, speck)
    assert "did not travel in rounds 1 to 1" in str(caught.value)


def test_another_fragment_must_not_move(tmp_path: Path) -> None:
    spec = aggregated("average", fragments=3)
    federation = Federation(tmp_path, 3, spec, size=300)
    federation.slot()

    def speck(model: Flat) -> None:
        model[100] += 1e-6

    with refused(FailureName.MODEL_CHAIN_BROKEN):
        admit(federation, speck)


def test_a_node_that_missed_a_round_accepts_both_fragments(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3, aggregated("average", fragments=3, min_cohort=2), size=300)
    federation.slot()
    federation.kill(A)
    federation.slot(present=(B, C))
    federation.start_member(A)
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and A in outcome.contributors and len(outcome.update_sum) == 100


def test_a_coordinator_that_asks_for_another_part_gets_no_sum(tmp_path: Path) -> None:
    """The number of scalars is in the layout, the layout in the context: a mismatch is named, not summed."""
    federation = Federation(tmp_path, 3, aggregated("average", fragments=3), size=301)
    federation.collector._state.coordinates = Federation(
        tmp_path / "other", 3, aggregated("average"), size=301
    ).coordinates
    federation.slot()
    assert {error.code for error in federation.failures.values()} == {"CONTEXT_MISMATCH"}
