"""Which coordinates of the flat update are sent in a round: those that can differ from zero, and no others.

Both sides compute it from the specification, the schema and the round. RoLoRA sends one half in turn, FedSVD its B, and
with federation.fragments > 1 (Streaming DiLoCo, Douillard et al. 2025) the flat vector is cut into that many equal
pieces that go in rotation. Rounds in which the same coordinates are sent have the same phase.

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> halves = parse_toml(EXAMPLE + "fragments = 2")
>>> sent = SentCoordinates(halves, TensorSchema.unnamed(5))
>>> sent.phases, sent.intervals(1), sent.intervals(2), sent.intervals(3)
(2, ((0, 2),), ((2, 5),), ((0, 2),))
>>> sent.gather(np.arange(5.0, dtype=np.float32), round=2).tolist()
[2.0, 3.0, 4.0]
"""

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.codec.tensors import TensorSchema
from confide.errors import SpecificationError
from confide.runs.specification import Specification

Interval = tuple[int, int]
"""From the first coordinate to the one after the last."""


def needs_names(specification: Specification) -> bool:
    """Whether what travels depends on the tensors' names, so that their number alone does not say it."""
    rotates = specification.adapter.kind == "lora" and specification.adapter.aggregation in {"rolora", "fedsvd"}
    return rotates or specification.judges_pairs


def _alternates(specification: Specification) -> bool:
    lora = specification.adapter.kind == "lora" and not specification.asks_feedback
    return lora and specification.adapter.aggregation == "rolora"


def refactors(specification: Specification) -> bool:
    """Whether the coordinator refactors the products between rounds."""
    lora = specification.adapter.kind == "lora" and not specification.asks_feedback
    return lora and specification.adapter.aggregation == "fedsvd"


def is_active(specification: Specification, name: str, round: int) -> bool:
    """Whether a trainable tensor is trained in this round (1-based). The others' update is exactly zero."""
    if specification.judges_pairs:
        return name == "~opinion"  # the candidate is judged as it is
    kind = name.rsplit(".", 1)[-1]
    if specification.adapter.kind != "lora" or not kind.startswith("lora_"):
        return True
    match specification.adapter.aggregation:
        case "rolora":
            return kind == ("lora_B" if round % 2 == 1 else "lora_A")
        case "fedsvd":
            return kind == "lora_B"
        case _:
            return True


class SentCoordinates:
    """What of one run's update travels, by round (1-based)."""

    def __init__(self, specification: Specification, schema: TensorSchema) -> None:
        """Raises SpecificationError when the schema does not say it, or there is a round in which nothing travels."""
        self.schema, self.size = schema, schema.size
        fragments = specification.federation.fragments
        self.fragmented = fragments > 1
        """Whether all is trained and a fragment of it exchanged."""
        self.phases = fragments if fragments > 1 else 2 if _alternates(specification) else 1
        if not needs_names(specification):
            bounds = [schema.size * index // self.phases for index in range(self.phases + 1)]
            self._intervals: list[tuple[Interval, ...]] = [(piece,) for piece in itertools.pairwise(bounds)]
        else:
            if not any(name.rsplit(".", 1)[-1] in {"lora_A", "lora_B"} for name in schema.names):
                raise SpecificationError(
                    f'adapter.aggregation is "{specification.adapter.aggregation}", and the schema that came names no '
                    "LoRA matrices; submit the run with this release, which sends their names"
                )
            self._intervals = [_active(specification, schema, phase + 1) for phase in range(self.phases)]
        self._counts = [sum(stop - start for start, stop in phase) for phase in self._intervals]
        if schema.size and not all(self._counts):
            raise SpecificationError(
                f"federation.fragments is {fragments}, but only {schema.size} parameters are trained; choose fewer"
            )

    def phase(self, round: int) -> int:
        """0 to phases - 1."""
        return (round - 1) % self.phases

    def intervals(self, round: int) -> tuple[Interval, ...]:
        """What travels, in order, neighbours joined."""
        return self._intervals[self.phase(round)]

    def count(self, round: int) -> int:
        """How many scalars travel."""
        return self._counts[self.phase(round)]

    @property
    def most(self) -> int:
        """The largest count of any round."""
        return max(self._counts)

    def gather(self, flat: NDArray[Any], round: int) -> NDArray[Any]:
        """What travels of a vector of shape (size,): shape (count,). The vector itself when all of it does."""
        if self.count(round) == self.size:
            return flat
        return np.concatenate([flat[start:stop] for start, stop in self.intervals(round)])

    def scatter(self, part: NDArray[Any], round: int, into: NDArray[Any]) -> None:
        """Put what `gather` took back to its places in a vector of shape (size,)."""
        done = 0
        for start, stop in self.intervals(round):
            into[start:stop] = part[done : done + stop - start]
            done += stop - start

    def rest(self, first_round: int, rounds: int) -> list[Interval]:
        """What travels in none of `rounds` rounds from `first_round` on."""
        still = np.ones(self.size + 1, dtype=np.bool_)
        for number in range(first_round, first_round + min(rounds, self.phases)):
            for start, stop in self.intervals(number):
                still[start:stop] = False
        still[-1] = False
        edges = np.flatnonzero(np.diff(still, prepend=False))
        return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _active(specification: Specification, schema: TensorSchema, round: int) -> tuple[Interval, ...]:
    found: list[Interval] = []
    offset = 0
    for name, shape in schema.entries:
        count = math.prod(shape)
        if count and is_active(specification, name, round):
            if found and found[-1][1] == offset:
                found[-1] = (found[-1][0], offset + count)
            else:
                found.append((offset, offset + count))
        offset += count
    return tuple(found)
