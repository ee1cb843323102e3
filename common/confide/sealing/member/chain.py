"""The model chain: each model that a node is given must follow from the last by one outer step (docs/sealing.md).

>>> round(step_bound(Outer(), gradient_norm=2.0, parameters=10, rounds=3), 6)
2.0
>>> diloco = Outer(learning_rate=0.7, momentum=0.9, nesterov=True)
>>> round(step_bound(diloco, gradient_norm=1.0, parameters=10, rounds=3), 6)
7.0
"""

import math
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.codec.layout import VectorLayout
from confide.codec.tensors import model_digest
from confide.errors import FailureName, ProtocolFailure, SpecificationError
from confide.files import write_atomic
from confide.models.fedsvd import Refactored, broken
from confide.models.sent_coordinates import SentCoordinates, refactors
from confide.runs.sections import Outer
from confide.runs.specification import Specification
from confide.sealing.member.seal_log import SealLog
from confide.sealing.member.tokenizer_link import TokenizerLink
from confide.sealing.roles import SlotPlan

_RELATIVE_SLACK = 1e-3
_FLOAT32_STEP = 2.0**-23
_CHUNK = 1 << 20
# Rounding is not weighted: with weights = "examples" a mean weight down to 1/20 is provided for.
_SMALLEST_MEAN_WEIGHT = 1 / 20


def mean_update_bound(specification: Specification, parameters: int) -> float:
    """G: the largest L2 norm of the mean of honest updates, rounding included, and noise where all nodes share it."""
    if specification.privacy.shared:
        from confide.privacy.shared import largest_mean

        return largest_mean(specification, parameters)
    clip = specification.federation.clip_norm
    if clip is None:
        raise SpecificationError("federation.clip_norm is missing; the model chain is checked against it")
    layout = VectorLayout(
        parameters=1, scalars=0, bits=specification.sealing.bits, members=2, clip=clip, rotation_seed=bytes(32)
    )
    rounding = clip * layout.reach / layout.levels
    return clip + rounding / (_SMALLEST_MEAN_WEIGHT if specification.federation.weights == "examples" else 1.0)


def step_bound(outer: Outer, *, gradient_norm: float, parameters: int, rounds: int) -> float:
    """B: the largest L2 norm of one outer step when every mean update's norm is at most `gradient_norm`.

    SGD: the momentum buffer is a geometric series, |v| <= G / (1 - m); Nesterov's g + m v gives the same bound.
    Adam: per coordinate |m_hat| / sqrt(v_hat) <= r by Cauchy-Schwarz over the moments' weights, and |m_hat| <= G
    as a convex combination, so lr min(G / epsilon, r sqrt(D)).
    """
    if outer.name == "sgd":
        return outer.learning_rate * gradient_norm / (1.0 - outer.momentum)
    ratio = _adam_ratio(outer.beta1, outer.beta2, rounds)
    return outer.learning_rate * min(gradient_norm / outer.epsilon, ratio * math.sqrt(parameters))


def _adam_ratio(beta1: float, beta2: float, rounds: int) -> float:
    """max over s = 1..rounds of (1-b1)/(1-b1^s) * sqrt((1-b2^s)/(1-b2)) * sqrt(sum_{k<s} (b1^2/b2)^k).

    With b2 = 0 the second moment is the last gradient alone, and only G / epsilon bounds the step.
    """
    if beta2 == 0.0:
        return 1.0 if beta1 == 0.0 else math.inf
    steps = np.arange(1, min(rounds, 100_000) + 1, dtype=np.float64)
    with np.errstate(over="ignore"):
        series = np.cumsum((beta1 * beta1 / beta2) ** (steps - 1))
    ratios = (1 - beta1) / (1 - beta1**steps) * np.sqrt((1 - beta2**steps) / (1 - beta2)) * np.sqrt(series)
    return float(ratios.max())


class Link(Protocol):
    """What may follow what, by what the run learns. Every method raises MODEL_CHAIN_BROKEN."""

    def check(self, model: bytes | memoryview, round_number: int) -> None:
        """Whether the bytes are a model of this run at all, to begin that round with."""

    def check_step(self, last: bytes, model: bytes | memoryview, last_round: int, rounds: int) -> None:
        """Whether `model` can be made of `last`, which began `last_round`, in so many rounds. Both passed `check`."""


class TensorLink:
    """Trainable tensors: an outer step moves them by at most `bound`, and leaves what did not travel."""

    def __init__(self, specification: Specification, coordinates: SentCoordinates) -> None:
        self._coordinates, self._size = coordinates, coordinates.size
        self._refactored = Refactored(coordinates.schema) if refactors(specification) else None
        self.bound = step_bound(
            specification.federation.outer,
            gradient_norm=mean_update_bound(specification, coordinates.most),
            parameters=coordinates.most,
            rounds=specification.federation.rounds,
        )

    def check(self, model: bytes | memoryview, round_number: int) -> None:
        """Length and values."""
        if len(model) != 4 * self._size:
            raise broken(f"{len(model)} bytes came; {self._size} scalars take {4 * self._size}")
        values = np.frombuffer(model, dtype="<f4")
        for start in range(0, self._size, _CHUNK):
            if not np.isfinite(values[start : start + _CHUNK]).all():
                raise broken("the model holds NaN or infinity")
        if self._refactored is not None:
            self._refactored.check_rows(values)

    def check_step(self, last: bytes, model: bytes | memoryview, last_round: int, rounds: int) -> None:
        """What did not travel, and the distance in L2 norm, by chunk."""
        before, after = np.frombuffer(last, dtype="<f4"), np.frombuffer(model, dtype="<f4")
        if self._refactored is None:
            for start, stop in self._coordinates.rest(last_round, rounds):
                if after[start:stop].tobytes() != before[start:stop].tobytes():
                    raise broken(
                        f"coordinates that did not travel in rounds {last_round} to {last_round + rounds - 1} moved"
                    )
        self._check_distance(rounds, after, before)

    def _check_distance(self, steps: int, model: NDArray[np.float32], last: NDArray[np.float32]) -> None:
        distance = squares = 0.0
        if self._refactored is not None:
            distance, squares = self._refactored.moved(model, last)
        for start in range(0, self._size if self._refactored is None else 0, _CHUNK):
            old = last[start : start + _CHUNK].astype(np.float64)
            distance += float(np.square(model[start : start + _CHUNK] - old).sum())
            squares += float(np.square(old).sum())
        allowed = steps * (self.bound * (1 + _RELATIVE_SLACK) + _FLOAT32_STEP * math.sqrt(squares))
        if math.sqrt(distance) > allowed:
            raise broken(
                f"the model moved by {math.sqrt(distance):.6g} in {steps} rounds; the specified outer step "
                f"allows {allowed:.6g}"
            )


def link_of(specification: Specification, coordinates: SentCoordinates) -> Link:
    """What may follow what in a run: the nodes' check, and the coordinator's before it commits."""
    return TensorLink(specification, coordinates) if specification.trains_model else TokenizerLink(specification)


class ModelChain:
    """A node's memory of the last model: its hash, round and values, across restarts.

    Guarantee: an admitted model is the signed first one, or follows from the last by its Link (tensors: it lies within
    B of it for each round between, with what did not travel unchanged); one that was never compared is admitted as not
    `anchored`, and is then revealed for only beside c + 1 anchored signers. `begin` makes the signed first model the
    last one where that is not anchored, and nowhere else.
    """

    def __init__(
        self,
        specification: Specification,
        *,
        initial_sha256: bytes,
        coordinates: SentCoordinates,
        log: SealLog,
        folder: Path,
    ) -> None:
        """initial_sha256: of the first model, as the administrator signed it. The last model lies in `folder`."""
        self._initial = initial_sha256
        self.link = link_of(specification, coordinates)
        self._max_attempts = specification.sealing.max_attempts
        self._log = log
        self._folder = folder
        self._last_round = specification.federation.rounds + 1

    @property
    def anchored(self) -> bool:
        """Whether the newest model was followed from the signed first one."""
        return self._log.model is not None and self._log.model[2]

    def admit(self, plan: SlotPlan, model: bytes | memoryview) -> None:
        """Check a slot's model and remember it durably. Raises MODEL_REPEATED, ATTEMPT_WRONG or MODEL_CHAIN_BROKEN."""
        name = plan.model_sha256.hex()
        if plan.attempt > self._max_attempts or self._log.attempts[name] >= self._max_attempts:
            raise ProtocolFailure(
                FailureName.MODEL_REPEATED,
                f"attempt {plan.attempt} on the model {name[:16]}, which was used "
                f"{self._log.attempts[name]} times here; at most {self._max_attempts} are allowed",
            )
        if model_digest(model) != plan.model_sha256:
            raise broken(f"{len(model)} bytes came that are not the model {name[:16]}")
        anchored = self._follows(plan, model)
        taken = self._log.last_attempt.get(plan.round, 0)
        if plan.attempt <= taken:
            raise ProtocolFailure(
                FailureName.ATTEMPT_WRONG,
                f"attempt {plan.attempt} of round {plan.round} came, and attempt {taken} was taken here before; each "
                "is taken once, in order",
            )
        if self._log.model is None or self._log.model[0] != name:
            self._keep(name, plan.round, model, anchored=anchored)

    def begin(self, model: bytes | memoryview) -> None:
        """Follow the chain from the signed first model, where none is held that was followed from it.

        Raises MODEL_CHAIN_BROKEN for another model.
        """
        held = self._last_model()
        if held is not None and held[2]:
            return
        if model_digest(model) != self._initial:
            raise broken(f"{len(model)} bytes came that are not the signed first model {self._initial.hex()[:16]}")
        self.link.check(model, 1)
        self._keep(self._initial.hex(), 1, model, anchored=True)

    def _keep(self, name: str, round_number: int, model: bytes | memoryview, *, anchored: bool) -> None:
        # The new file is durable before the log names it, and the old one goes after: a crash loses neither.
        write_atomic(self._path(name), bytes(model))
        self._log.write("model", sha256=name, round=round_number, anchored=anchored)
        for path in self._folder.glob("model-*"):
            if path != self._path(name):
                path.unlink()

    def anchor(self) -> None:
        """A quorum with enough anchored signers was seen over the newest model."""
        if self._log.model is not None and not self._log.model[2]:
            name, round_, _ = self._log.model
            self._log.write("model", sha256=name, round=round_, anchored=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"model-{name[:32]}"

    def _follows(self, plan: SlotPlan, model: bytes | memoryview) -> bool:
        """Whether the model is anchored; raises MODEL_CHAIN_BROKEN when it does not follow."""
        if plan.round > self._last_round:
            raise broken(f"round {plan.round} was asked; with the last evaluation there are {self._last_round}")
        self.link.check(model, plan.round)
        name, last = plan.model_sha256.hex(), self._last_model()
        if last is None:
            if plan.model_sha256 == self._initial:
                return True
            if plan.round == 1:
                raise broken(f"round 1 begins with {name[:16]}, not with the signed first model")
            return False
        last_name, last_round, anchored, values = last
        if plan.round < last_round:
            raise broken(f"round {plan.round} came after round {last_round}")
        if name == last_name:
            return anchored
        if plan.round <= last_round:
            raise broken(f"round {plan.round} brings another model than before; this node is at round {last_round}")
        if plan.round == last_round + 1 and plan.parent_model_sha256.hex() != last_name:
            raise broken(f"the model of round {plan.round} names another parent than {last_name[:16]}")
        self.link.check_step(values, model, last_round, plan.round - last_round)
        return anchored

    def _last_model(self) -> tuple[str, int, bool, bytes] | None:
        """The newest link, when its values are still there and are those that the log names."""
        if self._log.model is None:
            return None
        name, round_, anchored = self._log.model
        if not self._path(name).exists():
            return None
        values = self._path(name).read_bytes()
        if model_digest(values).hex() != name:
            return None
        return name, round_, anchored, values
