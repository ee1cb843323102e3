"""What the reference of a DPO run makes of each answer: computed once per run at a node, and kept in the run's folder.

The reference is the base model without its adapter, which is also the model that the run starts from: an adapter starts
at zero effect. So it can never drift, whatever is trained; and a run that starts from a trained adapter is refused, as
its policy and its reference would be two models from the first step on (merge the adapter into a base of its own).

    reference = Reference(base="sha256...", file=folder / "reference.json")
    reference.of(answers, lambda missing: log_probabilities(model, missing))
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from confide.errors import ModelError, StateError
from confide.files import private_folder, write_atomic
from confide.methods.preference import Answer

FILE_NAME = "reference.json"


@contextlib.contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """The base alone, in evaluation mode and without gradients; the model is as before afterwards."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)


def check_start(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError unless an adapter with these values has no effect: what a run of method "dpo" starts from."""
    moved = [name for name, tensor in tensors.items() if name.endswith((".lora_B", ".lora_core")) and tensor.any()]
    if moved:
        raise ModelError(
            f"REFERENCE_CHANGED: the run starts from an adapter that has an effect already ({moved[0]!r} is not zero), "
            'while the reference of method "dpo" is the base without it. Merge the adapter into the base '
            "(`confide model merge`), add that as a model, and start from there"
        )


class Reference:
    """Log-probabilities of answers under the reference, float64 by answer."""

    def __init__(self, base: str, file: Path | None = None) -> None:
        """base: hash of the base model. file: where they are kept, 0600; None: in memory only.

        Raises ModelError REFERENCE_CHANGED for a file of another base, StateError for a damaged one.
        """
        self._base, self._file = base, file
        self._known: dict[str, float] = {}
        if file is not None and file.exists():
            self._known = _read(file, base)

    def of(self, answers: Sequence[Answer], compute: Callable[[list[Answer]], list[float]]) -> list[float]:
        """One number an answer; those that are not known yet are computed and kept."""
        asked = dict(zip(map(_name, answers), answers, strict=True))
        missing = {name: answer for name, answer in asked.items() if name not in self._known}
        if missing:
            found = compute(list(missing.values()))
            if not all(math.isfinite(value) for value in found):
                raise ModelError("the reference gives an answer a log-probability of NaN or infinity; check the base")
            self._known.update(zip(missing, found, strict=True))
        return [self._known[_name(answer)] for answer in answers]

    def keep(self) -> None:
        """Write them down, whole or not at all."""
        if self._file is not None:
            document = {"base": self._base, "log_probabilities": self._known}
            private_folder(self._file.parent)
            write_atomic(self._file, json.dumps(document).encode())


def _name(answer: Answer) -> str:
    return hashlib.sha256(answer.key).hexdigest()


def _read(file: Path, base: str) -> dict[str, float]:
    try:
        document = json.loads(file.read_bytes())
        kept, values = document["base"], document["log_probabilities"]
        if not all(isinstance(value, float) and math.isfinite(value) for value in values.values()):
            raise ValueError("a value is no finite number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{file.name} of this run is damaged ({type(error).__name__}); remove it") from error
    if kept != base:
        raise ModelError(
            f"REFERENCE_CHANGED: {file.name} holds log-probabilities of the base {str(kept)[:16]}, and this run's is "
            f"{base[:16]}; another reference in mid-run would change what is learned. Remove the file to start over"
        )
    return dict(values)
