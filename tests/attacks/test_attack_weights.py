"""One member that bends the sum: the attempt fails by its name, and no model is made that the nodes would refuse."""

from pathlib import Path

import numpy as np
import pytest
from confide.codec.tensors import model_digest
from confide.errors import ProtocolFailure
from confide.proto import fleet_pb2
from confide.rounds.outer_step import next_model
from confide.runs.contribution import Contribution
from confide.sealing.member import upload
from confide.sealing.member.chain import link_of
from confide.sealing.primitives import scalars
from confide.sealing.roles import Abandoned, Opened

from tests.sealing_harness import Federation, names, specify

LIAR = names(1)[0]


class Bent(Federation):
    """The liar's weight is what a test says; the others' are small where examples count."""

    weight = 1.0
    others = 1.0

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        given = super().contribution(name, plan)
        return Contribution(given.update, self.weight if name == LIAR else self.others, given.metrics)


@pytest.mark.parametrize("weight", [1e-9, 0.5, 1.0 - 1e-9])
def test_a_weight_that_is_not_the_specified_one_fails_the_attempt(tmp_path: Path, weight: float) -> None:
    federation = Bent(tmp_path, 4)
    federation.weight = weight
    outcome = federation.slot()
    assert isinstance(outcome, Abandoned) and outcome.code == "SUM_OUT_OF_RANGE"
    assert "of the weights" in outcome.reason and LIAR not in outcome.reason, "nobody can be blamed for a sealed sum"
    federation.weight = 1.0
    again = federation.slot(round=1, attempt=2)
    assert isinstance(again, Opened) and again.weight_sum == 4


def test_a_weightless_update_at_full_length_is_refused_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes refuse the model that such a sum makes: a coordinator that had committed it would end the run."""
    honest = scalars.encode

    def lying(contribution: Contribution) -> list[int]:
        integers = honest(contribution)
        return [1, *integers[1:]] if contribution.weight == 1.0 else integers

    federation = Bent(tmp_path, 4, specify(federation='weights = "examples"'))
    federation.others = 1e-3
    monkeypatch.setattr(upload.scalars, "encode", lying)
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    opened = federation.drive()
    assert isinstance(opened, Opened), "the sum itself is within its range"
    link, first = link_of(federation.specification, federation.coordinates), federation.model.tobytes()
    data, _ = next_model(federation.specification, federation.coordinates, first, b"", opened, 1)
    with pytest.raises(ProtocolFailure, match="MODEL_CHAIN_BROKEN"):
        link.check_step(first, data, 1, 1)
    federation.end(opened)  # as if it had been committed
    federation.epoch()
    plan = federation.plan(round=2)
    assert plan.model_sha256 == model_digest(data)
    federation.collector.open_slot(plan)
    federation.drive()
    assert {error.code for (_, step), error in federation.failures.items() if step == "TRAIN"} == {"MODEL_CHAIN_BROKEN"}


def test_an_honest_step_passes_the_check(tmp_path: Path) -> None:
    federation = Bent(tmp_path, 4)
    opened = federation.slot()
    assert isinstance(opened, Opened)
    link = link_of(federation.specification, federation.coordinates)
    link.check(federation.model.tobytes(), 2)
    link.check_step(np.zeros(federation.size, "<f4").tobytes(), federation.model.tobytes(), 1, 1)
