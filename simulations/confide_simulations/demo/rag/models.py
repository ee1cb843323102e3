"""What the base, the adapter of the main demo, and the documents say to the same questions, against the known answers.

A language model of this size writes from memory; the quotation is from the document. The figure is F1 of words.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from confide.models.answering import answer, load_answering
from confide_server.rag.evaluating import token_f1
from confide_server.rag.questions import Question

MAX_TOKENS = 48


def written(base: Path, adapter: Path | None, questions: Sequence[Question]) -> list[str]:
    """The model's answer to each question, always the same. Raises ModelError for an adapter of another base."""
    model, tokenizer = load_answering(base, adapter)
    return [
        "".join(answer(model, tokenizer, [{"role": "user", "content": one.question}], max_tokens=MAX_TOKENS))
        for one in questions
    ]


def compared(base: Path, adapter: Path, questions: Sequence[Question], quoted: Callable[[str], str]) -> dict[str, Any]:
    """{"f1": {base, adapter, quoted}, "questions": n, "example": one question with its answers}.

    quoted: what the documents say to a question; a refusal counts as an answer without a word in common.
    """
    said: Mapping[str, list[str]] = {
        "base": written(base, None, questions),
        "adapter": written(base, adapter, questions),
        "quoted": [quoted(one.question) for one in questions],
    }
    known = [str(one.answer) for one in questions]
    f1 = {name: round(float(np.mean(list(map(token_f1, answers, known)))), 4) for name, answers in said.items()}
    first = {"question": questions[0].question, **{name: answers[0] for name, answers in said.items()}}
    return {"f1": f1, "questions": len(questions), "example": first}
