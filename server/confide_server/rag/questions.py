"""Question files: what calibration and evaluation ask, and where the answer stands. docs/formats.md describes them.

    {"id": "7", "question": "Who pays?", "gold": [{"source": "fees.pdf", "quote": "The patient pays."}], "answer": "."}

A line names where its answer stands: a source with a `record` of it, or a `quote` in it. "gold": [] asks for what no
document says.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from confide.documents import StoredDocument
from confide.errors import DataError
from confide.rag.canonical_text import normalised
from confide.rag.catalogue import Document
from confide.rag.collection import Collection, passage_name
from pydantic import Field, ValidationError

_MOST_BYTES = 64 * 2**20
_MOST_QUESTIONS = 100_000


class Gold(StoredDocument):
    """A place that answers: a record of a source, or a quotation from it."""

    source: Annotated[str, Field(min_length=1, max_length=400)]
    record: Annotated[str, Field(max_length=200)] = ""
    quote: Annotated[str, Field(max_length=20_000)] = ""


class Question(StoredDocument):
    """One line of a question file."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    question: Annotated[str, Field(min_length=1, max_length=4000)]
    gold: tuple[Gold, ...]
    answer: Annotated[str, Field(max_length=20_000)] = ""


@dataclass(frozen=True)
class Asked:
    """A question with the passages (names) that hold its answer; none where no document says it."""

    question: Question
    passages: frozenset[str]


def parse_questions(data: bytes, what: str) -> list[Question]:
    """The questions of a file, in order. Raises DataError naming the line."""
    if len(data) > _MOST_BYTES:
        raise DataError(f"{what} has {len(data):,} bytes; at most {_MOST_BYTES:,} are read")
    found: dict[str, Question] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        question = _parsed(line, number, what)
        if question.id in found or len(found) >= _MOST_QUESTIONS:
            raise DataError(
                f"{what} line {number}: the id is another line's, or there are over {_MOST_QUESTIONS:,} lines"
            )
        found[question.id] = question
    if not found:
        raise DataError(f"{what} holds no questions")
    return list(found.values())


def read_questions(path: Path) -> list[Question]:
    """As `parse_questions`, of a file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return parse_questions(data, str(path))


def _parsed(line: bytes, number: int, what: str) -> Question:
    try:
        fields = json.loads(line, object_pairs_hook=_once)
        if isinstance(fields, dict):
            fields.setdefault("id", str(number))
        question = Question.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{what} line {number}: {place or 'the line'}: {first['msg']}; docs/formats.md says how"
        ) from None
    except DataError as error:
        raise DataError(f"{what} line {number}: {error}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{what} line {number} is not JSON; each line holds one question") from None
    if not question.question.strip():
        raise DataError(f"{what} line {number}: question: it holds nothing but white space")
    for gold in question.gold:
        if bool(gold.record) == bool(gold.quote):
            raise DataError(f"{what} line {number}: a place of gold needs a record or a quote, and not both")
        if gold.quote and not normalised(gold.quote).strip():
            raise DataError(f"{what} line {number}: a quote of white space stands everywhere; write words")
    return question


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each field of which was written once: of two the later would count in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise DataError("a field is written twice")
    return made


def resolved(collection: Collection, questions: Sequence[Question]) -> list[Asked]:
    """Each with the passages of live documents that it names. Raises DataError for a place that is not there."""
    by_source = {document.source: document for document in collection.catalogue().live().values()}
    asked = []
    for question in questions:
        names: set[str] = set()
        for gold in question.gold:
            if gold.source not in by_source:
                raise DataError(
                    f"question {question.id!r} names the source {gold.source!r}, which is not in the collection"
                )
            found = _passages(collection, by_source[gold.source], gold)
            if not found:
                raise DataError(f"question {question.id!r}: its place in {gold.source!r} is not there as it is written")
            names |= found
        asked.append(Asked(question, frozenset(names)))
    return asked


def _passages(collection: Collection, document: Document, gold: Gold) -> set[str]:
    content = collection.content(document)
    spans = list(enumerate(content.passages))
    if gold.record:
        ranges = [(mark.start, mark.stop) for mark in content.marks if mark.record == gold.record]
    else:
        pattern = r"\s+".join(map(re.escape, normalised(gold.quote).split()))
        ranges = [match.span() for match in re.finditer(pattern, content.text)]
    return {
        passage_name(document.id, ordinal)
        for ordinal, span in spans
        if any(start < span.stop and stop > span.start for start, stop in ranges)
    }
