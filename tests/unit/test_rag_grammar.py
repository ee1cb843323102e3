"""Under the grammar even a model of random weights quotes or refuses; nothing else is accepted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from confide.rag.access import Caller
from confide.rag.verifying import REFUSAL, CitationError
from confide_server.rag import answering
from confide_server.rag.answering import Answerer
from confide_server.rag.grammar import answer_grammar, chosen
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rag_worlds import embedder, world_with_fees
from tests.tiny_models import tiny_llama

llguidance = pytest.importorskip("llguidance")
CHOICES = [(1, "A visit costs forty crowns."), (2, 'He said "no" \\ and left.'), (2, "Cafés close at six — always.")]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> "RandomWriter":
    return RandomWriter(tiny_llama(tmp_path_factory.mktemp("writer"), layers=1))


class RandomWriter:
    """A language model of random weights, and llguidance's mask over its logits."""

    def __init__(self, folder: Path) -> None:
        import llguidance.hf
        import torch
        import transformers

        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=self._model.config.vocab_size)
        self._end = tokenizer.eos_token_id
        self._random = torch.Generator().manual_seed(0)
        self.seen: list[Sequence[str]] = []

    def accepts(self, text: str, grammar: str) -> bool:
        """Whether the grammar lets this text be written, and end there."""
        matcher = self._matcher(grammar)
        return (
            all(matcher.consume_token(token) for token in self._tokenizer.tokenize_str(text)) and matcher.is_accepting()
        )

    def _matcher(self, grammar: str) -> Any:
        matcher = llguidance.LLMatcher(self._tokenizer, llguidance.grammar_from("lark", grammar))
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def can_write(self, sentence: str) -> bool:
        return True

    def write(self, question: str, passages: Sequence[str], grammar: str) -> str:
        import numpy as np
        import torch

        self.seen.append(passages)
        matcher, written = self._matcher(grammar), [1]
        with torch.inference_mode():
            while not matcher.is_stopped():
                logits = self._model(torch.tensor([written[-64:]])).logits[0, -1:].float()
                bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[1]].astype(bool)
                logits[0, ~torch.from_numpy(allowed)] = -torch.inf
                token = int(torch.multinomial(torch.softmax(logits[0], -1), 1, generator=self._random))
                assert matcher.consume_token(token)
                written.append(token)
        kept = [token for token in written[1:] if token != self._end]
        return str(self._tokenizer.decode_str(kept))


def test_the_grammar_takes_its_sentences_and_nothing_else(writer: RandomWriter) -> None:
    grammar = answer_grammar(CHOICES)
    for text in (REFUSAL, *(f'"{sentence}" [{number}]' for number, sentence in CHOICES)):
        assert writer.accepts(text, grammar), text
    for text in (
        '"A visit costs fifty crowns." [1]',
        '"A visit costs forty crowns." [2]',
        '"A visit" [1]',
        "A visit costs forty crowns.",
        "Sure!",
        "",
    ):
        assert not writer.accepts(text, grammar), text


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 9), st.text(min_size=1, max_size=40)), min_size=1, max_size=4))
def test_any_sentence_makes_a_grammar(writer: RandomWriter, choices: list[tuple[int, str]]) -> None:
    grammar = answer_grammar(choices)
    number, sentence = choices[-1]
    text = f'"{" ".join(sentence.split())}" [{number}]'
    found = chosen(text, choices)
    assert found is not None and choices[found][0] == number
    if text.isprintable():
        assert writer.accepts(text, grammar)


def test_a_model_of_random_weights_quotes_or_refuses(
    writer: RandomWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "DEFAULT_THRESHOLD", -1.0)
    world = world_with_fees(tmp_path)
    answerer = Answerer(world.library, embedder(), writer=writer)
    kinds = set()
    for number in range(6):
        answer = answerer.answer(f"What does visit {number} cost?", Caller.operator("clinic"), ["leaflets"])
        kinds.add(answer.abstained)
        assert answer.text == REFUSAL if answer.abstained else answer.text == f'"{answer.citations[0].quote}" [1]'
    assert False in kinds and any("forty crowns" in passage for passages in writer.seen for passage in passages)


class Liar:
    """An engine that does not hold the grammar."""

    def can_write(self, sentence: str) -> bool:
        return True

    def write(self, question: str, passages: Sequence[str], grammar: str) -> str:
        return "A visit is free, trust me. [1]"


def test_what_was_written_beside_the_grammar_is_an_abstention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "DEFAULT_THRESHOLD", -1.0)
    world = world_with_fees(tmp_path)
    answer = Answerer(world.library, embedder(), writer=Liar()).answer("fee?", Caller.operator("clinic"), ["leaflets"])
    assert answer.abstained and answer.text == REFUSAL and "neither a quotation" in answer.reason


def test_without_a_sentence_there_is_no_grammar() -> None:
    with pytest.raises(CitationError, match="no sentence"):
        answer_grammar([])
