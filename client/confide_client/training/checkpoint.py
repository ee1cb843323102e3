"""Where a slot's local training stands, on this node's disk, so that a node that restarts goes on instead of anew.

    checkpoint = SlotCheckpoint(folder, specification, slot)
    step, losses = checkpoint.restore(parameters, optimizer)        # 0, [] when there is nothing to go on from
    ...
    checkpoint.keep(losses, parameters, optimizer)                  # after every step; written once a minute
    checkpoint.erase()                                              # the steps are done

Only the same slot goes on from it, and only of a run without sealing and without privacy: a sealed slot is lost to a
node that restarted, with its secrets, and a retry trains afresh by rule; the noise of a private step is made once, for
the one update that is charged (docs/sealing.md, "What is on disk"; docs/privacy.md, "Work that a crash cut off").

Guarantee: training that goes on gives the same bits as training that was not interrupted, on one thread of the same
processor. What does not fit the slot, or is damaged, is not used; a disk that is full ends checkpoints, not training.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from confide.errors import TrainingError
from confide.files import fsync_file, fsync_folder, private_folder
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from confide_client.kept_files import CHECKPOINT, forget_checkpoint
from confide_client.training.optimizers import Parameters, set_state, state_of

EVERY_S = 60.0
MOST_OF_TIME = 0.05
"""Of the time since the last one, writing a checkpoint takes at most this share."""
log = logging.getLogger(__name__)


def is_kept(specification: Specification) -> bool:
    """Whether a run's local training may go on after a restart."""
    return not specification.sealed and specification.privacy.unit == "none"


class SlotCheckpoint:
    """Of one slot of one run."""

    def __init__(
        self,
        folder: Path,
        specification: Specification,
        slot: fleet_pb2.SlotOpen,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """folder: the run's private one."""
        self._folder, self._path = folder, folder / CHECKPOINT
        self._of = {
            "specification": specification.digest,
            "slot": str(slot.slot),
            "round": str(slot.round),
            "attempt": str(slot.attempt),
            "model": slot.model_sha256.hex(),
        }
        self._pause_s = self._every_s = EVERY_S if every_s is None else every_s
        self._clock = clock
        self._last = clock()
        self._works = is_kept(specification)

    def restore(self, parameters: Parameters, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
        """(steps that are done, their losses), with parameters, optimizer and torch's random state as they were.

        Raises TrainingError when it cannot be put back whole; it is gone then.
        """
        found = self._read(parameters) if self._works and self._path.exists() else None
        if found is None:
            return 0, []
        step, losses, tensors = found
        try:
            self._put_back(tensors, parameters, optimizer)
        except (RuntimeError, ValueError, TypeError) as error:
            self.erase()
            raise TrainingError(
                "this slot's checkpoint does not fit; it was removed, and the next attempt starts anew"
            ) from error
        log.warning("this node stopped in the middle of a slot; its training goes on after step %d", step)
        return step, losses

    def _read(self, parameters: Parameters) -> tuple[int, list[float], dict[str, torch.Tensor]] | None:
        """What stands in the file, if it is of this slot and whole; else it is removed, before anything is changed."""
        try:
            with safe_open(self._path, framework="pt") as file:
                said: Mapping[str, str] = file.metadata() or {}
                if any(said.get(name) != value for name, value in self._of.items()):
                    raise ValueError("it is of another slot")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            losses = [float(loss) for loss in json.loads(said["losses"])]
            for name, parameter in parameters.items():
                if tensors[f"value/{name}"].shape != parameter.shape:
                    raise ValueError(f"{name} has another shape")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log.warning("a checkpoint is not used (%s); this slot's training starts anew", error)
            self.erase()
            return None
        return len(losses), losses, tensors

    def _put_back(
        self, tensors: dict[str, torch.Tensor], parameters: Parameters, optimizer: torch.optim.Optimizer
    ) -> None:
        values = {name: tensors.pop(f"value/{name}") for name in parameters}
        random, cuda = tensors.pop("random"), tensors.pop("random-cuda", None)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])
        set_state(optimizer, parameters, tensors)
        torch.set_rng_state(random)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)

    def keep(self, losses: list[float], parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
        """After a step; losses: of all so far. Written when the last time is long ago; a full disk is no error."""
        began = self._clock()
        if not self._works or began - self._last < self._pause_s:
            return
        tensors = {f"value/{name}": parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
        tensors |= state_of(optimizer, parameters)
        tensors["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random-cuda"] = torch.cuda.get_rng_state()
        try:
            self._write(tensors, {**self._of, "losses": json.dumps(losses)})
        except (OSError, SafetensorError) as error:
            log.warning("training goes on without a checkpoint: %s", error)
            self._works = False
            self.erase()
        self._last = self._clock()
        self._pause_s = max(self._every_s, (self._last - began) / MOST_OF_TIME)

    def _write(self, tensors: dict[str, torch.Tensor], said: dict[str, str]) -> None:
        """Durable, and whole or not there at all."""
        private_folder(self._folder)
        temporary = self._path.with_suffix(".new")
        save_file(tensors, temporary, metadata=said)
        temporary.chmod(0o600)
        fsync_file(temporary)
        temporary.replace(self._path)
        fsync_folder(self._folder)

    def erase(self) -> None:
        """Nothing is gone on from any more."""
        forget_checkpoint(self._folder)
