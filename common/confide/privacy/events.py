"""What can be charged to a privacy budget: a closed set of mechanism events that serialize to canonical JSON.

The ledger stores events, not epsilons: an epsilon cannot be composed with another one without loss, an event can.
Every event is stated for sensitivity 1 in the unit that is protected (a record, a user, an organization) under
zero-out adjacency: neighbours differ in that one unit's contribution is replaced by nothing.

>>> event = SampledGaussian(noise_multiplier=1.1, sampling_rate=0.05, steps=98)
>>> parse_events(serialize_events([event])) == (event,)
True
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import LedgerError

MAX_COUNT = 10**9
"""Most repetitions of one mechanism in an event; more is a mistake."""

Multiplier = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class GaussianRelease(StoredDocument):
    """`count` vectors, each released once with Gaussian noise (Dwork and Roth 2014, appendix A)."""

    kind: Literal["gaussian"] = "gaussian"
    noise_multiplier: Multiplier
    """Standard deviation of the noise over the L2 norm to which a contribution was clipped."""
    count: Count = 1

    def times(self, repetitions: int) -> "GaussianRelease":
        """The same mechanism, `repetitions` times as often."""
        return self.model_copy(update={"count": _bounded(self.count * repetitions)})


class SampledGaussian(StoredDocument):
    """`steps` steps of DP-SGD (Abadi et al. 2016): each unit is in a batch independently with `sampling_rate`."""

    kind: Literal["sampled_gaussian"] = "sampled_gaussian"
    noise_multiplier: Multiplier
    """Standard deviation of the noise on the sum over the clipping norm."""
    sampling_rate: float = Field(gt=0, le=1, allow_inf_nan=False)
    """q: Poisson sampling, so batches vary in size and can be empty. Shuffled batches are not this mechanism."""
    steps: Count

    def times(self, repetitions: int) -> "SampledGaussian":
        """The same mechanism, `repetitions` times as often."""
        return self.model_copy(update={"steps": _bounded(self.steps * repetitions)})


class SkellamRelease(StoredDocument):
    """`count` integer vectors, each released once with Skellam noise (Agarwal, Kairouz and Liu 2021)."""

    kind: Literal["skellam"] = "skellam"
    variance: Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
    """mu, of the noise that the adversary does not know, per coordinate, in squared integer units."""
    l2: Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
    """D2: bound on the L2 norm of a contribution, in integer units."""
    l1: Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
    """D1: bound on its L1 norm; never above D2^2 for integers."""
    count: Count = 1

    def times(self, repetitions: int) -> "SkellamRelease":
        """The same mechanism, `repetitions` times as often."""
        return self.model_copy(update={"count": _bounded(self.count * repetitions)})


Event = GaussianRelease | SampledGaussian | SkellamRelease
AnyEvent = Annotated[Event, Field(discriminator="kind")]

_EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[AnyEvent, ...])


def _bounded(count: int) -> int:
    if not 1 <= count <= MAX_COUNT:
        raise LedgerError(f"a mechanism would run {count} times; 1 to {MAX_COUNT} is allowed. Ask for fewer steps.")
    return count


def to_documents(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The events as JSON objects."""
    return [event.model_dump(mode="json") for event in events]


def serialize_events(events: Iterable[Event]) -> bytes:
    """The events' canonical bytes."""
    return canonical.encode(to_documents(events))


def parse_events(data: bytes) -> tuple[Event, ...]:
    """Read canonical bytes. Raises LedgerError for an unknown mechanism, field or value, or another spelling."""
    try:
        events = _EVENTS.validate_json(data)
        if serialize_events(events) != data:
            raise LedgerError("privacy events are not in canonical form; another program wrote or altered them")
    except (ValidationError, RecursionError, json.JSONDecodeError) as error:
        raise LedgerError(f"unknown or malformed privacy event; nothing is guessed: {error}") from error
    return events
