"""A sentence is not quoted without the notes to it: a dose without its "not in pregnancy" is another one."""

import json
from pathlib import Path

import pytest
from confide.errors import StateError
from confide.rag.access import Caller
from confide.rag.canonical_text import canonical_text
from confide.rag.chunks import Span, passages
from confide.rag.documents import encoded, parsed_structure
from confide.rag.parsing.blocks import Block
from confide.rag.quoting import MOST_QUOTE_CHARS, alone, pick
from confide.rag.sentences_near import Near, SentenceVectors, near, sentences_of
from confide_server.rag.answering import Answerer

from tests.rag_worlds import World, embedder
from tests.unit.test_rag_parsing import docx_of, note, part, refers, run

CLINIC = Caller.operator("clinic")
DOSE, NOTE, SECOND = "Give five milligrams twice a day.", "Not in pregnancy.", "Nor below twelve years of age."
QUESTION = "How many milligrams twice a day?"


def world_with(folder: Path, *paragraphs: str, notes: str) -> World:
    world = World(folder)
    body = "".join(f"<w:p>{paragraph}</w:p>" for paragraph in paragraphs)
    world.add([world.file("doses.docx", docx_of(body, {"footnotes": part("footnotes", notes)}))], most_tokens=300)
    return world


def sentences(world: World, question: str = QUESTION) -> list[Near]:
    collection, searcher = world.library.opened(CLINIC, "leaflets")
    [vector] = embedder().embed([question])
    found = searcher.search(question, vector, CLINIC, limit=5).found
    return near(sentences_of(collection, found), vector, SentenceVectors(embedder()))


def quoted(world: World, sentence: Near) -> str:
    collection, _ = world.library.opened(CLINIC, "leaflets")
    quote = alone(sentence)
    return collection.content(sentence.found.passage.document).text[quote.start : quote.stop]


def test_an_answer_quotes_a_sentence_with_its_notes(tmp_path: Path) -> None:
    two = note("footnote", 1, run(NOTE)) + note("footnote", 2, run(SECOND))
    world = world_with(tmp_path, f"{run(DOSE)}{refers('footnote', 1)}{refers('footnote', 2)}", notes=two)
    [answer] = [one for one in sentences(world) if one.text == DOSE]
    assert quoted(world, answer) == f"{DOSE}\n\n{NOTE}\n\n{SECOND}"
    [written] = pick([answer], [answer.found])
    assert (written.start, written.stop) == (0, len(f"{DOSE}\n\n{NOTE}\n\n{SECOND}"))
    given = Answerer(world.library, embedder()).answer(QUESTION, CLINIC, ["leaflets"])
    assert given.abstained or NOTE in given.text


def test_a_note_is_quoted_with_its_paragraph_and_nothing_else_is(tmp_path: Path) -> None:
    before, after = "Wash your hands before you begin.", "Lock the cupboard when you leave."
    dose = f"{run('Read the label first. ')}{run(DOSE)}{refers('footnote', 1)}"
    world = world_with(tmp_path, run(before), dose, run(after), notes=note("footnote", 1, run(SECOND)))
    texts = {one.text: quoted(world, one) for one in sentences(world)}
    assert texts == {
        before: before,
        "Read the label first.": f"Read the label first. {DOSE}\n\n{SECOND}",
        DOSE: f"{DOSE}\n\n{SECOND}",
        SECOND: f"Read the label first. {DOSE}\n\n{SECOND}",
        after: after,
    }


@pytest.mark.parametrize("words", [" ".join(["word"] * (MOST_QUOTE_CHARS // 5)), 'He said "so" and " [2] " it ends."'])
def test_a_note_that_has_no_room_or_could_not_be_quoted_is_left_out(words: str, tmp_path: Path) -> None:
    notes = note("footnote", 1, run(words))
    world = World(tmp_path)
    data = docx_of(f"<w:p>{run(DOSE)}{refers('footnote', 1)}</w:p>", {"footnotes": part("footnotes", notes)})
    world.add([world.file("doses.docx", data)], most_tokens=400)
    [answer] = [one for one in sentences(world) if one.text == DOSE]
    assert quoted(world, answer) == DOSE


def test_a_paragraph_and_its_notes_are_one_passage_where_they_fit() -> None:
    def cut(*blocks: Block) -> list[str]:
        made = canonical_text(blocks)
        spans = passages(made, lambda texts: [len(text.split()) for text in texts], most_tokens=10, fewest_tokens=1)
        return [" ".join(made.text[span.start : span.stop].split()) for span in spans]

    first, dose = Block("a b c d e f"), Block("1 2 3")
    notes = [Block("n1 n2", note=True), Block("m1 m2", note=True)]
    assert cut(first, dose, *notes, Block("z z")) == ["a b c d e f", "1 2 3 n1 n2 m1 m2 z z"]
    assert cut(first, dose, Block("n " * 8, note=True)) == ["a b c d e f 1 2 3", "n n n n n n n n"]
    assert cut(first, dose, Block("n1 n2"), Block("m1 m2")) == ["a b c d e f 1 2 3", "n1 n2 m1 m2"]


def test_notes_are_stored_and_documents_of_before_are_read() -> None:
    made = canonical_text([Block(DOSE), Block(NOTE, note=True), Block("After.")])
    stored = encoded(made, [Span(0, 10)])
    rows = json.loads(stored.structure)["marks"]
    assert [row[6:] for row in rows] == [[], [True], []]
    marks, _ = parsed_structure(stored.structure, len(made.text), "it")
    assert marks == made.marks and [mark.note for mark in marks] == [False, True, False]
    for wrong in ([False], [1], [None], [True, True]):
        damaged = json.dumps({"marks": [rows[0][:6] + wrong], "passages": []}).encode()
        with pytest.raises(StateError, match="is damaged"):
            parsed_structure(damaged, len(made.text), "it")
