"""The local step under record- or user-level privacy: DP-SGD over Poisson samples of the node's units.

The batch size is the specification's; how many units there are, the sampling rate and the noise are this node's own and
never leave it. Nothing is measured on the way: a training loss or an evaluation would be one more release.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from confide.codec.tensors import TensorSchema
from confide.errors import DataError, TrainingError
from confide.methods.base import Method
from confide.models.arithmetic import precision
from confide.privacy.dpsgd import ClippedGaussian, RecordLoss, Unit, clipped_sum, private_gradients
from confide.privacy.families import check_trainable
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.per_sample import PerSampleGradients
from confide.privacy.plan import UnitPlan, check_user_key, unit_plan
from confide.privacy.shared_units import unit_noise
from confide.proto import fleet_pb2
from confide.runs.fields import Record
from confide.runs.schedule import learning_rate
from confide.runs.specification import Specification
from numpy.typing import NDArray

from confide_client.progress import Phase, tell

log = logging.getLogger(__name__)


def units_of(specification: Specification, method: Method, records: Sequence[Record | None]) -> list[Unit]:
    """What privacy protects, each as its training examples: one record, or all records of one user.

    None stands for a record that was left out but is still counted (a canary of an audit that lost its coin toss).
    A long text of which a method makes several examples stays one unit. A record that is malformed, or from which
    nothing can be learned, is a unit without examples: an administrator who chooses labels and lengths must not learn
    by a failure that it is there. Raises DataError without any record, or when records lack the user key.
    """
    kept = [record for record in records if record is not None]
    if not kept:
        raise DataError("this node's shard is empty: there is nothing to train on")
    check_user_key(kept, specification)
    examples = [_examples(method, record) for record in records]
    idle = sum(record is not None and not made for record, made in zip(records, examples, strict=True))
    if idle:
        log.warning("nothing can be learned from %d of %d records; they count as units all the same", idle, len(kept))
    key = specification.privacy.user_key
    if specification.privacy.unit == "record" or key is None:
        return list(examples)
    users: dict[Any, list[Any]] = {}
    for number, (record, made) in enumerate(zip(records, examples, strict=True)):
        user = ("left out", number) if record is None else ("user", record[key])
        users.setdefault(user, []).extend(made)
    return list(users.values())


def _examples(method: Method, record: Record | None) -> list[Any]:
    if record is None:
        return []
    try:
        return list(method.prepare([record]))
    except (DataError, TypeError, ValueError):
        # Tokenizers have errors of their own for text that is not Unicode.
        return []


def mechanism_of(plan: UnitPlan) -> ClippedGaussian:
    """Every step of the run as planned, and as the node's ledger charges it.

    The specified batch is q * N for every node with at least that many units, and a constant for all.
    """
    return ClippedGaussian(
        clip=plan.clip, noise_multiplier=plan.noise_multiplier, expected_batch=float(plan.batch_size)
    )


class PrivateSteps:
    """The steps of one run on one node, with its units and its noise fixed."""

    def __init__(self, specification: Specification, model: Any, method: Method) -> None:
        """Raises ModelError for what cannot be trained privately."""
        check_trainable(model)
        self._specification, self._model, self._method = specification, model, method
        self._device = next(model.parameters()).device
        self._loss = RecordLoss(model, method, context=lambda: precision.autocast(specification, self._device))
        self._micro_batch_size = specification.training.micro_batch_size if self._in_float32() else 1
        self._random = SecureRandom()
        self._prepared: tuple[Sequence[Record | None], list[Unit]] | None = None
        self._plans: dict[int, UnitPlan] = {}

    def _in_float32(self) -> bool:
        """Else a unit would change others' gradients by half a percent, by sharing a micro-batch with them: more than
        the clip leaves room for (confide.privacy.dpsgd), so units go one by one.
        """
        stored = {p.dtype for p in self._model.parameters() if p.is_floating_point()}
        return not precision.autocasts(self._specification, self._device) and stored <= {torch.float32, torch.float64}

    def units(self, records: Sequence[Record | None]) -> list[Unit]:
        """Encoded once for as long as the node hands out the same records."""
        if self._prepared is None or self._prepared[0] is not records:
            self._prepared = (records, units_of(self._specification, self._method, records))
        return self._prepared[1]

    def plan(self, units: int) -> UnitPlan:
        """The noise of the whole run for this many units: calculated once, the same in every slot."""
        if units not in self._plans:
            self._plans[units] = unit_plan(self._specification, units)
        return self._plans[units]

    def shared_update(
        self,
        records: Sequence[Record | None],
        parameters: Mapping[str, torch.nn.Parameter],
        schema: TensorSchema,
    ) -> NDArray[np.float32]:
        """float32, (schema.size,): minus the step of a round over all units, as multiples of one integer's worth.

        No noise is in it: each node adds its share inside sealing, to the very integers (privacy.shared_units).

        Guarantee: one unit moves the integers by L2 norm at most grid.bound (dpsgd.clipped_sum; a clamp of each
        coordinate moves no two sums further apart).
        """
        noise = unit_noise(self._specification, schema.size)
        units = self.units(records)
        tell(Phase.TRAINING, 0, 1)
        with PerSampleGradients(self._model) as per_sample:
            names = {id(parameter): name for name, parameter in parameters.items()}
            sums = clipped_sum(
                per_sample,
                _by_length(self._method, units),
                loss=self._loss,
                lattice=noise.grid,
                micro_batch_size=self._micro_batch_size,
            )
            # Up to 2^22, so exact in float32.
            clamped = [total.clamp(-noise.levels, noise.levels).float() for total in sums]
            flat = schema.flatten({names[id(p)]: t for p, t in zip(per_sample.parameters, clamped, strict=True)})
        return (-noise.step * flat.astype(np.float64)).astype(np.float32)

    def run(
        self,
        records: Sequence[Record | None],
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        slot: fleet_pb2.SlotOpen,
        masks: Mapping[torch.nn.Parameter, torch.Tensor] | None = None,
    ) -> None:
        """All local steps of a slot, in place. Nothing about the data is returned or raised.

        masks: by parameter, which entries this node trains (a smaller LoRA rank); the others count nothing, get no
        noise and stay.
        """
        specification, training = self._specification, self._specification.training
        units = self.units(records)
        plan = self.plan(len(units))
        mechanism = mechanism_of(plan)
        with PerSampleGradients(self._model, masks) as per_sample:
            if {id(p) for p in per_sample.parameters} != {id(p) for p in parameters.values()}:
                raise TrainingError("the model trains parameters that the run does not name; nothing was trained")
            for step in range(training.local_steps):
                tell(Phase.TRAINING, step, training.local_steps)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(specification, (slot.round - 1) * training.local_steps + step)
                batch = [units[index] for index in self._random.poisson_sample(len(units), plan.sampling_rate)]
                private_gradients(
                    per_sample,
                    _by_length(self._method, batch),
                    loss=self._loss,
                    mechanism=mechanism,
                    micro_batch_size=self._micro_batch_size,
                    random=self._random,
                )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)


def _by_length(method: Method, batch: list[Unit]) -> list[Unit]:
    """Units of similar length next to each other: less padding in a micro-batch. The sum does not depend on order."""
    return sorted(batch, key=lambda unit: max((method.length(example) for example in unit), default=0))
