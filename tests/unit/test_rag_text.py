"""Canonical text, sentences, passages and personal data: offsets hold, whatever the text."""

import itertools
import time
from collections.abc import Sequence

import pytest
from confide.rag import personal_data
from confide.rag.canonical_text import canonical_text
from confide.rag.chunks import passages
from confide.rag.documents import Content, encoded, parsed_structure
from confide.rag.injection import suspicion
from confide.rag.lexical import LexicalIndex, words
from confide.rag.parsing.blocks import Block
from confide.rag.sentences import sentence_spans, word_count
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",)) | st.sampled_from(list(" .!?\n\u202e\xad\u200b-")),
    max_size=80,
)
BLOCKS = st.lists(
    st.builds(
        Block,
        text=TEXTS,
        level=st.integers(0, 6),
        page=st.none() | st.integers(1, 9),
        record=st.none() | st.sampled_from(["a", "b"]),
        lines=st.booleans(),
    ),
    max_size=8,
)


def count(texts: list[str]) -> list[int]:
    return [max(1, len(text.split())) for text in texts]


@given(BLOCKS)
def test_what_is_normalised_stays_as_it_is(blocks: list[Block]) -> None:
    made = canonical_text(blocks)
    again = canonical_text([Block(made.text[m.start : m.stop], lines=True) for m in made.marks])
    assert again.text == made.text
    assert all(char.isprintable() or char == "\n" for char in made.text)


@given(BLOCKS, st.integers(1, 12))
def test_passages_are_in_order_and_of_one_record(blocks: list[Block], most: int) -> None:
    made = canonical_text(blocks)
    found = passages(made, count, most_tokens=most, fewest_tokens=2)  # type: ignore[arg-type]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found))
    marks, spans = parsed_structure(encoded(made, found).structure, len(made.text), "x")
    content = Content(made.text, marks, spans)
    for span in spans:
        assert made.text[span.start : span.stop].strip()
        assert len({mark.record for mark in content.marks_of(span)}) == 1
    # Nothing but headings is left out.
    covered = {place for span in found for place in range(span.start, span.stop)}
    for mark in made.marks:
        if not mark.level:
            assert {p for p in range(mark.start, mark.stop) if not made.text[p].isspace()} <= covered


@given(TEXTS)
def test_sentences_are_trimmed_pieces_in_order(text: str) -> None:
    spans = list(sentence_spans(text, 0, len(text)))
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in spans)
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("It costs forty crowns.", 4, 4),
        ("诊所每次就诊收费四十克朗。", 4, 8),
        ("免费。", 0, 1),
        ("यात्रा की फीस", 3, 3),
        ("nai\u0308ve cafe\u0301", 2, 2),
        ("ค่าธรรมเนียม", 2, 8),
        ("", 0, 0),
    ],
)
def test_words_are_counted_in_every_script(text: str, least: int, most: int) -> None:
    assert least <= word_count(text) <= most


def test_sentences_end_in_every_script() -> None:
    for text, sentences in (
        ("كم رسوم الزيارة؟ أربعون كرونة.", 2),
        ("फीस चालीस है। बच्चे नहीं देते॥", 2),
        ("他说「免费。」儿童免费。", 2),
        ("یہ کلینک ہے۔ فیس چالیس ہے۔", 2),
    ):
        assert len(list(sentence_spans(text, 0, len(text)))) == sentences, text


def test_headings_stand_above_what_follows_them() -> None:
    made = canonical_text(
        [Block("A", 1), Block("B", 2), Block("b."), Block("C", 2), Block("c."), Block("D", 1), Block("d.")]
    )
    assert [mark.headings for mark in made.marks if not mark.level] == [("A", "B"), ("A", "C"), ("D",)]


def test_records_whose_names_are_masked_alike_stay_apart() -> None:
    blocks = [Block(f"Text {n}.", record=f"{name}@example.org") for n, name in enumerate(["ann", "bob", "bob", "ann"])]
    made = canonical_text(blocks, lambda text: personal_data.masked(text, personal_data.findings(text)))
    assert [mark.record for mark in made.marks] == ["[e-mail]", "[e-mail] 2", "[e-mail] 2", "[e-mail]"]
    assert len(passages(made, count, most_tokens=60)) == 3  # type: ignore[arg-type]


def test_no_text_takes_long_to_normalise() -> None:
    # Canonical order is found by insertion: the square of a run of marks, in one call that nothing interrupts.
    began = time.process_time()
    made = canonical_text([Block("a" + "\u0315\u0300" * 20_000 + "b e\u0301")])
    assert time.process_time() - began < 1
    assert made.text.startswith("à") and made.text.endswith("b é") and len(made.text) < 50


def test_what_is_one_token_to_a_tokenizer_is_cut_all_the_same() -> None:
    asked: list[int] = []

    def words_only(texts: Sequence[str]) -> list[int]:
        asked.extend(map(len, texts))
        return [len(text.split()) for text in texts]

    # WordPiece makes one token of a word of more than a hundred characters.
    made = canonical_text([Block("x" * 100_000), Block("A wall. " * 20_000)])
    found = passages(made, words_only, most_tokens=50)
    assert max(one.stop - one.start for one in found) <= 2000 and max(asked) <= 2000
    assert sum(one.stop - one.start for one in found) > 250_000


def test_a_hyphen_at_the_end_of_a_line_stays() -> None:
    assert canonical_text([Block("a well-\nknown fact, twenty -\none")]).text == "a well-known fact, twenty - one"


FOUND = [
    ("ann.lee+x@mail.example.org", "e-mail"),
    ("jürgen.müller@büro.example.org", "e-mail"),
    ("o'neil@example.org", "e-mail"),
    ("0046 8 123 456 78", "telephone"),
    ("+46 8 123 456 78", "telephone"),
    ("DE89 3704 0044 0532 0130 00", "IBAN"),
    ("GB82WEST12345698765432", "IBAN"),
    ("de89 3704 0044 0532 0130 00", "IBAN"),
    ("4111 1111 1111 1111", "card"),
    ("078-05-1120", "identity number"),
    ("86095742719", "identity number"),
    ("12345678Z", "identity number"),
    ("X1234567L", "identity number"),
    ("44051401359", "identity number"),
    ("811228-9874", "identity number"),
    ("RSSMRA85T10A562S", "identity number"),
    ("2 55 08 14 168 025 38", "identity number"),
]


@pytest.mark.parametrize(("value", "kind"), FOUND)
def test_personal_data_is_found_and_masked(value: str, kind: str) -> None:
    text = f"Write it as {value}, please."
    [found] = personal_data.findings(text)
    assert (found.kind, text[found.start : found.stop]) == (kind, value)
    assert personal_data.masked(text, [found]) == f"Write it as [{kind}], please."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("AT61 1904 3002 3457 3201 BIC OPSKATWW", "[IBAN] BIC OPSKATWW"),
        ("AT611904300234573201 BIC: OPSKATWW", "[IBAN] BIC: OPSKATWW"),
        ("ES91 2100 0418 4502 0005 1332 CAIX", "[IBAN] CAIX"),
        ("BE68 5390 0754 7034 12", "[IBAN] 12"),
        ("4111 1111 1111 1111 12/27", "[card] 12/27"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("4111111111111111 12/27", "[card] 12/27"),
        ("3782 822463 10005 12/27", "[card] 12/27"),
        ("+44 20 7946 0958 24 hours", "[telephone] 24 hours"),
        ("+46 8 123 456 78 15 15 15", "[telephone] 15 15 15"),
        ("NHS Number: 943 476 5919", "NHS Number: [identity number]"),
        ("NHS number | 9434765919", "NHS number | [identity number]"),
        ("NHS No. 943 476 5919", "NHS No. [identity number]"),
        ("NHS-no: 943-476-5919", "NHS-no: [identity number]"),
        ("BSN-nummer: 111222333", "BSN-nummer: [identity number]"),
        ("BSN 1112.22.333", "BSN [identity number]"),
        ("SSN: 078051120", "SSN: [identity number]"),
        ("SSN 078 05 1120", "SSN [identity number]"),
        ("756.9217.0769.85", "[identity number]"),
        ("KVNR A123456780", "KVNR [identity number]"),
    ],
)
def test_what_stands_beside_personal_data_does_not_hide_it(text: str, left: str) -> None:
    for whole, expected in ((text, left), (f"({text}).", f"({left}).")):
        assert personal_data.masked(whole, personal_data.findings(whole)) == expected


@pytest.mark.parametrize(
    "value",
    [
        "NHS 943 476 5918",
        "1 80 01 3A 123 456 78",
        "180013B12345678",
        "756.9217.0769.84",
        "A123456781",
        "0000 1234567 12",
        "BSN 111222334",
        "AT61 1904 3002 3457 3202 BIC",
        "DE89 3704 0044 0532 0130 01",
        "4111 1111 1111 1112",
        "12345678A",
        "44051401358",
        "44951401359",
        "811228-9873",
        "RSSMRA85T10A562T",
        "666-05-1120",
        "1.2.3.4",
        "2026-11-26",
        "ISBN 978-3-16-148410-0",
        "user@localhost",
        "3.14159265358979",
    ],
)
def test_what_only_looks_alike_is_left(value: str) -> None:
    assert personal_data.findings(f"Write it as {value}, please.") == []


@pytest.mark.parametrize(
    "date",
    ["2022-12-17", "12.03.2026", "31/12/2025", "05.11.2026 08:30", "2026-01-31 12:00", "2014-2018", "2010 – 2015"],
)
@pytest.mark.parametrize("region", ["DE", "SE", "US", "GB"])
def test_a_date_is_no_telephone_number(date: str, region: str) -> None:
    assert personal_data.findings(f"valid from {date}.", region) == []
    called = f"{date}, 0171 1234567"
    assert personal_data.masked(called, personal_data.findings(called, "DE")) == f"{date}, [telephone]"


def test_national_telephone_numbers_need_a_country() -> None:
    assert personal_data.findings("call 030 123456") == []
    for number in ("030 123456", "030 / 123 456", "030 – 12 34 56"):
        assert personal_data.masked(number, personal_data.findings(number, "DE")) == "[telephone]"


@given(st.text(alphabet="0123456789 -+@.ABCdeZX/()", max_size=120), st.sampled_from([None, "US", "DE"]))
def test_personal_data_is_found_in_any_text_without_overlap(text: str, region: str | None) -> None:
    found = personal_data.findings(text, region)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found))
    personal_data.masked(text, found)


def test_plain_texts_are_not_suspicious() -> None:
    for text in (
        "The guide gives instructions for the system.",
        "Ignore the noise of old pumps.",
        "You are now in room 4.",
    ):
        assert suspicion(text) is None, text


def test_bm25_agrees_with_the_formula() -> None:
    texts = ["red wall wall", "blue wall", "green door green door"]
    index = LexicalIndex.build(["a", "b", "c"], texts)
    import math

    def score(term: str, text: str) -> float:
        lists = [words(one) for one in texts]
        own, mean = words(text), sum(map(len, lists)) / 3
        having = sum(term in one for one in lists)
        idf = math.log(1 + (3 - having + 0.5) / (having + 0.5))
        tf = own.count(term)
        return idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(own) / mean))

    expected = [score("wall", text) + score("red", text) for text in texts]
    assert index.scores("red walls").tolist() == pytest.approx(expected, abs=1e-6)
    assert index.ceiling("red walls") >= max(expected)
    assert index.coverage("red walls", "a red house") == pytest.approx(
        index.coverage("red", "red") * index._weight("red") / (index._weight("red") + index._weight("wall"))
    )


@given(st.text(max_size=60))
def test_bm25_takes_any_question(question: str) -> None:
    index = LexicalIndex.build(["a"], ["The wall is thick."])
    assert index.scores(question).shape == (1,)
    assert index.ceiling(question) >= 1
    assert 0 <= index.coverage(question, question) <= 1


def test_bm25_of_nothing() -> None:
    assert LexicalIndex.build([], []).scores("wall").shape == (0,)
    assert LexicalIndex.build(["a"], ["..."]).scores("wall").tolist() == [0.0]
