"""Markdown (CommonMark with tables), by markdown-it-py."""

from collections.abc import Iterator

from confide.rag.parsing.blocks import Block, decoded
from confide.rag.parsing.html import html_blocks


def parse_markdown(data: bytes) -> Iterator[Block]:
    """Headings, paragraphs, list items, code and table rows; HTML in it as a page shows it."""
    from markdown_it import MarkdownIt

    # Raw HTML counts as text in its source form otherwise, comments included.
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(decoded(data))
    level = 0
    row: list[str] | None = None
    for token in tokens:
        if token.type == "heading_open":
            level = int(token.tag[1:])
        elif token.type == "heading_close":
            level = 0
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            if row:
                yield Block(" | ".join(row))
            row = None
        elif token.type in {"fence", "code_block"} and token.content.strip():
            yield Block(token.content.rstrip("\n"), lines=True)
        elif token.type == "html_block":
            yield from html_blocks(token.content)
        elif token.type == "inline":
            text = _plain(token)
            if row is not None:
                row.append(text.strip())
            elif text.strip():
                yield Block(text, level=level)


def _plain(token: object) -> str:
    parts = []
    for child in getattr(token, "children", None) or []:
        if child.type in {"text", "code_inline"}:
            parts.append(child.content)
        elif child.type in {"softbreak", "hardbreak"}:
            parts.append("\n")
        elif child.type == "image":
            parts.append(child.content)
    return "".join(parts)
