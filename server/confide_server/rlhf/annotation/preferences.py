"""Comparisons that people made of answers: what is written down, in files that work without a server.

candidates.jsonl holds one Candidate a line; ratings-NAME.jsonl one Comparison a line, appended and synced as each is
made. Every rating is kept: later stages decide, nothing here forgets. An undo is a further line that takes the last one
back.

>>> one = Candidate(prompt="why?", text="so", model="0" * 64)
>>> one.id == Candidate(prompt="why?", text="so", model="0" * 64, seed=1).id
False
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import DataError, RetryableError
from pydantic import Field, ValidationError, model_validator

Choice = Literal["first", "second", "tie", "both_bad", "skip"]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Person = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
MOST_CHARACTERS = 100_000
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Candidate(StoredDocument):
    """One answer, and how it came about."""

    prompt: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
    text: Text
    model: Digest
    """SHA-256 of the base model's folder."""
    adapter: Digest = ""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    @property
    def id(self) -> str:
        """SHA-256 of its canonical bytes."""
        return canonical.digest(self.model_dump(mode="json"))


class Comparison(StoredDocument):
    """One person's judgement of two answers to one prompt, in the order in which they were shown."""

    first: Digest
    second: Digest
    choice: Choice
    annotator: Person
    rubric: Annotated[str, Field(min_length=1, max_length=64)] = "1"
    """Version of the instructions that the annotator had."""
    reason: Annotated[str, Field(max_length=2000)] = ""
    milliseconds: int = Field(default=0, ge=0, le=10**9)
    undone: bool = False
    """Takes back the same annotator's earlier judgement of the pair."""

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        if self.first == self.second or not (self.first and self.second):
            raise ValueError("first and second must be two answers; one was compared with itself, or with none")
        return self

    @property
    def pair(self) -> tuple[str, str]:
        """The two answers, in one order whoever saw which first."""
        return (self.first, self.second) if self.first <= self.second else (self.second, self.first)

    @property
    def preferred(self) -> str | None:
        """Of the two the better, None for anything but a preference."""
        return {"first": self.first, "second": self.second}.get(self.choice)


D = TypeVar("D", Candidate, Comparison)


def lines_of(data: bytes) -> list[str]:
    """Lines of UTF-8, ended by \\n or \\r\\n alone: str.splitlines would end them at U+2028 within a text as well."""
    return [line.removesuffix("\r") for line in data.decode().split("\n")]


def read_lines(path: Path, kind: type[D]) -> list[D]:
    """A file of one document a line. Raises DataError naming the file, the line and the field."""
    found: list[D] = []
    try:
        lines = lines_of(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; give a UTF-8 file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(kind.model_validate_json(line))
        except (ValidationError, ValueError, RecursionError) as error:
            field = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "JSON"
            raise DataError(f"{path} line {number} is no {kind.__name__}: check {field or 'its form'}") from error
    return found


def append_line(path: Path, document: Candidate | Comparison) -> None:
    """Add a line that is on disk when this returns, whole or not at all; the file is 0600.

    Raises RetryableError where it cannot be written: the file is then as it was.
    """
    data = canonical.encode(document.model_dump(mode="json")) + b"\n"
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            if length:  # an editor may have left the last line without its end
                file.seek(length - 1)
                data = data if file.read(1) == b"\n" else b"\n" + data
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(length)
                raise
    except OSError as error:
        raise RetryableError(f"cannot write {path}: {error.strerror}. Free space or fix the file's rights.") from error


def check_candidates(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """By id. Raises DataError for answers that are the same in all but how they were drawn, and for none at all."""
    if not candidates:
        raise DataError("there are no candidates; make some with `confide rlhf candidates`")
    seen: dict[tuple[str, str], Candidate] = {}
    for one in candidates:
        if (one.prompt, one.text) in seen:
            raise DataError(
                f"CANDIDATES_IDENTICAL: two candidates say the same to one prompt ({one.id[:12]} and "
                f"{seen[one.prompt, one.text].id[:12]}); nobody can prefer either. Draw more, or leave one out"
            )
        seen[one.prompt, one.text] = one
    return {one.id: one for one in candidates}


def pairs_of(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Every two answers to the same prompt, in the order of their ids."""
    by_prompt: dict[str, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda candidate: candidate.id):
        by_prompt.setdefault(one.prompt, []).append(one)
    return [pair for group in by_prompt.values() for pair in combinations(group, 2)]


def standing(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What stands when undone judgements are taken back, in order.

    Raises DataError RATING_REPLAYED for a second judgement of a pair by one annotator that was not undone before.
    """
    found: dict[tuple[str, tuple[str, str]], Comparison] = {}
    for one in comparisons:
        key = (one.annotator, one.pair)
        if one.undone:
            found.pop(key, None)
        elif key in found:
            raise DataError(
                f"RATING_REPLAYED: {one.annotator} judged the pair {one.pair[0][:12]}, {one.pair[1][:12]} twice; a "
                "judgement is given once, or undone before it is given again"
            )
        else:
            found[key] = one
    return list(found.values())


def check_annotators(comparisons: Sequence[Comparison], allowed: Sequence[str]) -> None:
    """Raise DataError for judgements of somebody who is not on the list of annotators."""
    strangers = sorted({one.annotator for one in comparisons} - set(allowed))
    if strangers:
        raise DataError(
            f"ANNOTATOR_UNKNOWN: {strangers[0]!r} is not among the {len(allowed)} annotators; admit them first, or "
            "leave their judgements out"
        )


def json_lines(rows: Sequence[object]) -> Iterator[bytes]:
    """Each row as one line of UTF-8."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
