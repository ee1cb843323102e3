"""How a run's trainer comes to be. torch takes seconds to import: nothing here does so before it is asked to."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from confide.errors import StateError
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.specification import Specification

from confide_client.data.datasets import LocalData
from confide_client.state import StateFolder

if TYPE_CHECKING:
    from confide.codec.tensors import TensorSchema

LOADER = "load-model"
"""Name of the thread in which a base model is loaded."""


class Schema(Protocol):
    """What the bytes of payload "model" are: a TensorSchema, or how a tokenizer's state is read."""

    def decode(self, data: bytes | memoryview, /) -> Any:
        """What `contribute` takes. Raises UpdateError for bytes that are no such thing."""


class Trainer(Protocol):
    """Local training of one run, with its model loaded."""

    @property
    def schema(self) -> Schema:
        """Of what the run learns."""

    def contribute(self, model: Any, data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """Train or evaluate from `model`, as `schema.decode` made it: of tensors, float32 of shape (size,)."""


class MakeTrainer(Protocol):
    """How a trainer comes to be: the simulation shares one loaded base among its virtual nodes."""

    def __call__(
        self,
        specification: Specification,
        base: Path,
        *,
        node: str,
        folder: Path,
        threads: int | None,
        rank: int | None,
    ) -> Trainer:
        """Load the base model and get ready."""


def trainers_of(state: StateFolder) -> MakeTrainer:
    """Training on this machine, as node.json says at that moment. A simulation's nodes do without: they share one."""

    def make(
        specification: Specification, base: Path, *, node: str, folder: Path, threads: int | None, rank: int | None
    ) -> Trainer:
        # Imported late: torch takes seconds, and `confide node status` needs none of it.
        if specification.sealed:
            from confide.codec.seal_vector import compile_encoder

            compile_encoder()  # here no deadline runs yet
        if not specification.trains_model:
            from confide_client.training.tokens import TokenizerTrainer

            return TokenizerTrainer(specification)
        if specification.asks_feedback:
            from confide_client.policy.policy import load_policy
            from confide_client.training.opinions import OpinionTrainer

            if specification.judges_pairs:
                from confide_client.training.candidates import CandidateTrainer

                return CandidateTrainer(specification, base)
            allowed = load_policy(state.policy).feedback
            return OpinionTrainer(specification, base, judge=allowed.judge if allowed is not None else "")
        from confide.models.arithmetic import precision

        from confide_client.training import LocalTrainer
        from confide_client.training.sharding.steps import processes_for

        precision.prefer(state.settings.precision)
        processes = processes_for(specification, state.settings.processes, rank)
        return LocalTrainer(
            specification, base, node=node, folder=folder, threads=threads, rank=rank, processes=processes
        )

    return make


def local_schema(specification: Specification, base: Path) -> "TensorSchema":
    """Of the flat update, from the model's configuration alone: small exchanges need not wait for weights."""
    from confide.methods.first_model import update_schema

    return update_schema(specification, base)


class Turn:
    """One base at a time: loading is done under `lock`, and who loads next has the last one's base let go.

    However many runs a coordinator has accepted here, memory holds the base of one of them and at most one that loads.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._let_go: Callable[[], None] | None = None

    def give_to(self, let_go: Callable[[], None]) -> None:
        """Another run begins to load. let_go: called when the next one does."""
        if self._let_go is not None and self._let_go != let_go:
            self._let_go()
        self._let_go = let_go


class Loading:
    """A trainer that gets ready in a thread, while small exchanges are answered.

    One thread does all of it, and of several runs' one at a time: transformers imports its parts when they are first
    touched, which two threads at once cannot do.
    """

    def __init__(
        self, measure: "Callable[[], TensorSchema]", make: Callable[[], Trainer], turn: "threading.Lock | None" = None
    ) -> None:
        """measure: the schema of the flat update; done first. turn: held while loading."""
        self._measure, self._make = measure, make
        self._turn = turn or threading.Lock()
        self._measured = threading.Event()
        self._schema: TensorSchema | None = None
        self._trainer: Trainer | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._load, name=LOADER, daemon=True)
        self._thread.start()

    def _load(self) -> None:
        try:
            with self._turn:
                if self._cancelled:
                    raise StateError("another run's base was loaded in place of this one")
                self._schema = self._measure()
                self._measured.set()
                self._trainer = self._make()
        except BaseException as error:  # whoever asks for the trainer raises it; else it would wait for ever
            self._error = error
        finally:
            self._measured.set()

    def cancel(self) -> None:
        """It is not wanted any more: what has not begun does not begin."""
        self._cancelled = True

    @property
    def failed(self) -> bool:
        """Whether it ended without a trainer."""
        return self._error is not None

    def ended(self, timeout_s: float) -> bool:
        """Wait for the trainer, not for ever; whether `trainer` would answer, or raise, at once."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def measured(self, timeout_s: float) -> bool:
        """Wait for the schema, not for ever; whether `schema` would answer, or raise, at once."""
        return self._measured.wait(timeout_s)

    def schema(self) -> "TensorSchema":
        """Wait for the schema; raises what measuring raised."""
        self._measured.wait()
        if self._schema is None:
            raise self._error or StateError("loading the base model was interrupted")
        return self._schema

    def trainer(self) -> Trainer:
        """Wait for the trainer; raises what loading raised."""
        self._thread.join()
        if self._trainer is None:
            raise self._error or StateError("loading the base model was interrupted")
        return self._trainer
