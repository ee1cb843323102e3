"""Canaries: made-up records that a node plants among its own to measure what training remembers.

Each is a sequence of tokens drawn uniformly, in the record format of the run's method, and is included by a fair coin
from the operating system. All of them count in the number of records, included or not, so that a coin changes nothing
but one record's contribution. They hold nothing of anybody; the coins stay on the node.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import DataError, SpecificationError, StateError
from confide.runs.specification import Specification

MOST_CANARIES = 20_000
PREFIX_TOKENS = 8
"""Extraction asks for the rest of a canary after so many of its tokens."""


class Canary(StoredDocument):
    """One made-up record. `fields` is what training sees, when `included`."""

    fields: dict[str, str]
    included: bool


class CanarySet(StoredDocument):
    """What a node planted in one data set for one method."""

    version: Literal[1] = 1
    method: str
    canaries: Annotated[tuple[Canary, ...], Field(min_length=2, max_length=MOST_CANARIES)]

    def records(self, *, counted: bool) -> list[Mapping[str, Any] | None]:
        """The canaries as training records. counted: None stands for one that was left out, so that it is counted."""
        kept: list[Mapping[str, Any] | None] = [canary.fields if canary.included else None for canary in self.canaries]
        return kept if counted else [record for record in kept if record is not None]

    def to_bytes(self) -> bytes:
        """Canonical JSON. It holds the coins: mode 0600, never sent."""
        return canonical.encode(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "CanarySet":
        """What `to_bytes` wrote. Raises StateError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise StateError(
                f"{source} is damaged ({error.error_count()} faults); plant the canaries again before the next run"
            ) from error


def make_canaries(specification: Specification, tokenizer: Any, count: int, *, tokens: int = 24) -> CanarySet:
    """`count` canaries of about `tokens` random tokens each, in the format of the specification's method.

    For classification a random text carries a random label; for the other methods the random tokens are what is
    learned. Raises SpecificationError for a method that canaries are not made for.
    """
    if not 2 <= count <= MOST_CANARIES:
        raise DataError(f"{count} canaries were asked for; choose 2 to {MOST_CANARIES}")
    method, key = specification.method, specification.privacy.user_key
    ordinary = _ordinary_tokens(tokenizer)
    length = min(tokens, method.max_length // 2)
    random = secrets.SystemRandom()
    canaries = []
    for number in range(count):
        text = tokenizer.decode([random.choice(ordinary) for _ in range(length)]).strip()
        fields = _fields(method.name, text, random.choice(method.labels) if method.labels else "", number)
        if key is not None:
            fields[key] = f"canary-{number}"
        canaries.append(Canary(fields=fields, included=bool(secrets.randbits(1))))
    return CanarySet(method=method.name, canaries=tuple(canaries))


def _fields(method: str, text: str, label: str, number: int) -> dict[str, str]:
    if method == "sft":
        return {"prompt": f"Canary {number}:", "completion": text}
    if method in {"causal_lm", "masked_lm"}:
        return {"text": text}
    if method == "classification":
        return {"text": text, "label": label}
    raise SpecificationError(
        f"canaries are not made for method {method!r}; audits are offered for sft, causal_lm, masked_lm, classification"
    )


def _ordinary_tokens(tokenizer: Any) -> Sequence[int]:
    special = set(tokenizer.all_special_ids)
    numbers = [number for number in sorted(tokenizer.get_vocab().values()) if number not in special]
    texts = tokenizer.batch_decode([[number] for number in numbers])
    # Whole characters only: parts of one do not survive being text.
    found = [number for number, text in zip(numbers, texts, strict=True) if text.strip().isalnum()]
    if len(found) < 16:
        raise DataError(f"the tokenizer has only {len(found)} ordinary tokens; canaries need at least 16")
    return found
