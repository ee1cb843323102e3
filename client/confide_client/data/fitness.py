"""Can a run's method learn from this node's records? Tried here, before a person approves it and a budget is spent.

    fitness = try_method(specification, base, data.train)
    fitness.lines(), fitness.warnings()

The run's own encoding goes over every training record: its tokenizer, template, labels and longest length.

Guarantee: what is found is for this node's operator and is sent nowhere, not even as a refusal. Whoever chooses labels
and lengths would learn from one whether a record is here (docs/privacy.md). With approval = "auto" a run that no record
fits waits for a person, and that it waits is seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confide.errors import DataError, ModelError
from confide.models.store import ModelStore
from confide.runs.specification import Specification

from confide_client.data.datasets import DataSets
from confide_client.data.rows import place_of
from confide_client.state import StateFolder

MOST_TRIED = 2000
_MOST_REASONS = 3


@dataclass(frozen=True)
class Fitness:
    """records: tried; unfit: how many teach nothing; reasons: by text, how many and where the first is."""

    records: int
    unfit: int
    reasons: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def hopeless(self) -> bool:
        """Whether nothing can be learned here at all."""
        return self.records > 0 and self.unfit == self.records

    def lines(self) -> list[str]:
        """For `node plan`, where all is well."""
        return [f"all {self.records} training records fit the method"] if self.records and not self.unfit else []

    def warnings(self) -> list[str]:
        """For `node plan`: how many records teach nothing, why, and where the first of them stands."""
        if not self.unfit:
            return []
        told = sorted(self.reasons.items(), key=lambda item: -item[1][0])[:_MOST_REASONS]
        said = [f"{count} records, first {place}: {reason}" for reason, (count, place) in told]
        if self.hopeless:
            return [f"nothing can be learned from any of the {self.records} training records", *said]
        return [f"nothing can be learned from {self.unfit} of {self.records} training records", *said]


def try_method(specification: Specification, base: Path, records: Sequence[Any], most: int | None = None) -> Fitness:
    """Encode training records as the run would. Raises ModelError for a base that does not go with the method.

    most: so many of them at most, evenly spread; None: all.
    """
    # Imported late: torch takes seconds, and most commands need none of it.
    from confide.methods.base import UNFIT, Streamed, create
    from confide.models.architecture import load_tokenizer

    method = create(specification, load_tokenizer(base))
    encode = _tokens_of(method.encoder) if isinstance(method, Streamed) else _examples_of(method)
    unfit = 0
    reasons: dict[str, tuple[int, str]] = {}
    step = 1 if most is None else max(1, -(-len(records) // most))
    tried = 0
    for index in range(0, len(records), step):
        record = records[index]
        if record is None:
            continue
        tried += 1
        try:
            encode(record)
        except UNFIT as error:
            unfit += 1
            reason = str(error) if isinstance(error, DataError) else f"cannot be encoded ({type(error).__name__})"
            count, place = reasons.get(reason) or (0, place_of(records, index))
            reasons[reason] = count + 1, place
    return Fitness(tried, unfit, reasons)


def try_offered(state: StateFolder, specification: Specification) -> Fitness | None:
    """As `try_offer`, of at most MOST_TRIED records: an offer's answer is waited for."""
    return try_offer(state, specification, MOST_TRIED)


def try_offer(state: StateFolder, specification: Specification, most: int | None = None) -> Fitness | None:
    """As `try_method`, of a run that trains a model on a registered data set; None where there is none to try.

    What is missing here (base model, data set) is said elsewhere: the agent refuses the offer for it.
    """
    name = specification.federation.data
    if not specification.trains_model or specification.asks_feedback or name not in DataSets(state.root).all():
        return None
    try:
        base = ModelStore(state.models).path(specification.model.sha256)
    except ModelError:
        return None
    return try_method(specification, base, DataSets(state.root).load(name).train, most)


def check_worth_approving(state: StateFolder, specification: Specification) -> list[str]:
    """Warnings for who approves a run. Raises DataError when it could learn nothing here."""
    found = try_offer(state, specification)
    if found is None:
        return []
    if found.hopeless:
        raise DataError("; ".join(found.warnings()) + ". See `confide node plan`, or refuse the run")
    return found.warnings()


def _examples_of(method: Any) -> Any:
    def encode(record: Any) -> None:
        if not method.prepare([record]):
            raise DataError("it has no text to learn from")

    return encode


def _tokens_of(encoder: Any) -> Any:
    def encode(record: Any) -> None:
        if next(encoder.documents(iter(encoder.texts([record]))), None) is None:
            raise DataError("its text is empty")

    return encode
