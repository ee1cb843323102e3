"""BM25 over a collection's passages (bm25s), the same over every store.

The index is made from the stored texts and can be made again at any time: it carries the catalogue's generation, and
one of another generation is not used. Its vocabulary holds words of the documents, so an erasure makes it anew.

Scripts that write no spaces between words, and Korean, whose particles are written at the word, are compared by
overlapping pieces instead: two characters (and single Chinese ones, many of which are words), three where letters and
their marks are apart. That needs no dictionary, and no guess at the language; docs/benchmarks.md says what it finds.

>>> index = LexicalIndex.build(["a", "b"], ["The scaffold needs a permit.", "Permits cost forty crowns."])
>>> index.names[int(index.scores("who permits a scaffold?").argmax())]
'a'
"""

import functools
import json
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.files import fsync_folder, private_folder, write_atomic
from confide.memory import nothing_to_collect

_WORD = re.compile(r"[^\W_]+")
_STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "shall",
        "should",
        "so",
        "such",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "we",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
FORMAT = 2
"""Of what words are. 1: runs of letters in every script, so that a Chinese sentence was one word."""
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PAIRS = f"{_HAN}\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\uac00-\ud7a3"
"""Han, kana and Hangul: most words have two characters."""
_TRIPLES = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7-\u17e9"
"""Thai, Lao, Burmese and Khmer, with vowels, tones and other marks: a syllable has two to four characters."""
_RUNS = re.compile(f"([{_PAIRS}]+|[{_TRIPLES}]+)")
_IN_TRIPLES = re.compile(f"[{_TRIPLES}]")
_IS_HAN = re.compile(f"[{_HAN}]")


def words(text: str) -> list[str]:
    """What is compared: words without case and plural, common ones left out; pieces of words as said above."""
    found: list[str] = []
    for place, part in enumerate(_RUNS.split(unicodedata.normalize("NFKC", text).casefold())):
        found += _pieces(part) if place % 2 else [_stem(word) for word in _WORD.findall(part) if word not in _STOP]
    return found


def _pieces(run: str) -> list[str]:
    """Of characters of one of the scripts."""
    length = 3 if _IN_TRIPLES.match(run) else 2
    pieces = [run[at : at + length] for at in range(max(1, len(run) - length + 1))]
    return pieces + (_IS_HAN.findall(run) if len(run) > 1 else [])


def _stem(word: str) -> str:
    """English plurals (Harman 1991, the "S" stemmer); other words stay."""
    if len(word) < 4 or not word.isascii() or not word.endswith("s"):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word if word.endswith(("us", "ss")) else word[:-1]


class LexicalIndex:
    """Scores of every passage for a query, in one sparse matrix: a column a word."""

    def __init__(
        self,
        names: list[str],
        vocabulary: dict[str, int],
        data: NDArray[np.float32],
        rows: NDArray[np.int32],
        starts: NDArray[np.int64],
    ) -> None:
        self.names = names
        self._vocabulary, self._data, self._rows, self._starts = vocabulary, data, rows, starts
        counts = np.diff(starts)
        total = max(1, len(names))
        # The weight of a word by how few passages have it (Robertson and Sparck Jones, as Lucene has it).
        self._rarity = np.log1p((total - counts + 0.5) / (counts + 0.5))
        self._unknown = float(np.log1p((total + 0.5) / 0.5))

    @classmethod
    def build(cls, names: Sequence[str], texts: Sequence[str]) -> "LexicalIndex":
        """An index over texts, in their order."""
        with nothing_to_collect():
            import bm25s

        found = [words(text) for text in texts]
        vocabulary = {word: place for place, word in enumerate(sorted({word for one in found for word in one}))}
        if not vocabulary:
            nothing = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64)
            return cls(list(names), {}, *nothing)
        engine = bm25s.BM25(method="lucene")
        # It adds a word of its own to the vocabulary that it is given.
        given = [[vocabulary[word] for word in one] for one in found], dict(vocabulary)
        engine.index(given, show_progress=False)
        scores = engine.scores
        starts = np.asarray(scores["indptr"], np.int64)[: len(vocabulary) + 1]
        return cls(
            list(names),
            vocabulary,
            np.asarray(scores["data"], np.float32),
            np.asarray(scores["indices"], np.int32),
            starts,
        )

    def scores(self, query: str) -> NDArray[np.float32]:
        """(N,): BM25 of every passage."""
        total = np.zeros(len(self.names), np.float32)
        for place in {self._vocabulary[word] for word in words(query) if word in self._vocabulary}:
            column = slice(self._starts[place], self._starts[place + 1])
            total[self._rows[column]] += self._data[column]
        return total

    def ceiling(self, query: str) -> float:
        """What a passage would score that has every word of the query as well as any passage has it; at least 1."""
        total = 0.0
        for word in set(words(query)):
            place = self._vocabulary.get(word)
            column = () if place is None else self._data[self._starts[place] : self._starts[place + 1]]
            total += float(np.max(column)) if len(column) else self._unknown
        return max(total, 1.0)

    def coverage(self, query: str, text: str) -> float:
        """From 0 to 1: how much of the query's words, weighted by rarity, stands in the text."""
        asked, there = set(words(query)), set(words(text))
        weights = {word: self._weight(word) for word in asked}
        total = sum(weights.values())
        return sum(weights[word] for word in asked & there) / total if total > 0 else 0.0

    @functools.cached_property
    def in_pieces(self) -> float:
        """Share of passages that hold pieces of words: those that format 1 saw otherwise."""
        columns = [place for word, place in self._vocabulary.items() if _RUNS.match(word)]
        rows = [self._rows[self._starts[place] : self._starts[place + 1]] for place in columns]
        return len(np.unique(np.concatenate(rows))) / len(self.names) if rows else 0.0

    def _weight(self, word: str) -> float:
        place = self._vocabulary.get(word)
        return self._unknown if place is None else float(self._rarity[place])

    def save(self, folder: Path, generation: int) -> None:
        """Write it so that a crash leaves it whole, or unused."""
        shutil.rmtree(folder, ignore_errors=True)
        private_folder(folder)
        with (folder / "scores.npz").open("wb") as file:
            np.savez(file, data=self._data, rows=self._rows, starts=self._starts)
        words_of_it = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        (folder / "words.json").write_bytes(json.dumps([self.names, words_of_it], ensure_ascii=False).encode())
        fsync_folder(folder)
        write_atomic(folder / "stamp.json", json.dumps({"format": FORMAT, "generation": generation}).encode())

    @classmethod
    def load(cls, folder: Path, generation: int) -> "LexicalIndex | None":
        """The index of this generation; None where there is none that is whole, and it is made anew."""
        try:
            stamp = json.loads((folder / "stamp.json").read_bytes())
            if stamp != {"format": FORMAT, "generation": generation}:
                return None
            names, vocabulary = json.loads((folder / "words.json").read_bytes())
            with (folder / "scores.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                data, rows, starts = arrays["data"], arrays["rows"], arrays["starts"]
        except (OSError, ValueError, TypeError, KeyError, EOFError, RecursionError, zipfile.BadZipFile):
            return None
        if not _sound(names, vocabulary, data, rows, starts):
            return None
        return cls(names, {word: place for place, word in enumerate(vocabulary)}, data, rows, starts)


def _sound(names: Any, vocabulary: Any, data: Any, rows: Any, starts: Any) -> bool:
    """Whether what was read is an index: damaged numbers must not become a wrong answer or a crash."""
    if not all(isinstance(one, list) and all(isinstance(item, str) for item in one) for one in (names, vocabulary)):
        return False
    kinds = (data.dtype, rows.dtype, starts.dtype) == (np.float32, np.int32, np.int64)
    if not kinds or any(array.ndim != 1 for array in (data, rows, starts)) or len(starts) != len(vocabulary) + 1:
        return False
    ordered = bool((np.diff(starts) >= 0).all()) and starts[0] == 0 and starts[-1] == len(data) == len(rows)
    inside = len(rows) == 0 or (int(rows.min()) >= 0 and int(rows.max()) < len(names))
    return ordered and inside and bool(np.isfinite(data).all())
