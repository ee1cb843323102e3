"""Answers held to a form: a JSON schema, or a grammar in llguidance's Lark form.

    grammars = Grammars(tokenizer, vocabulary)
    grammar = grammars.of_schema({"type": "object"})
    allowed = grammar.restrict(logits_V); grammar.take(token)

Every token that is written is one that the form allows where it stands, so that an answer that ended by itself obeys
it; one that ran out of tokens is the beginning of such an answer.
"""

import json
from collections.abc import Collection
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch
from confide.text import line

from confide_server.serving.port import Unanswerable

MAX_FORM_CHARS = 1 << 16
"""Of a schema or grammar."""
_ITEMS, _FUEL, _STATES, _SYMBOLS = 20_000, 200_000, 50_000, 50_000
"""What one form may take of the parser: some 15 ms a step, 4 ms and 100 MB at the beginning."""


class Grammars:
    """Forms over one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))
        self._vocabulary = vocabulary
        self._limits = llguidance.LLParserLimits(
            step_max_items=_ITEMS,
            step_lexer_fuel=_FUEL,
            initial_lexer_fuel=_FUEL,
            max_lexer_states=_STATES,
            max_grammar_size=_SYMBOLS,
        )

    def of_schema(self, schema: dict[str, Any]) -> "Grammar":
        """Raises Unanswerable for a schema that is none, is too large, or asks for what cannot be held to."""
        text = json.dumps(schema)
        self._check_size(text, "the JSON schema")
        try:
            form = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        except (ValueError, TypeError) as error:
            raise Unanswerable(f"the JSON schema cannot be used: {line(error)}", param="response_format") from error
        return self._grammar(form, "the JSON schema")

    def of_lark(self, text: str) -> "Grammar":
        """Raises Unanswerable for a grammar that is none, or is too large."""
        self._check_size(text, "the grammar")
        return self._grammar(llguidance.LLMatcher.grammar_from_lark(text), "the grammar")

    def _check_size(self, text: str, what: str) -> None:
        if len(text) > MAX_FORM_CHARS:
            raise Unanswerable(
                f"{what} has {len(text)} characters; at most {MAX_FORM_CHARS} are taken", param="response_format"
            )

    def _grammar(self, form: str, what: str) -> "Grammar":
        matcher = llguidance.LLMatcher(self._tokenizer, form, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise Unanswerable(f"{what} cannot be used: {line(matcher.get_error())}", param="response_format")
        return Grammar(matcher, self._vocabulary)


class Grammar:
    """One answer's place in its form."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def restrict(self, logits_V: torch.Tensor) -> torch.Tensor:
        """A copy in which what the form does not allow here is -inf. Raises Unanswerable where the form is too much."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        bits = np.unpackbits(packed, count=self._vocabulary, bitorder="little")
        allowed = torch.from_numpy(bits.astype(np.bool_)).to(logits_V.device)
        return logits_V.masked_fill(~allowed, -torch.inf)

    def take(self, token: int) -> bool:
        """Go on by a token; whether the answer is complete and nothing may follow."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Unanswerable(
                f"the form is too much for this server: {line(self._matcher.get_error())}; ask for a simpler one",
                param="response_format",
            )
