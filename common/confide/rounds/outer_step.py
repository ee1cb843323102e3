"""The outer step: what an opened sum makes of the model.

Tensors: a torch optimizer over the mean update (Reddi et al. 2021, algorithm 2).

The mean update is the negative gradient: SGD with learning rate 1 is FedAvg (McMahan et al. 2017), momentum makes it
FedAvgM, Nesterov 0.7 / 0.9 the outer step of DiLoCo (Douillard et al. 2023), Adam FedAdam.

>>> import math

import numpy as np
>>> step = OuterStep(Outer(), b"")
>>> step.apply(np.array([1.0, 2.0], dtype="<f4"), np.array([3.0, 6.0]), weight_sum=3.0).tolist()
[2.0, 4.0]
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from confide.errors import FailureName, ProtocolFailure, StateError, TrainingError
from confide.models.sent_coordinates import SentCoordinates, refactors
from confide.runs.sections import Outer
from confide.runs.specification import Specification
from confide.sealing.roles import Opened


class OuterStep:
    """One run's outer optimizer."""

    def __init__(self, outer: Outer, state: bytes, phase: int = 0) -> None:
        """state: what `state` returned after the last committed round; b"" before the first.

        phase: which part of the model is stepped, where not all of it travels every round (Travel.phase). Each part has
        a state of its own: what is not exchanged is not moved, and its momentum does not decay.
        """
        self._outer = outer
        try:
            kept = load(state) if state else {}
        except SafetensorError as error:
            raise StateError(f"the outer optimizer's saved state is damaged: {error}") from error
        self._mark = f"/{phase}" if phase else ""
        own = {name for name in kept if name.partition("/")[2] == self._mark[1:]}
        self._state = {name.partition("/")[0]: kept[name] for name in own}
        self._others = {name: tensor for name, tensor in kept.items() if name not in own}

    def _optimizer(self, parameter: torch.Tensor) -> torch.optim.Optimizer:
        outer = self._outer
        if outer.name == "adam":
            return torch.optim.Adam(
                [parameter], lr=outer.learning_rate, betas=(outer.beta1, outer.beta2), eps=outer.epsilon, foreach=False
            )
        return torch.optim.SGD(
            [parameter], lr=outer.learning_rate, momentum=outer.momentum, nesterov=outer.nesterov, foreach=False
        )

    def apply(
        self, model: NDArray[np.float32], update_sum: NDArray[np.floating], weight_sum: float
    ) -> NDArray[np.float32]:
        """The next model, float32, shape (parameters,). `model` is left as it is.

        update_sum: sum of weight_i * update_i, same shape; weight_sum > 0: sum of weight_i.
        Raises TrainingError when the result is not finite: the state is then the old one.
        """
        if not weight_sum > 0:
            raise TrainingError(f"the weights of the contributions add up to {weight_sum}; there is nothing to average")
        mean = np.asarray(update_sum / weight_sum, dtype=np.float32)
        parameter = torch.from_numpy(model.astype(np.float32, copy=True))
        parameter.grad = torch.from_numpy(mean).neg_()
        optimizer = self._optimizer(parameter)
        optimizer.state[parameter].update({name: tensor.clone() for name, tensor in self._state.items()})
        optimizer.step()
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(
                "the outer step gave NaN or infinity; lower federation.outer.learning_rate or the local learning rate"
            )
        kept = optimizer.state[parameter].items()
        self._state = {name: tensor for name, tensor in kept if isinstance(tensor, torch.Tensor)}
        return parameter.numpy()

    def state(self) -> bytes:
        """The optimizer's state as safetensors, that of the other phases with it; b"" when it has none."""
        states = self._others | {name + self._mark: tensor for name, tensor in self._state.items()}
        return save(states) if states else b""


def next_model(
    specification: Specification,
    coordinates: SentCoordinates,
    data: bytes,
    outer_state: bytes,
    opened: Opened,
    round: int,
) -> tuple[bytes, bytes]:
    """(model, outer state) after a round whose sum was opened: step what travelled, then refactor (FedSVD).

    A pure function: after a crash the same round gives the same bytes. data: raw trainable tensors, float32; of a
    tokenizer run its state, which gets the merges that the sum of counts asks for.
    """
    if not specification.trains_model:
        return _next_tokenizer(specification, data, opened), b""
    if specification.asks_feedback:
        check_opinions(specification, opened)
    return step_mean(specification, coordinates, data, outer_state, mean_update(opened), round)


def mean_update(opened: Opened) -> NDArray[np.float32]:
    """What the outer optimizer takes: the weighted mean of the contributions, float32, shape of what travelled.

    Raises TrainingError where the weights add up to nothing.
    """
    if not opened.weight_sum > 0:
        raise TrainingError(
            f"the weights of the contributions add up to {opened.weight_sum}; there is nothing to average"
        )
    return np.asarray(opened.update_sum / opened.weight_sum, dtype=np.float32)


def step_mean(
    specification: Specification,
    coordinates: SentCoordinates,
    data: bytes,
    outer_state: bytes,
    mean: NDArray[np.float32],
    round: int,
) -> tuple[bytes, bytes]:
    """As `next_model` for tensors, from the mean update alone: a node that checks a round holds no sum."""
    model = np.frombuffer(data, dtype="<f4").astype("<f4", copy=True)
    step = OuterStep(specification.federation.outer, outer_state, coordinates.phase(round))
    part = step.apply(coordinates.gather(model, round), mean, 1.0)
    coordinates.scatter(part, round, model)
    if refactors(specification):
        from confide.models.aggregation import after_round

        model = coordinates.schema.flatten(after_round(specification, coordinates.schema.unflatten(model)))
    return model.astype("<f4").tobytes(), step.state()


def check_opinions(specification: Specification, opened: Opened) -> None:
    """Of a feedback run: raise SUM_OUT_OF_RANGE for a sum that its contributors could not have said together.

    Each says numbers in [-1, 1], or [-1/2, 1/2] at the gate; what noise and rounding may add is allowed for. A node
    that answers outside the range bends the sum by its clipped length at most, and beyond this it is not used.
    """
    contributors = len(opened.contributors)
    total = np.asarray(opened.update_sum, dtype=np.float64)
    most = contributors * (1.0 if specification.feedback.purpose == "scores" else 0.5)
    allowed = most * (1 + 1e-3) + _noise_room(specification, contributors)
    worst = float(np.abs(total).max(initial=0.0))
    if not worst <= allowed:
        raise ProtocolFailure(
            FailureName.SUM_OUT_OF_RANGE,
            f"a sum of opinions is {worst:.4g}; {contributors} organizations say at most {most:g} together, and noise "
            f"explains up to {allowed:.4g}. Somebody answered outside the range, and who cannot be seen; nothing of it "
            "is used",
        )


_TAIL = 7.0
"""Standard deviations of noise: an honest sum of a thousand numbers exceeds them once in 10^9 runs."""


def _noise_room(specification: Specification, contributors: int) -> float:
    if specification.privacy.unit == "none":
        return 4.0 * contributors * (specification.federation.clip_norm or 0.0) / float(1 << specification.sealing.bits)
    from confide.privacy.organization import slot_noise

    noise = slot_noise(specification, specification.feedback.numbers, members=contributors)
    return (_TAIL * math.sqrt(contributors * noise.variance) + contributors) * noise.run.step


def _next_tokenizer(specification: Specification, data: bytes, opened: Opened) -> bytes:
    from confide.privacy.counting import floors
    from confide.tokenizer.merging import next_state
    from confide.tokenizer.state import parse_state
    from confide.tokenizer.terms import Terms

    terms = Terms.of(specification)
    state = parse_state(data, terms)
    # Sealing rounds counts to a fraction of one where clip_norm is moderate: then this makes them exact again.
    counts = np.rint(np.asarray(opened.update_sum, dtype=np.float64)[: len(state.candidates)])
    return next_state(state, counts, terms, floors(specification, contributors=len(opened.contributors))).to_bytes()
