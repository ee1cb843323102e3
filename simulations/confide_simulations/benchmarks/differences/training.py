"""A small classifier that every node trains on data of its own: what local updates look like, in milliseconds.

Two layers with dropout on points made up for each node: the classes' centres are shared, each node sees some classes
more than others and all of them moved a little. Which records a step takes and what dropout leaves out come from the
product's own draws (confide_client.training), public or secret as the specification says.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide_client.training.draws import Draws
from confide_client.training.loop import batch_indices
from numpy.typing import NDArray

INPUTS, HIDDEN, CLASSES = 32, 48, 10
RECORDS = 200
DROPOUT = 0.1
LEARNING_RATE = 0.1
BATCH = 16
Vector = NDArray[np.float32]


class Learner:
    """Local training of all nodes."""

    def __init__(self, names: Sequence[str], *, steps: int, seed: int = 0) -> None:
        """steps: of a round. seed: of the data and the first model."""
        self.names, self.steps = tuple(names), steps
        random = np.random.default_rng(seed)
        centres = random.normal(size=(CLASSES, INPUTS))
        self._data = {
            name: _records(np.random.default_rng([seed, number]), centres) for number, name in enumerate(names)
        }
        self._shapes = ((HIDDEN, INPUTS), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,))
        parts = [random.normal(size=shape) / np.sqrt(shape[-1]) for shape in self._shapes]
        self.first = np.concatenate([part.ravel() for part in parts]).astype("<f4").tobytes()
        self.size = len(self.first) // 4

    def loss(self, model: bytes, name: str) -> float:
        """Mean cross-entropy on the node's records: its metric."""
        x, y = self._data[name]
        with torch.no_grad():
            return float(_loss(self._tensors(model), x, y, None))

    def train(
        self, specification: Specification, model: bytes, name: str, slot: fleet_pb2.SlotOpen, folder: Path
    ) -> Vector:
        """The node's update: what its local steps add to the model. folder: where its secret of the run lies."""
        draws = Draws.of(specification, name, folder)
        tensors = [tensor.requires_grad_() for tensor in self._tensors(model)]
        optimizer = torch.optim.SGD(tensors, lr=LEARNING_RATE, momentum=0.9)
        dropout = torch.Generator().manual_seed(draws.local(slot))
        x, y = self._data[name]
        chosen = specification.model_copy(
            update={
                "training": specification.training.model_copy(update={"local_steps": self.steps, "batch_size": BATCH})
            }
        )
        for indices in batch_indices(chosen, len(y), draws, slot):
            optimizer.zero_grad()
            _loss(tensors, x[indices], y[indices], dropout).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        trained = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])
        return (trained - np.frombuffer(model, np.float32)).astype(np.float32)

    def _tensors(self, model: bytes) -> list[torch.Tensor]:
        ends = np.cumsum([np.prod(shape) for shape in self._shapes])[:-1]
        parts = np.split(np.frombuffer(model, np.float32), ends)
        return [torch.from_numpy(part.reshape(shape).copy()) for part, shape in zip(parts, self._shapes, strict=True)]


class Counter:
    """The first round of a tokenizer run: every node counts the pairs of bytes in text of its own."""

    def __init__(self, specification: Specification, names: Sequence[str]) -> None:
        """specification: of method "tokenizer"."""
        from confide.methods.first_model import first_model

        self.first, schema = first_model(specification, None)
        self.size = schema.size
        self._texts = {
            name: [f"{name} keeps {number} notes" for number in range(3 + len(name) + i)]
            for i, name in enumerate(names)
        }

    def loss(self, model: bytes, name: str) -> float:
        """There is no metric."""
        return 0.0

    def train(
        self, specification: Specification, model: bytes, name: str, slot: fleet_pb2.SlotOpen, folder: Path
    ) -> Vector:
        """Its counts."""
        from confide.tokenizer.counting import Corpus
        from confide.tokenizer.state import parse_state
        from confide.tokenizer.terms import Terms

        counts = Corpus.of([[text] for text in self._texts[name]]).counts(parse_state(model, Terms.of(specification)))
        update = np.zeros(self.size, np.float32)
        update[: len(counts)] = counts
        return update


def _records(random: np.random.Generator, centres: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor]:
    share = random.dirichlet(np.full(CLASSES, 1.0))
    labels = random.choice(CLASSES, size=RECORDS, p=share)
    moved = centres + 0.3 * random.normal(size=centres.shape)
    points = moved[labels] + random.normal(size=(RECORDS, INPUTS))
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def _loss(
    tensors: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, dropout: torch.Generator | None
) -> torch.Tensor:
    first, first_bias, second, second_bias = tensors
    hidden = torch.relu(x @ first.T + first_bias)
    if dropout is not None:
        kept = (torch.rand(hidden.shape, generator=dropout) >= DROPOUT).to(hidden.dtype)
        hidden = hidden * kept / (1 - DROPOUT)
    return torch.nn.functional.cross_entropy(hidden @ second.T + second_bias, y)
