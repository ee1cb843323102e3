"""A grammar under which a language model can only quote, each quotation with its own number, or refuse.

    grammar = answer_grammar([(1, "A visit costs forty crowns."), (2, "Children pay nothing.")])

It is in llguidance's Lark form, which engines take beside a request (serving/port.py). Whatever the model's weights
are, what it writes under the grammar is one of these sentences with the number of the passage that holds it, or
REFUSAL: a changed figure and a right sentence under a wrong number are no sentences of the grammar. Sentences are
whole: a grammar over parts of sentences would admit a quotation of one word.
"""

import json
from collections.abc import Sequence
from typing import Protocol

from confide.rag.verifying import REFUSAL, CitationError

Choice = tuple[int, str]
"""A passage's number in the prompt, and a sentence of it in one line."""


class Writer(Protocol):
    """A language model that writes under a grammar. Passages are data: they never enter a system prompt."""

    def can_write(self, sentence: str) -> bool:
        """Whether it could choose this sentence at all: another one would spoil the choice of any."""

    def write(self, question: str, passages: Sequence[str], grammar: str) -> str:
        """What it wrote. Raises ConfideError when the engine is down."""


def answer_grammar(choices: Sequence[Choice]) -> str:
    """Lark. Raises CitationError without a choice: there is nothing to quote."""
    if not choices:
        raise CitationError("there is no sentence to choose from")
    lines = [f"q{place}: {_literal(_written(choice))}" for place, choice in enumerate(choices)]
    names = " | ".join(["refusal", *(f"q{place}" for place in range(len(choices)))])
    return "\n".join([f"start: {names}", f"refusal: {_literal(REFUSAL)}", *lines])


def chosen(text: str, choices: Sequence[Choice]) -> int | None:
    """Which choice was written; None for the refusal. Raises CitationError for anything else."""
    if text == REFUSAL:
        return None
    for place, choice in enumerate(choices):
        if text == _written(choice):
            return place
    raise CitationError("the model wrote something that is neither a quotation nor the refusal")


def _written(choice: Choice) -> str:
    number, sentence = choice
    return f'"{" ".join(sentence.split())}" [{number}]'


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
