"""The outer step against independent float64 formulas."""

import numpy as np
import pytest
from confide.codec.tensors import TensorSchema
from confide.errors import StateError, TrainingError
from confide.models.sent_coordinates import SentCoordinates
from confide.rounds.outer_step import OuterStep, next_model
from confide.runs.sections import Outer
from confide.sealing.roles import Opened
from numpy.typing import NDArray

from tests.training_specs import specification

SIZE, ROUNDS = 257, 6
F64 = NDArray[np.float64]


def rounds(seed: int = 0) -> list[tuple[F64, float]]:
    """(sum of updates, sum of weights) of some rounds."""
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=SIZE) * 0.02, float(weight)) for weight in generator.uniform(0.5, 4.0, ROUNDS)]


def first_model() -> NDArray[np.float32]:
    return np.random.default_rng(9).normal(size=SIZE).astype("<f4")


def drive(outer: Outer, *, restart: bool) -> F64:
    model, step = first_model(), OuterStep(outer, b"")
    for update_sum, weight_sum in rounds():
        model = step.apply(model, update_sum, weight_sum)
        if restart:
            step = OuterStep(outer, step.state())
    return model.astype(np.float64)


def oracle(outer: Outer) -> F64:
    """The formulas of Reddi et al. 2021 and of torch's documentation, in float64."""
    model = first_model().astype(np.float64)
    velocity, first, second = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for number, (update_sum, weight_sum) in enumerate(rounds(), start=1):
        gradient = -update_sum / weight_sum
        if outer.name == "adam":
            first = outer.beta1 * first + (1 - outer.beta1) * gradient
            second = outer.beta2 * second + (1 - outer.beta2) * gradient**2
            mean = first / (1 - outer.beta1**number)
            scale = np.sqrt(second / (1 - outer.beta2**number)) + outer.epsilon
            model = model - outer.learning_rate * mean / scale
            continue
        velocity = outer.momentum * velocity + gradient if number > 1 else gradient
        step = gradient + outer.momentum * velocity if outer.nesterov else velocity
        model = model - outer.learning_rate * (step if outer.momentum else gradient)
    return model


OPTIMIZERS = {
    "fedavg": Outer(),
    "fedavgm": Outer(learning_rate=0.5, momentum=0.9),
    "diloco": Outer(learning_rate=0.7, momentum=0.9, nesterov=True),
    "fedadam": Outer(name="adam", learning_rate=0.1, beta1=0.9, beta2=0.99, epsilon=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("restart", [False, True])
def test_agrees_with_float64_also_over_restarts(name: str, restart: bool) -> None:
    expected, got = oracle(OPTIMIZERS[name]), drive(OPTIMIZERS[name], restart=restart)
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-5
    moved = np.linalg.norm(expected - first_model())
    assert np.linalg.norm(got - expected) / moved < 1e-4, "the model moved, and to the right place"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restart_changes_no_bit(name: str) -> None:
    without, with_restarts = drive(OPTIMIZERS[name], restart=False), drive(OPTIMIZERS[name], restart=True)
    assert without.tobytes() == with_restarts.tobytes()


def test_the_received_model_is_left_as_it_is() -> None:
    model = first_model()
    before = model.tobytes()
    OuterStep(Outer(), b"").apply(model, np.ones(SIZE), 1.0)
    assert model.tobytes() == before
    frozen = np.frombuffer(before, dtype="<f4")
    assert OuterStep(Outer(), b"").apply(frozen, np.ones(SIZE), 2.0)[0] == pytest.approx(before and frozen[0] + 0.5)


def test_what_is_not_finite_is_refused_and_leaves_the_state() -> None:
    step = OuterStep(Outer(momentum=0.9), b"")
    step.apply(first_model(), np.ones(SIZE), 1.0)
    state = step.state()
    with pytest.raises(TrainingError, match="NaN or infinity"):
        step.apply(first_model(), np.full(SIZE, np.inf), 1.0)
    assert step.state() == state
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(TrainingError, match="nothing to average"):
            step.apply(first_model(), np.ones(SIZE), weight)


def test_a_damaged_state_is_named() -> None:
    with pytest.raises(StateError, match="damaged"):
        OuterStep(Outer(momentum=0.9), b"not safetensors")


@pytest.mark.parametrize("outer", [Outer(), Outer(momentum=0.9, nesterov=True), Outer(name="adam", learning_rate=0.1)])
def test_a_fragment_that_is_not_exchanged_keeps_its_values_and_its_momentum(outer: Outer) -> None:
    """Three fragments in rotation must each end where a model of that fragment alone ends, also after restarts."""
    spec = specification(federation={"fragments": 3, "outer": outer.model_dump(mode="json")})
    coordinates = SentCoordinates(spec, TensorSchema.unnamed(SIZE))
    data, state = first_model().tobytes(), b""
    alone = [
        (first_model()[start:stop], OuterStep(outer, b"")) for ((start, stop),) in map(coordinates.intervals, (1, 2, 3))
    ]
    for number, (update_sum, weight) in enumerate(rounds() + rounds(1), start=1):
        part = coordinates.gather(update_sum, number)
        opened = Opened(part, weight, {}, (), {}, {})
        after = next_model(spec, coordinates, data, state, opened, number)
        assert next_model(spec, coordinates, data, state, opened, number) == after, "a crash must not change the round"
        data, state = after
        values, step = alone[coordinates.phase(number)]
        alone[coordinates.phase(number)] = (step.apply(values, part, weight), step)
        assert data == np.concatenate([values for values, _ in alone]).tobytes()
