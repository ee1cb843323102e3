"""The sets of the RAG demo: real questions whose answers are the passages. The question itself is in no index."""

import gzip
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.rag.parsing.child import parse
from confide_server.rag.questions import Gold, Question

from confide_simulations import assets, debian
from confide_simulations.assets import Say

_MOST_CHARS = 20_000_000
_PHENOTYPES = 400
_FEWEST_CHARS = 20


@dataclass(frozen=True)
class QuestionSet:
    """One organization's collection: a jsonl file of answers, and the questions to them."""

    organization: str
    collection: str
    file: Path
    questions: tuple[Question, ...]

    def halves(self, seed: int = 0) -> tuple[list[Question], list[Question]]:
        """(for calibration, for the test), drawn at random, apart."""
        mixed = list(self.questions)
        random.Random(seed).shuffle(mixed)
        middle = len(mixed) // 2
        return mixed[:middle], mixed[middle:]


def construction(folder: Path, say: Say) -> QuestionSet:
    """503 questions on building."""
    rows = [(r["id"], r["question"], r["answer"]) for r in assets.construction_faq(say)]
    return _written(folder, "builders", "construction-faq", rows)


def phenotypes(folder: Path, say: Say) -> QuestionSet:
    """400 clinical findings of the Human Phenotype Ontology: the name asks, the definition answers."""
    terms = assets.phenotypes(say)
    chosen = random.Random(0).sample(terms, _PHENOTYPES)
    rows = [(one["id"].replace(":", "-"), f"What is {one['name']}?", one["definition"]) for one in chosen]
    return _written(folder, "clinic", "findings", rows)


def python_faq(folder: Path, say: Say) -> QuestionSet:
    """The questions of Python's own FAQ, from Debian's package. Raises DataError where that cannot be had."""
    return _written(folder, "developers", "python-faq", asked_of_python(say))


def asked_of_python(say: Say) -> list[tuple[str, str, str]]:
    """(id, question, answer) of Python's own FAQ. Raises DataError as `python_faq`."""
    pages = debian.unpacked(debian.PYTHON_DOC, say) / "usr/share/doc/python3.11/html/faq"
    rows = []
    for page in sorted(pages.glob("*.html")):
        for number, (question, answer) in enumerate(_asked(page.read_bytes())):
            rows.append((f"{page.stem}-{number}", question, answer))
    return rows


def _asked(page: bytes) -> list[tuple[str, str]]:
    """(heading that asks, text below it) of a page."""
    found: list[tuple[str, list[str]]] = []
    for block in parse("html", page, _MOST_CHARS).blocks:
        if block.level:
            found.append((block.text, []))
        elif found:
            found[-1][1].append(block.text)
    return [(title, "\n\n".join(texts)) for title, texts in found if title.endswith("?") and len("".join(texts)) > 1]


def _written(folder: Path, organization: str, collection: str, rows: Sequence[tuple[str, str, str]]) -> QuestionSet:
    path = folder / f"{collection}.jsonl"
    kept = [row for row in rows if len(row[2]) >= _FEWEST_CHARS]
    lines = [json.dumps({"id": key, "text": answer}, ensure_ascii=False) for key, _, answer in kept]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    questions = tuple(
        Question(id=key, question=question, gold=(Gold(source=path.name, record=key),), answer=answer)
        for key, question, answer in kept
    )
    return QuestionSet(organization, collection, path, questions)


def policy(folder: Path, say: Say) -> tuple[Path, list[bytes]]:
    """Debian's policy manual: (the pdf of 193 pages, its pages as html). Raises DataError where it cannot be had."""
    source = debian.unpacked(debian.POLICY, say) / "usr/share/doc/debian-policy"
    path = folder / "policy.pdf"
    path.write_bytes(gzip.decompress((source / "policy.pdf.gz").read_bytes()))
    pages = [page.read_bytes() for page in sorted((source / "policy.html").glob("*.html"))]
    return path, [page for page in pages if b"<h1" in page]


def word_recall(found: str, expected: str) -> float:
    """Of the expected text's words, as often as they come, how many the other text has."""
    from collections import Counter

    ours, theirs = (Counter(re.findall(r"\w+", text.casefold())) for text in (found, expected))
    return (ours & theirs).total() / max(1, theirs.total())
