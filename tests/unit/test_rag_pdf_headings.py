"""Headings of a PDF without an outline: told by how lines are set, as a reader tells them."""

import io
import re
import shutil
import subprocess
from pathlib import Path

import pypdfium2 as pdfium
import pytest
from confide.rag.parsing.blocks import Block, Left, Unreadable
from confide.rag.parsing.child import parse

from tests.pdf_files import Line, pdf_of

TEXT = [
    "The first dressing stays on for two days unless it is soaked through before that.",
    "After that the wound may be washed with clean water and is dried by patting.",
]
BODY = [Line(text) for text in TEXT]


def read(*pages: list[Line], outline: str | None = None) -> list[Block]:
    return parse("pdf", pdf_of(*pages, outline=outline), 100_000).blocks


def headings(blocks: list[Block]) -> list[tuple[int, str]]:
    return [(block.level, " ".join(block.text.split())) for block in blocks if block.level]


def test_larger_lines_are_headings_and_the_largest_stand_above_the_others() -> None:
    blocks = read([Line("Care of wounds", 20), *BODY, Line("1 Dressings", 14), *BODY], [Line("2 Sutures", 14), *BODY])
    assert headings(blocks) == [(1, "Care of wounds"), (2, "1 Dressings"), (2, "2 Sutures")]
    assert [block.page for block in blocks if block.level] == [1, 1, 2]
    assert all(TEXT[0] in block.text for block in blocks if not block.level)


def test_a_title_of_two_lines_is_one_heading() -> None:
    blocks = read([Line("Care of wounds after", 20), Line("an operation", 20), *BODY, *BODY, *BODY])
    assert headings(blocks) == [(1, "Care of wounds after an operation")]


def test_a_sentence_in_large_type_stays_text_that_can_be_quoted() -> None:
    """A warning was taken for a heading, and headings are not quoted."""
    warning = [Line("Never stop taking this medicine without", 16), Line("asking your doctor.", 16)]
    shout = [Line("Keep away from children!", 16)]
    blocks = read([Line("Care of wounds", 20), *BODY, *warning, *BODY, *shout, *BODY])
    assert headings(blocks) == [(1, "Care of wounds")]
    text = " ".join(" ".join(block.text.split()) for block in blocks if not block.level)
    assert "Never stop taking this medicine without asking your doctor." in text and "Keep away from children!" in text


def test_a_short_bold_line_is_a_heading_and_a_bold_sentence_or_word_is_none() -> None:
    bold = [Line("Dressings", bold=True), Line("Call the surgeon at once.", bold=True), Line("a drug", bold=True)]
    assert headings(read([bold[0], *BODY, bold[1], *BODY, bold[2], *BODY])) == [(1, "Dressings")]


def test_where_all_is_bold_bold_says_nothing() -> None:
    assert headings(read([Line("Dressings", bold=True), *[Line(text, bold=True) for text in TEXT]])) == []


def test_numbers_alone_are_no_headings_nor_part_of_one() -> None:
    blocks = read([Line("7.5", bold=True), Line("Dressings and wounds", bold=True), *BODY, Line("12"), *BODY])
    assert headings(blocks) == [(1, "Dressings and wounds")]


def test_small_differences_of_size_are_none() -> None:
    assert headings(read([Line("Dressings", 12.6), *BODY])) == []


def test_where_sizes_vary_with_every_line_nothing_is_a_heading() -> None:
    noisy = [Line("Dressings stay on for two days", size) for size in (12, 13.5, 15, 12, 16, 14.5, 12, 17)]
    assert headings(read(noisy)) == []


def test_an_outline_is_believed_before_the_looks() -> None:
    blocks = read([Line("Care of wounds", 20), Line("Dressings"), *BODY], outline="Dressings")
    assert headings(blocks) == [(1, "Dressings")]


@pytest.mark.parametrize("size", [0.001, 3000.0])
def test_sizes_that_nobody_can_read_do_no_harm(size: float) -> None:
    assert TEXT[1] in "\n".join(block.text for block in read([Line("Odd", size), *BODY, *BODY]))


def test_titles_with_numbers_that_follow_each_other_stay_two() -> None:
    blocks = read([Line("Care of wounds", 20), Line("1 Dressings", 14), Line("1.1 The first", 14), *BODY, *BODY])
    assert headings(blocks) == [(1, "Care of wounds"), (2, "1 Dressings"), (2, "1.1 The first")]


def test_headers_with_the_pages_number_are_no_headings_whatever_else_they_say() -> None:
    pages = [
        [Line(f"{name} {number}", 14), *BODY] for number, name in enumerate(["Dress", "Wash", "Call", "Staples"], 5)
    ]
    assert headings(read(*pages)) == []


def test_titles_of_an_outline_that_follow_each_other_stay_two() -> None:
    assert headings(read([Line("Dressings"), Line("Dressings"), *BODY], outline="Dressings")) == 2 * [(1, "Dressings")]


def picture_of(data: bytes) -> bytes:
    """A scan of the first page: 200 dots an inch, nothing but a picture."""
    out = io.BytesIO()
    with pdfium.PdfDocument(data) as document:
        document[0].render(scale=200 / 72).to_pil().convert("L").save(out, "PDF", resolution=200)
    return out.getvalue()


def test_pages_that_are_pictures_are_counted_where_others_are_read() -> None:
    text, blank = pdf_of(BODY), pdf_of([])
    with pdfium.PdfDocument.new() as whole:
        for page in (text, picture_of(text), blank, picture_of(text)):
            whole.import_pages(pdfium.PdfDocument(page))
        out = io.BytesIO()
        whole.save(out)
    parsed = parse("pdf", out.getvalue(), 100_000)
    assert parsed.left_out == {Left.PICTURES: 2}
    assert [block.page for block in parsed.blocks] == [1]
    assert parse("pdf", text, 100_000).left_out == {}


def test_pictures_of_pages_are_read_after_the_command_that_their_refusal_names(tmp_path: Path) -> None:
    scan, recognized = tmp_path / "scan.pdf", tmp_path / "recognized.pdf"
    scan.write_bytes(picture_of(pdf_of([Line("Care of wounds", 20), *BODY])))
    with pytest.raises(Unreadable, match=re.escape("`ocrmypdf IN.pdf OUT.pdf`")):
        parse("pdf", scan.read_bytes(), 100_000)
    program = shutil.which("ocrmypdf")
    if program is None:
        pytest.skip("needs ocrmypdf, for example Debian's package of that name")
    subprocess.run([program, "--quiet", str(scan), str(recognized)], check=True, timeout=600)
    parsed = parse("pdf", recognized.read_bytes(), 100_000)
    assert not parsed.left_out
    blocks = parsed.blocks
    assert [" ".join(block.text.split()) for block in blocks] == ["Care of wounds", " ".join(TEXT)]
    assert headings(blocks) == [(1, "Care of wounds")]
