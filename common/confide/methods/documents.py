"""Records into documents of tokens, in a stream: what pre-training on the next and on masked tokens share."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import tokenizers
import transformers

from confide import canonical
from confide.errors import DataError
from confide.methods.packing import Document, Tokens
from confide.runs.fields import Record, fields_of, text_of

log = logging.getLogger(__name__)

_BATCH, _BATCH_CHARACTERS = 512, 1 << 20
"""Texts that a tokenizer, which works on several at once, is given; it needs many times their size."""


class DocumentEncoder:
    """How one method makes documents of records."""

    def __init__(self, method: str, tokenizer: Any, *, special: bool, end: int | None = None) -> None:
        """special: with the tokenizer's own special tokens around each text. end: a token behind each."""
        self._method, self._tokenizer, self._special, self._end = method, tokenizer, special, end

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return 1 + int(max(self._tokenizer.get_vocab().values()))

    @cached_property
    def digest(self) -> str:
        """SHA-256, hex, of what decides how a text turns into tokens."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend is not None else canonical.encode(self._tokenizer.get_vocab()).decode()
        return canonical.digest(
            {
                "kind": type(self._tokenizer).__name__,
                "rules": hashlib.sha256(rules.encode()).hexdigest(),
                "special": self._special,
                "end": self._end,
                "libraries": [tokenizers.__version__, transformers.__version__],
            }
        )

    def texts(self, records: Sequence[Record]) -> Iterator[str]:
        """The text of each record that has one. Raises DataError when none has; the message quotes nothing."""
        # One by one: records may be read from a file as they are asked for.
        unfit, first = 0, ""
        for index in range(len(records)):
            record = records[index]
            try:
                text = self._text(record)
            except DataError as error:
                unfit += 1
                first = first or str(error)
                continue
            yield text
        if unfit and unfit == len(records):
            raise DataError(first)
        if unfit:
            log.warning("%d of %d records do not fit and are left out; of the first: %s", unfit, len(records), first)

    def _text(self, record: Record) -> str:
        fields_of(self._method, record)
        text = text_of(record, "text")
        _utf8(text)
        return text

    def documents(self, texts: Iterator[str]) -> Iterator[Document]:
        """Each text that has any tokens, encoded by itself."""
        after = [] if self._end is None else [self._end]
        for batch in _batches(texts):
            sizes = [len(_utf8(text)) for text in batch]
            rows = self._tokenizer(batch, add_special_tokens=self._special)["input_ids"]
            for size, ids in zip(sizes, rows, strict=True):
                if ids:
                    yield [*ids, *after], size

    def tokens(self, records: Sequence[Record]) -> Tokens:
        """The encoded corpus, in memory."""
        return Tokens.of(self.documents(self.texts(records)), self.vocabulary)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _utf8(text: str) -> bytes:
    """Raises DataError for half of a surrogate pair, which no tokenizer takes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError("the text of a record holds half of a surrogate pair; write it again as UTF-8") from error
