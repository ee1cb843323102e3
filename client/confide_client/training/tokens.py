"""One node's part in a tokenizer run: count the candidate pairs in its own text, and add noise under privacy.

No model is loaded. Of the text only the counts leave the node, in a sealed sum; of the evaluation split nothing does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from confide.errors import DataError
from confide.privacy.counting import CountingPlan, counting_plan, private_counts
from confide.privacy.noise.randomness import SecureRandom
from confide.privacy.plan import check_user_key
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.fields import Record
from confide.runs.specification import Specification
from confide.sealing.member.tokenizer_link import TokenizerLink
from confide.tokenizer.counting import Corpus, texts_of
from confide.tokenizer.state import TokenizerState, parse_state
from confide.tokenizer.terms import Terms

from confide_client.data.datasets import LocalData


class StateSchema:
    """What a tokenizer run's "model" bytes are: confide_client.runs.loading.Schema."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def decode(self, data: bytes | memoryview) -> TokenizerState:
        """Raises UpdateError for anything that the terms do not allow."""
        return parse_state(data, self._terms)


class TokenizerTrainer:
    """A confide_client.runs.loading.Trainer that counts."""

    def __init__(self, specification: Specification) -> None:
        self._specification = specification
        self._terms = Terms.of(specification)
        self.schema = StateSchema(self._terms)
        self._link = TokenizerLink(specification)
        self._last: bytes | None = None
        self._random = SecureRandom()
        self._corpus: tuple[Sequence[Record | None], Corpus] | None = None

    def contribute(self, model: TokenizerState, data: LocalData, slot: fleet_pb2.SlotOpen) -> Contribution:
        """Counts of the state's candidates, filled up with zeros to the run's length.

        Raises MODEL_CHAIN_BROKEN for a state that does not follow from the last one counted here (sealed transport
        has checked that before; without sealing nobody else does), DataError for records without text.
        """
        self._admit(model, slot.round)
        if slot.evaluate_only:
            return Contribution(np.zeros(0, dtype=np.float32))
        corpus = self._corpus_of(data.train)
        update = np.zeros(self._terms.candidates, dtype=np.float32)
        if self._specification.privacy.unit == "none":
            counts = corpus.counts(model)
        else:
            counts = private_counts(corpus, model, self._plan(corpus.units), self._random)
        update[: len(counts)] = counts
        return Contribution(update)

    def _admit(self, model: TokenizerState, round_number: int) -> None:
        received = model.to_bytes()
        self._link.check(received, round_number)
        if self._last is not None and self._last != received:
            self._link.check_step(self._last, received, round_number - 1, 1)
        self._last = received

    def _plan(self, units: int) -> CountingPlan:
        return counting_plan(self._specification, units=units)

    def _corpus_of(self, records: Sequence[Record | None]) -> Corpus:
        """Split once for as long as the node hands out the same records."""
        if self._corpus is None or self._corpus[0] is not records:
            self._corpus = (records, Corpus.of(units_of(self._specification, records)))
        return self._corpus[1]


def units_of(specification: Specification, records: Sequence[Record | None]) -> list[list[str]]:
    """The texts of each record; with unit = "user" of all records of a user. None counts and says nothing.

    Raises DataError without any record, and without privacy for a malformed one.
    """
    kept = [record for record in records if record is not None]
    if not kept:
        raise DataError("this node's shard is empty: there is nothing to count")
    check_user_key(kept, specification)
    key = specification.privacy.user_key
    if specification.privacy.unit == "none":
        return [_texts(record) for record in records]
    texts = [_texts_or_none(record) for record in records]
    if specification.privacy.unit != "user" or key is None:
        return texts
    users: dict[Any, list[str]] = {}
    for number, (record, said) in enumerate(zip(records, texts, strict=True)):
        user = ("left out", number) if record is None else ("user", record[key])
        users.setdefault(user, []).extend(said)
    return list(users.values())


def _texts_or_none(record: Mapping[str, Any] | None) -> list[str]:
    """Under privacy a malformed record says nothing, and is no failure that would tell of it."""
    try:
        texts = _texts(record)
        for text in texts:
            text.encode()
    except (DataError, UnicodeEncodeError):
        return []
    return texts


def _texts(record: Mapping[str, Any] | None) -> list[str]:
    return [] if record is None else list(texts_of(record))
