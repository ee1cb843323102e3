"""One node's local training of one run. The base model stays loaded between rounds.

    trainer = LocalTrainer(specification, store.path(specification.model.sha256), node="hospital-a", folder=folder)
    contribution = trainer.contribute(received, data, slot)

With one thread the same inputs give the same bits. Errors carry nothing of the records: they travel to the coordinator.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from confide.codec.norms import l2_norm
from confide.errors import DataError, SpecificationError, TrainingError
from confide.methods import base as methods
from confide.methods.token_loss import TokenLoss
from confide.models import aggregation
from confide.models.architecture import load_tokenizer
from confide.models.arithmetic import precision
from confide.models.arithmetic.frozen_prefix import FrozenPrefix
from confide.models.arithmetic.linear import use_matrix_unit
from confide.models.sent_coordinates import SentCoordinates
from confide.models.trainable import build, load_trainable, schema_of, trainable_tensors, uses_lora
from confide.planning.fitness import check
from confide.planning.timing import time_model
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.deadline import Speed
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from numpy.typing import NDArray

from confide_client.data.token_files import tokens_of
from confide_client.progress import Phase, tell
from confide_client.training.checkpoint import SlotCheckpoint
from confide_client.training.draws import Draws
from confide_client.training.evaluation import evaluate
from confide_client.training.failures import named_failures
from confide_client.training.fragments import LocalValues
from confide_client.training.loop import accumulate, active_parameters, run_steps, step_batches, terms, train_round
from confide_client.training.optimizers import OptimizerStates
from confide_client.training.protected import PROTECTED
from confide_client.training.sharding.job import Outcome
from confide_client.training.sharding.steps import ShardedSteps

if TYPE_CHECKING:
    from confide_client.training.private import PrivateSteps

_MOST_PASSES = 1000
"""Passes over the shard in one round beyond which a run was surely not meant for so small a shard."""


Split = Literal["train", "evaluation"]


class LocalData(Protocol):
    """A node's shard of one run: records with the fields of the run's method."""

    @property
    def train(self) -> Sequence[Record]:
        """What is learned from."""

    @property
    def evaluation(self) -> Sequence[Record]:
        """The node's fixed evaluation split; may be empty."""

    @property
    def digest(self) -> str:
        """Of both, where whoever read them has checked what they are; else ""."""


class LocalTrainer:
    """Turns a received model into this node's contribution."""

    def __init__(
        self,
        specification: Specification,
        base: Path,
        *,
        node: str,
        folder: Path,
        threads: int | None = None,
        device: str | None = None,
        rank: int | None = None,
        processes: int = 1,
    ) -> None:
        """Load the base.

        folder: where what stays on this node between rounds is kept. device: default a GPU where there is one.
        rank: LoRA rank that this node trains where it can afford less than the run's; the rest of its update is zero.
        processes: how many worker processes share a local step (training.sharding); 1: this process trains.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._specification = specification
        self._folder = folder
        self._draws = Draws.of(specification, node, folder)
        self._device = torch.device(device or precision.default_device())
        check(specification, base)
        self.schema = schema_of(specification, base)
        self._tokenizer = load_tokenizer(base)
        self._method = methods.create(specification, self._tokenizer)
        self._sharded = (
            ShardedSteps(specification, base, folder, processes, threads, self._device.type, rank)
            if processes > 1
            else None
        )
        self._model: Any = None
        self._parameters: dict[str, torch.nn.Parameter] = {}
        if self._sharded is None:
            with named_failures(specification):
                self._model = build(specification, base, self._device)
            self._parameters = trainable_tensors(self._model)
            set_up(self._model, specification)
            keep_frozen(self._method, self._model, specification, folder)
        self._masks = _rank_masks(specification, self._parameters, rank)
        self._states = OptimizerStates(folder, self.schema)
        self._coordinates = SentCoordinates(specification, self.schema)
        self._values = LocalValues(self._coordinates, folder)
        self._private = (
            _private_steps(specification, self._model, self._method)
            if specification.privacy.unit in PROTECTED
            else None
        )
        self._prepared: dict[str, tuple[Sequence[Record], Sequence[methods.Example]]] = {}

    @property
    def model(self) -> Any:
        """The loaded model, as the last contribution left it. None where worker processes load it."""
        return self._model

    @property
    def method(self) -> Any:
        """The run's method, as this trainer reads records with it."""
        return self._method

    def for_node(self, node: str, folder: Path) -> "LocalTrainer":
        """Another node's trainer of the same run over the same loaded model. They take turns; what stays between
        rounds does not mix. For a simulation, where one process stands for many nodes.
        """
        other = copy.copy(self)
        other._folder = folder
        other._draws = Draws.of(self._specification, node, folder)
        other._states = OptimizerStates(folder, self.schema)
        other._values = LocalValues(self._coordinates, folder)
        other._prepared = {}
        if self._private is not None:
            other._private = _private_steps(self._specification, self._model, self._method)
        return other

    def measure(self) -> Speed | None:
        """How fast this machine is for the run, on made-up records; None where worker processes share a step."""
        if self._sharded is not None:
            return None
        with named_failures(self._specification):
            return time_model(self._specification, self._model, self._method, self._tokenizer)

    def contribute(self, model: NDArray[np.float32], data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """Evaluate and train the received model, float32 of shape (schema.size,).

        Under privacy no metric is reported: each would be a release of its own, without noise.
        Raises DataError, TrainingError or UpdateError; then nothing of this slot is sent.
        """
        specification = self._specification
        trains = not slot.evaluate_only and specification.training.local_steps > 0
        with named_failures(specification):
            start = self._values.start(model, slot.round) if trains else None
            outcome = self._steps(model, start, data, slot)
        if isinstance(self._method, methods.Attached):
            self._method.finish()
        metrics = outcome.metrics
        if outcome.update is not None:
            return Contribution(outcome.update)
        if outcome.trained is None:
            return Contribution(np.zeros(0, dtype=np.float32), 1.0, metrics)
        update = self._values.exchanged(outcome.trained - model, slot.round)
        norm = l2_norm(update)
        if not math.isfinite(norm):
            raise TrainingError("the trained model holds NaN or infinity; lower training.learning_rate")
        self._values.keep(outcome.trained, slot.round)
        if specification.privacy.unit == "none" and outcome.loss is not None:
            metrics |= {Metric.TRAIN_LOSS: outcome.loss, Metric.UPDATE_NORM: norm}
        return Contribution(update, self._weight(data), metrics)

    def _steps(
        self,
        received: NDArray[np.float32],
        start: NDArray[np.float32] | None,
        data: LocalData,
        slot: fleet_pb2.SlotOpen,
    ) -> Outcome:
        """Evaluate the received model, and train from `start` when there is one."""
        measures = self._specification.privacy.unit == "none" and len(data.evaluation) > 0
        seed = self._draws.local(slot)
        if self._sharded is not None:
            batches = self._batches(self._shard(data), slot, seed) if start is not None else None
            return self._sharded.run(received, start, data.evaluation if measures else [], batches, slot, seed)
        tensors = self.schema.unflatten(received)
        if slot.round == 1 and isinstance(self._method, methods.Attached):
            self._method.check_first(tensors)
        load_trainable(self._model, tensors)
        metrics = self._evaluate(data) if measures else {}
        if start is None:
            return Outcome(metrics)
        if self._specification.privacy.noise == "shared":
            assert self._private is not None  # noqa: S101 - a private run has its steps
            return Outcome(metrics, update=self._private.shared_update(data.train, self._parameters, self.schema))
        if start is not received:
            load_trainable(self._model, self.schema.unflatten(start))
        loss = self._train(data, slot, seed)
        return Outcome(metrics, self.schema.flatten(dict(self._parameters)), loss)

    def _weight(self, data: LocalData) -> float:
        federation = self._specification.federation
        if federation.weights == "uniform":
            return 1.0
        return min(1.0, len(data.train) / federation.max_examples)

    def _examples(self, split: Split, data: LocalData) -> Sequence[methods.Example]:
        """Encoded once for as long as the node hands out the same records."""
        records = getattr(data, split)
        cached = self._prepared.get(split)
        if cached is None or cached[0] is not records:
            cached = (records, self._encoded(split, records, data.digest))
            self._prepared[split] = cached
        return cached[1]

    def _encoded(self, split: Split, records: Sequence[Record], digest: str) -> Sequence[methods.Example]:
        """Of pre-training, whose text may be larger than memory, the tokens are in a file of this node's."""
        tell(Phase.ENCODING)
        method = self._method
        if isinstance(method, methods.Streamed):
            known = f"{split} {digest}" if digest else ""
            return method.examples(tokens_of(self._folder / f"tokens-{split}.bin", method.encoder, records, known))
        return method.prepare(records)

    def _evaluate(self, data: LocalData) -> dict[Metric, float]:
        examples = self._examples("evaluation", data)
        support = self._examples("train", data) if self._method.name == "in_context" else []
        return evaluate(self._specification, self._method, self._model, examples, support)

    def _batches(
        self, examples: Sequence[methods.Example], slot: fleet_pb2.SlotOpen, seed: int
    ) -> Iterator[list[methods.Batch]]:
        return step_batches(self._specification, self._method, examples, self._draws, slot, seed)

    def _shard(self, data: LocalData) -> Sequence[methods.Example]:
        training = self._specification.training
        examples = self._examples("train", data)
        if not examples:
            raise DataError("this node's shard is empty: there is nothing to train on")
        if training.local_steps * training.batch_size > _MOST_PASSES * len(examples):
            raise DataError(
                f"training.local_steps x batch_size is {training.local_steps * training.batch_size} records a round, "
                f"more than {_MOST_PASSES} passes over this node's shard; lower local_steps"
            )
        return examples

    def _train(self, data: LocalData, slot: fleet_pb2.SlotOpen, seed: int) -> float | None:
        """The mean loss of the steps; None where it may not be measured (privacy.unit record or user)."""
        specification = self._specification
        examples = self._shard(data) if self._private is None else []
        active = active_parameters(specification, self._parameters, slot.round)
        hooks = [
            active[name].register_hook(mask.mul)  # type: ignore[no-untyped-call]
            for name, mask in self._masks.items()
            if name in active and self._private is None
        ]
        start = {name: self._parameters[name].detach().clone() for name in self._masks}
        batches = enumerate(self._batches(examples, slot, seed))
        checkpoint = SlotCheckpoint(self._folder, specification, slot)

        def gradients(step: int) -> torch.Tensor:
            # A slot that goes on after a restart passes over the batches of the steps that are done.
            parts = next(parts for number, parts in batches if number == step)
            count = terms(parts)
            return accumulate(
                specification,
                [(part, count) for part in parts],
                lambda part: self._method.loss(self._model, part),
                self._device,
            )

        def steps(optimizer: torch.optim.Optimizer) -> float | None:
            if self._private is None:
                return run_steps(specification, active, optimizer, slot, gradients, checkpoint)
            masks = {active[name]: mask for name, mask in self._masks.items() if name in active}
            self._private.run(data.train, active, optimizer, slot, masks)
            return None

        try:
            loss = train_round(specification, self._model, active, self._states, slot, seed, steps)
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self._parameters.values():
                parameter.grad = None
                parameter.requires_grad_(True)
        with torch.no_grad():
            for name, mask in self._masks.items():
                # Weight decay moves entries that have no gradient.
                self._parameters[name].copy_(torch.where(mask, self._parameters[name], start[name]))
        return loss


def _rank_masks(
    specification: Specification, parameters: dict[str, torch.nn.Parameter], rank: int | None
) -> dict[str, torch.Tensor]:
    """Which entries this node trains, for every LoRA matrix; empty when it trains them all."""
    if rank is None or rank >= specification.adapter.rank:
        return {}
    if rank < 1:
        raise SpecificationError(f"this node's adapter rank is {rank}; it must be at least 1")
    return {
        name: aggregation.rank_mask(name, tuple(parameter.shape), rank).to(parameter.device)
        for name, parameter in parameters.items()
        if name.rsplit(".", 1)[-1].startswith("lora_")
    }


def _private_steps(specification: Specification, model: Any, method: methods.Method) -> "PrivateSteps":
    # Opacus takes seconds to import, which a run without privacy need not wait for.
    from confide_client.training.private import PrivateSteps

    return PrivateSteps(specification, model, method)


def keep_frozen(method: methods.Method, model: Any, specification: Specification, folder: Path | None = None) -> None:
    """Have a method keep what frozen lower layers make of each record, where that is the same at every step.

    folder: the run's own at this node; None: in memory only.
    """
    if isinstance(method, methods.Attached):
        method.attach(model, folder)
    loss = method.loss
    if isinstance(loss, TokenLoss) and uses_lora(specification) and specification.privacy.unit not in PROTECTED:
        loss.prefix = FrozenPrefix.of(model, trainable_tensors(model).values())


def set_up(model: Any, specification: Specification) -> None:
    """What a run may ask of a freshly built model: less memory, faster and compiled kernels."""
    fast = specification.training.autocast and precision.used(specification) == "bfloat16"
    if fast and specification.privacy.unit not in PROTECTED:
        use_matrix_unit(model)
    if specification.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if specification.training.compile:
        model.base_model.compile(dynamic=True)
