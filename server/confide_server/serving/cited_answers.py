"""Answers from an organization's documents, by confide_server.rag, as the endpoint asks for them.

The embedder chooses what is quoted, or a served model does (`ModelWriter`): under a grammar that admits the sentences
that were found and the refusal, and nothing else, so that no word of the answer is the model's own. What a model says
of the quotations in its own words (`ProseWriter`) is never part of the answer: it stands beside it, unverified.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from confide.errors import ConfideError, DataError, StateError
from confide.rag.access import Caller
from confide.rag.embedder import Embedder
from confide.rag.library import Library, checked_question
from confide.rag.reranker import Reranker

from confide_server.rag.answering import Answerer, QueryPort
from confide_server.rag.grammar import Writer
from confide_server.serving.catalogue import Target
from confide_server.serving.documents import Cited
from confide_server.serving.port import Generation

log = logging.getLogger(__name__)
_MOST_TOKENS = 512
_AROUND = 16
"""Tokens of a quotation's marks and number, at most."""
_MOST_PROSE, _PROSE_S = 160, 30.0
"""Tokens, and how long an answer that is ready waits for them."""


class LibraryDocuments:
    """The library of all collections on this machine. The reader is checked there again, before and after retrieval."""

    def __init__(
        self,
        library: Path,
        embedder: Path,
        writer: Writer | None = None,
        reranker: Path | None = None,
        prose: "ProseWriter | None" = None,
    ) -> None:
        """Raises ModelError when `embedder` or `reranker` holds no such model.

        writer: chooses what is quoted, in the embedder's place. reranker: of collections that were calibrated with it.
        prose: says in a model's own words, beside an answer, what its quotations say.
        """
        self._prose = prose
        reads = None if reranker is None else Reranker(reranker)
        self._answers: QueryPort = Answerer(Library(library), Embedder(embedder), writer=writer, reranker=reads)

    def answer(self, question: str, *, reader: str, organization: str, collections: Collection[str]) -> Cited:
        """Quotations that were verified, or word for word the refusal.

        Raises DataError for a question that is none, AccessRefused, StateError.
        """
        try:
            question = checked_question(question)
        except StateError as error:  # the reader's own mistake, and no state of this server's
            raise DataError(str(error)) from None
        caller = Caller(name=reader, organization=organization, collections=frozenset(collections))
        found = self._answers.answer(question, caller, sorted(collections))
        annotations = tuple(one.annotation() for one in found.citations)
        quotes = [one.quote for one in found.citations]
        prose = self._prose.write(question, quotes) if self._prose is not None and quotes else ""
        return Cited(found.text, annotations, found.abstained, found.reason, prose)


class ModelWriter:
    """A served model that chooses. target: what its alias stands for at the time. Blocks; not for the event loop."""

    def __init__(self, target: Callable[[], Target | None]) -> None:
        self._target = target

    def can_write(self, sentence: str) -> bool:
        """Not one that holds a mark of its tokenizer's, at which the grammar stops, nor one too long to be ended."""
        target = self._target()
        if target is None:
            return True  # `write` says so
        prompts = target.engine.prompts
        return prompts.plain(sentence) == sentence and len(prompts.text(sentence)) <= _MOST_TOKENS - _AROUND

    def write(self, question: str, passages: Sequence[str], grammar: str) -> str:
        """A text of the grammar. Raises StateError where the alias stands for nothing, and what the engine raises.

        Passages that the model has no room for are left out, from the last on; their sentences stay in the grammar.
        """
        target = self._target()
        if target is None:
            raise StateError("the model that is to choose quotations is not served; see --library-model")
        prompt = _prompt(target, question, passages)
        for kept in range(len(passages) - 1, 0, -1):
            if len(prompt) + _MOST_TOKENS <= target.engine.context:
                break
            prompt = _prompt(target, question, passages[:kept])
        most = min(_MOST_TOKENS, target.engine.context - len(prompt))
        wanted = Generation(prompt=prompt, adapter=target.adapter, max_tokens=max(1, most), grammar=grammar)
        return asyncio.run(_whole(target, wanted))


class ProseWriter:
    """A served model that says in its own words what verified quotations say. Nobody verifies that.

    Guarantee: it reads the question and these quotations alone, and nothing that goes wrong with it costs the answer.
    """

    def __init__(self, target: Callable[[], Target | None]) -> None:
        self._target = target

    def write(self, question: str, quotes: Sequence[str]) -> str:
        """ "" where there is no such model now, no room or no time for it. Blocks; not for the event loop."""
        target = self._target()
        if target is None:
            return ""
        prompt = _prompt(target, question, quotes, "Answer this question in one or two sentences, from the text above.")
        most = min(_MOST_PROSE, target.engine.context - len(prompt))
        if most < 1:
            return ""
        wanted = Generation(prompt=prompt, adapter=target.adapter, max_tokens=most)
        try:
            return asyncio.run(asyncio.wait_for(_whole(target, wanted), _PROSE_S)).strip()
        except (ConfideError, TimeoutError) as error:
            log.warning("an answer goes without a model's own words: %s", str(error) or f"{_PROSE_S:.0f} s were over")
            return ""


def _prompt(
    target: Target,
    question: str,
    passages: Sequence[str],
    task: str = "Quote the sentence that answers this question, with its number.",
) -> tuple[int, ...]:
    """All in the user's turn, which no passage can leave."""
    prompts = target.engine.prompts
    numbered = "\n\n".join(f"[{number}] {prompts.plain(passage)}" for number, passage in enumerate(passages, 1))
    return prompts.chat([{"role": "user", "content": f"{numbered}\n\n{task}\n{question}"}])


async def _whole(target: Target, wanted: Generation) -> str:
    return "".join([delta.text async for delta in target.engine.generate(wanted)])
