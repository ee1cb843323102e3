"""Tokens to text while they come: whole characters only, and nothing of a stop text.

The pieces joined are the text that decoding all tokens at once gives, cut where the first stop text begins.
"""

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_PATIENCE = 8
"""Tokens that one character may take; what is not whole then never will be."""
_CONTEXT = 6
"""Tokens before a piece that decide how it is written (spaces, joined characters)."""


class TextStream:
    """The text of one answer.

    before: the prompt's last tokens where the answer goes on with the prompt's text; empty where it is a text of its
    own.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids = list(before[-_CONTEXT:])
        self._begin, self._shown = 0, len(self._ids)
        self._held = ""
        self.stopped = False
        """A stop text came: nothing more is to be written."""

    def push(self, token: int) -> str:
        """What can be shown now; "" where it has to wait."""
        self._ids.append(token)
        return "" if self.stopped else self._release(self._piece(patient=True))

    def end(self) -> str:
        """What was held back and is text after all."""
        if self.stopped:
            return ""
        rest = self._release(self._piece(patient=False))
        held, self._held = ("", "") if self.stopped else (self._held, "")
        return rest + held

    def _piece(self, *, patient: bool) -> str:
        known = self._decode(self._ids[self._begin : self._shown])
        text = self._decode(self._ids[self._begin :])
        waiting = len(self._ids) - self._shown
        if patient and text.endswith(_UNFINISHED) and waiting < _PATIENCE:
            return ""
        self._begin, self._shown = max(self._begin, self._shown - _CONTEXT), len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _release(self, piece: str) -> str:
        text = self._held + piece
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the text's end may be the beginning of a stop text."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
