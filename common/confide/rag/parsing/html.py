"""HTML, by selectolax (lexbor): what a reader of the page sees, in order, with its headings."""

import re
from collections.abc import Iterator

from confide.rag.parsing.blocks import Block, decoded

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
        "br",
    ]
)
_SKIPPED = frozenset(
    [
        "script",
        "style",
        "template",
        "noscript",
        "nav",
        "svg",
        "math",
        "iframe",
        "object",
        "head",
        "select",
        "button",
        "title",
    ]
)
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([A-Za-z0-9_-]{1,40})""", re.IGNORECASE)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])")


def parse_html(data: bytes) -> Iterator[Block]:
    """Text that is shown; navigation, scripts and elements that the page itself hides are left out."""
    declared = _CHARSET.search(data[:4096])
    yield from html_blocks(decoded(data, declared[1].decode() if declared else None))


def html_blocks(text: str) -> Iterator[Block]:
    """As `parse_html`, of a page's or a fragment's text."""
    from selectolax.lexbor import LexborHTMLParser

    root = LexborHTMLParser(text).root
    if root is not None:
        yield from _Walk().blocks(root)


class _Walk:
    """A walk over the tree without recursion: a page nested a million deep costs no stack."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._level = 0
        self._pre = 0

    def blocks(self, root: object) -> Iterator[Block]:
        # Each entry: a node to open, or the tag of an element to close.
        stack: list[object | str] = [root]
        while stack:
            entry = stack.pop()
            if isinstance(entry, str):
                yield from self._close(entry)
                continue
            node: object = entry
            tag = node.tag  # type: ignore[attr-defined]
            if tag == "-text":
                self._parts.append(node.text_content or "")  # type: ignore[attr-defined]
            elif tag not in _SKIPPED and not tag.startswith(("-", "_", "!")) and not _hidden(node):
                yield from self._open(tag)
                stack.append(tag)
                child, children = node.first_child, []  # type: ignore[attr-defined]
                while child is not None:
                    children.append(child)
                    child = child.next
                stack.extend(reversed(children))
        yield from self._flush()

    def _open(self, tag: str) -> Iterator[Block]:
        if tag == "br" and self._parts:
            self._parts.append("\n")
        elif tag in {"td", "th"} and "".join(self._parts).strip():
            self._parts.append(" | ")
        elif tag in _HEADINGS or (tag in _BLOCKS and tag not in {"td", "th"}):
            yield from self._flush()
        self._level = _HEADINGS.get(tag, self._level)
        self._pre += tag == "pre"

    def _close(self, tag: str) -> Iterator[Block]:
        if tag in _HEADINGS or (tag in _BLOCKS and tag not in {"td", "th", "br"}):
            yield from self._flush()
        if tag in _HEADINGS:
            self._level = 0
        self._pre -= tag == "pre"

    def _flush(self) -> Iterator[Block]:
        text = "".join(self._parts)
        self._parts.clear()
        if text.strip():
            yield Block(text if self._pre else " ".join(text.split()), level=self._level, lines=self._pre > 0)


def _hidden(node: object) -> bool:
    attributes = node.attributes  # type: ignore[attr-defined]
    if not attributes:
        return False
    style = attributes.get("style") or ""
    if "hidden" in attributes or attributes.get("aria-hidden") == "true" or attributes.get("role") == "navigation":
        return True
    # The paragraph sign behind headings of generated pages, which shows when the pointer is over it.
    return "headerlink" in (attributes.get("class") or "") or bool(_HIDDEN.search(style.lower()))
