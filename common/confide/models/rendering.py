"""What a conversation is to a model: one text and its tokens, the same where it is learned from and where it is asked.

    asked = Rendering(tokenizer)
    asked.prompt_ids(messages)        what a model is given to answer
    asked.examples(messages)          what it learns from: token ids, and which of them are the assistant's

Invariant: an example's ids begin with the prompt's ids at every place where learning starts. They are those of the
whole text, which a tokenizer that puts a mark before each text (SentencePiece) encodes differently from its parts. A
template that writes earlier turns in another way once a turn follows (thoughts that are dropped, an end token behind
the last turn only) makes an example of each answer, as it was asked; any other makes one of the conversation.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from confide.errors import DataError, ModelError
from confide.models.chat_template import render

Messages = Sequence[Mapping[str, str]]


class Learnable(NamedTuple):
    """ids; spans: [start, stop) of the assistant's tokens in them; bytes: of the assistant's texts, in UTF-8."""

    ids: list[int]
    spans: list[tuple[int, int]]
    bytes: int


class _Turn(NamedTuple):
    before: str
    """All that the model is given before it answers."""
    answer: str
    """What it is to write, up to where it ends its turn."""
    bytes: int

    @property
    def text(self) -> str:
        return self.before + self.answer


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


class Rendering:
    """How one tokenizer writes conversations."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError for a tokenizer that has chat templates, none of which is the one to use."""
        self._tokenizer = tokenizer
        if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer has chat templates called {', '.join(sorted(tokenizer.chat_template))}, and none by "
                "default; save the one to use as chat_template.jinja in the model's folder"
            )

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The conversation up to where the assistant begins to write. Raises DataError where the template refuses."""
        return self._ids(self._render(messages, generate=True))

    def examples(self, messages: Messages) -> list[Learnable]:
        """One of the whole conversation, or one of each answer; none where the assistant answers nothing.

        What the assistant says before anybody else does is given, not learned: it is never asked for.
        Raises DataError where the template refuses; the text quotes nothing of the record.
        """
        turns = [
            self._turn(messages, number)
            for number, message in enumerate(messages)
            if number > 0 and message["role"] == "assistant"
        ]
        if turns and all(later.before.startswith(earlier.text) for earlier, later in pairwise(turns)):
            whole = self._whole(turns)
            if whole is not None:
                return [whole]
        return [self._single(turn, last=turn is turns[-1]) for turn in turns]

    def _whole(self, turns: list[_Turn]) -> Learnable | None:
        """None where a token lies across the place at which an answer begins: it could not be asked for."""
        ids = self._ids(turns[-1].text)
        spans = []
        for turn in turns:
            asked = self._ids(turn.before)
            if ids[: len(asked)] != asked:
                return None
            last = turn is turns[-1]
            stop = len(ids) if last else _common(ids, self._ids(turn.text))
            spans.append((len(asked), stop))
        return self._ended(Learnable(ids, spans, sum(turn.bytes for turn in turns)))

    def _single(self, turn: _Turn, *, last: bool) -> Learnable:
        asked, ids = self._ids(turn.before), self._ids(turn.text)
        if ids[: len(asked)] != asked:
            ids = asked + self._continuation(turn.answer)
        made = Learnable(ids, [(len(asked), len(ids))], turn.bytes)
        return self._ended(made) if last else made

    def _ended(self, made: Learnable) -> Learnable:
        """Without a template an end token closes the last answer."""
        if self._tokenizer.chat_template is not None:
            return made
        start, stop = made.spans[-1]
        ids = [*made.ids, self._tokenizer.eos_token_id]
        return Learnable(ids, [*made.spans[:-1], (start, stop + 1)], made.bytes)

    def _turn(self, messages: Messages, number: int) -> _Turn:
        content = messages[number]["content"]
        before = self._render(messages[:number], generate=True)
        through = self._render(messages[: number + 1], generate=False)
        kept = _common(before, through)
        # What only the question has may be the beginning that a template sets for an answer, such as an open thought.
        if any(m["content"].strip() and m["content"].strip() in before[kept:] for m in messages[:number]):
            raise DataError(
                "this model's chat template writes a question differently once it is answered, so that the answer "
                "cannot be told from what was asked; choose another base model or chat template"
            )
        return _Turn(before, through[kept:], len(content.encode()))

    def _render(self, messages: Messages, *, generate: bool) -> str:
        if self._tokenizer.chat_template is None:
            return "".join(message["content"] for message in messages)
        try:
            return render(self._tokenizer, messages, generate=generate)
        except ModelError:
            raise
        except Exception as error:  # templates raise what they like, mostly about the order of roles
            raise DataError(self._refusal(error)) from None

    def _refusal(self, error: Exception) -> str:
        """The template's own reason, where it stands in the template: else it could quote the record."""
        said = str(error).strip()
        templates = self._tokenizer.chat_template
        written = templates.values() if isinstance(templates, dict) else [templates]
        if said and any(said in template for template in written):
            return (
                f"this model's chat template refuses a record: {said}. Change the system, user or assistant turns of "
                "such records, or choose another base model"
            )
        return (
            f"this model's chat template refuses a record ({type(error).__name__}); most want turns that alternate "
            "between user and assistant, after at most one system turn"
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if self._tokenizer.chat_template is not None else self._begin + ids

    @cached_property
    def _begin(self) -> list[int]:
        """What the tokenizer by itself puts before a text. A template writes its own."""
        alone: list[int] = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self._tokenizer("a")["input_ids"]
        places = range(len(whole) - len(alone) + 1)
        return whole[: next((place for place in places if whole[place : place + len(alone)] == alone), 0)]

    def _continuation(self, text: str) -> list[int]:
        """A text behind another one, without the mark that some tokenizers put where a text begins."""
        anchor: list[int] = self._tokenizer("\n", add_special_tokens=False)["input_ids"]
        behind: list[int] = self._tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
        if behind[: len(anchor)] == anchor:
            return behind[len(anchor) :]
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
