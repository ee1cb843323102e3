"""What every training objective provides, and the closed set of their names.

A method turns records into examples, examples into batches, and a batch into a summed loss; the local step divides
by the count over the whole optimizer step, so that micro batches change nothing but rounding.

    method = create(specification, load_tokenizer(folder))
    examples = method.prepare(records)
    batch = method.collate(examples[:8], seed=1)
    mean = method.loss(model, batch) / batch.count
"""

import importlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch

from confide.errors import DataError
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification

if TYPE_CHECKING:
    from confide.methods.documents import DocumentEncoder
    from confide.methods.packing import Tokens

IGNORED = -100
"""The label of a position at which no loss is taken."""

UNFIT = (DataError, TypeError, ValueError)
"""What encoding a record that does not fit raises: tokenizers have errors of their own for text that is not Unicode."""

T = TypeVar("T")
log = logging.getLogger(__name__)

_WHOLE = re.compile(r"(-?\d+)\.0+")

Example = Any
"""What `prepare` made of a record; only the method that made it looks inside."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro batch.

    inputs: keyword arguments of the model's body, such as input_ids (B, T).
    labels: what the loss compares with; its meaning is the method's.
    count: over how many terms (tokens, records) the summed loss runs.
    rows: that each example has in the inputs, next to each other: 2 for the two answers of a pair.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    count: int
    rows: int = 1

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        inputs = {name: t.to(device) for name, t in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), self.count, self.rows)


class Method(Protocol):
    """One training objective, bound to a specification and a tokenizer."""

    name: str
    whole_batch: bool
    """The loss relates the records of a batch to each other, so that it cannot be taken in parts."""

    def prepare(self, records: Sequence[Record]) -> Sequence[Example]:
        """Encode a shard. Raises DataError for a malformed record or when nothing can be learned from it."""

    def length(self, example: Example) -> int:
        """Tokens, by which the records of a batch are sorted into micro batches with little padding."""

    def collate(self, examples: Sequence[Example], seed: int) -> Batch:
        """Pad on the right. `seed` decides whatever is drawn (masked positions)."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The summed loss: float32 scalar, with a graph where gradients are on."""

    def evaluate(
        self, model: Any, evaluation: Sequence[Example], train: Sequence[Example], micro_batch_size: int
    ) -> dict[Metric, float]:
        """Metrics of the model on the evaluation examples, the same ones every time."""


@runtime_checkable
class Streamed(Protocol):
    """A Method whose records are one long stream of tokens, which may be larger than memory.

    `prepare(records)` is `examples(encoder.tokens(records))`; the tokens may as well be read from a file.
    """

    encoder: "DocumentEncoder"

    def examples(self, tokens: "Tokens") -> Sequence[Example]:
        """Examples over an encoded corpus, each made when it is asked for."""


@runtime_checkable
class Attached(Protocol):
    """A Method that keeps what a frozen model makes of each example, from when it is told of the model."""

    def attach(self, model: Any, folder: Path | None = None) -> None:
        """The model that is trained, as `build` made it. folder: the run's own at this node, for what lies on disk."""

    def check_first(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise ModelError unless the run may start from these trainable tensors."""

    def finish(self) -> None:
        """A slot's work is done: keep what was made, where it is kept on disk."""


def create(specification: Specification, tokenizer: Any) -> Method:
    """The method that the specification names."""
    module = importlib.import_module(f"confide.methods.{specification.method.name}")
    method: Method = module.METHOD(specification, tokenizer)
    return method


def label_of(value: Any, labels: Collection[str] = ()) -> str:
    """A label's name, however the owner's tools wrote it: a table that once had a gap has 1.0 where its owner sees 1.

    labels: those that exist, if they are listed; a text among them is taken as it stands.

    >>> label_of(1.0), label_of(True), label_of("1.0", ["0", "1"]), label_of("1.0", ["1.0"]), label_of(0.5)
    ('1', 'true', '1', '1.0', '0.5')
    """
    if isinstance(value, bool):
        plain, written = str(value).lower(), str(value)
        return written if written in labels else plain
    if isinstance(value, float) and value.is_integer():
        written = str(value)
        return written if written in labels else str(int(value))
    written = str(value)
    whole = _WHOLE.fullmatch(written)
    if labels and written not in labels and whole is not None and whole[1] in labels:
        return str(whole[1])
    return written


def fitting(encode: Callable[[Record], T], records: Sequence[Record]) -> list[T]:
    """Each record encoded; those that do not fit are left out, counted, and named in this machine's log.

    Raises DataError when none fits: for the first one's reason, which quotes nothing.
    """
    made: list[T] = []
    unfit: list[tuple[int, Exception]] = []
    for index in range(len(records)):
        record = records[index]  # outside: a file that cannot be read is no unfit record
        try:
            made.append(encode(record))
        except UNFIT as error:
            unfit.append((index, error))
    if unfit:
        index, first = unfit[0]
        if not made:
            raise first if isinstance(first, DataError) else DataError("no record can be encoded") from None
        place = getattr(records, "place", lambda number: f"record {number + 1}")(index)
        said = str(first) if isinstance(first, DataError) else type(first).__name__
        log.warning("%d of %d records do not fit and are left out; %s: %s", len(unfit), len(records), place, said)
    return made


def micro_batches(method: Method, examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """At most `size` examples at a time, of similar lengths. The order is a function of the examples."""
    ordered = sorted(range(len(examples)), key=lambda index: method.length(examples[index]))
    for start in range(0, len(ordered), size):
        yield [examples[index] for index in ordered[start : start + size]]


def mean_loss(method: Method, model: Any, examples: Sequence[Example], size: int) -> float:
    """Mean loss per counted term over all examples, in float64, without gradients."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad():
        for index, part in enumerate(micro_batches(method, examples, size)):
            batch = method.collate(part, seed=index)
            total += float(method.loss(model, batch.to(device)))
            count += batch.count
    return total / max(count, 1)


def pad_right(rows: Sequence[Any], value: int) -> torch.Tensor:
    """int64, shape (B, T): rows of different lengths, filled up with `value`."""
    out = torch.full((len(rows), max(len(row) for row in rows)), value, dtype=torch.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return out
