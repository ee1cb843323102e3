"""Packaged text in the format of each recipe. Samples are drawn by hash, the same ones every time."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confide_simulations import assets
from confide_simulations.recipes import python_code

Record = Mapping[str, Any]
Say = Callable[[str], None]

_SUPPORT, _MEDICAL, _SENTENCES, _LICENCES, _FUNCTIONS = 503, 600, 3000, 150, 600
"""Records that a recipe takes: of licences, of each category."""
_PASSAGE = 400
"""Characters of a licence's opening."""
_LEGAL = ("Permissive", "Proprietary Free", "Copyleft Limited", "Copyleft")
_FELT = 0.5
"""Mean rating, of -4 to 4, from which a sentence counts as positive; below its negative, as negative."""


def sample(records: Iterable[Record], count: int) -> list[Record]:
    """At most `count` records, in an order that depends on nothing but their content."""
    return sorted(records, key=_digest)[:count]


def _digest(record: Record) -> bytes:
    return hashlib.sha256(json.dumps(dict(record), sort_keys=True).encode()).digest()


def support(say: Say) -> list[Record]:
    """{question, answer, category}."""
    fields = ("question", "answer", "category")
    return sample(({name: row[name] for name in fields} for row in assets.construction_faq(say)), _SUPPORT)


def medical(say: Say) -> list[Record]:
    """{text, summary, system}: a definition, the finding's name, and the organ system."""
    rows = (row for row in assets.phenotypes(say) if 80 <= len(row["definition"]) <= 500)
    return sample(
        ({"text": row["definition"], "summary": row["name"], "system": row["system"]} for row in rows), _MEDICAL
    )


def sentiment(say: Say) -> list[Record]:
    """{text, label, source}: label negative, neutral or positive by the mean rating."""
    rows = assets.sentiment_snippets(say)
    return sample(
        ({"text": row["text"], "label": _felt(row["rating"]), "source": row["source"]} for row in rows), _SENTENCES
    )


def _felt(rating: float) -> str:
    return "positive" if rating >= _FELT else "negative" if rating <= -_FELT else "neutral"


def legal(say: Say) -> list[Record]:
    """{text, label, owner}: the opening of a licence, its category, and who wrote it; equally many of each category."""
    kept, counts = [], Counter[str]()
    seen = set()
    rows = (
        {"text": _opening(r["text"]), "label": r["category"], "owner": r["owner"]} for r in assets.licence_texts(say)
    )
    for row in sample(rows, 10**6):
        label, text = row["label"], row["text"]
        if label in _LEGAL and len(text) > _PASSAGE // 2 and text not in seen and counts[label] < _LICENCES:
            seen.add(text)
            counts[label] += 1
            kept.append(row)
    return kept


def _opening(text: str) -> str:
    """About _PASSAGE characters in one line, cut between words."""
    line = " ".join(text.split())
    return line if len(line) <= _PASSAGE else line[:_PASSAGE].rsplit(" ", 1)[0]


def code(say: Say) -> list[Record]:
    """{prompt, completion, module}: signature and docstring, body, and the module."""
    return sample(python_code.functions(), _FUNCTIONS)
