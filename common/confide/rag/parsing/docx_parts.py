"""The parts of a docx beside its body: notes, the headers and footers of each section, comments.

What names a part that is not there, or outside the file, names nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_KINDS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/"
NOTES = {f"{W}footnoteReference": "footnote", f"{W}endnoteReference": "endnote"}
_OFF = frozenset({"0", "false", "off"})
_PAGES = ("default", "first", "even")


@dataclass(frozen=True)
class Margins:
    """What one section shows above and below its text."""

    headers: list[Any]
    footers: list[Any]


class Parts:
    """Of one document, opened by python-docx. Raises what lxml does for a part that is no XML.

    notes: by ("footnote" or "endnote", identifier). comments: how many there are.
    """

    def __init__(self, document: Any) -> None:
        self._relations = document.part.rels
        self.notes: dict[tuple[str, str], Any] = {}
        for kind in NOTES.values():
            for note in self._only(f"{kind}s").iterchildren(f"{W}{kind}"):
                self.notes.setdefault((kind, note.get(f"{W}id", "")), note)
        self.comments = sum(1 for _ in self._only("comments").iterchildren(f"{W}comment"))
        self._even = _switched_on(self._only("settings"), "evenAndOddHeaders")

    def sections(self, items: Sequence[Any], body: Any) -> Iterator[Margins]:
        """One for each section of a body: `items`, its paragraphs and tables, in order. The last may be empty."""
        found = [item.find(f"{W}pPr/{W}sectPr") for item in items]
        held: dict[tuple[str, str], Any] = {}
        for section in [one for one in found if one is not None] + [body.find(f"{W}sectPr")]:
            # What a section does not name is that of the one before it.
            held.update(self._named(section))
            shown = ("default", *(("first",) if _switched_on(section, "titlePg") else ()), *(("even",) * self._even))
            yield Margins(*([held[kind, page] for page in shown if (kind, page) in held] for kind in _MARGINS))

    def _named(self, section: Any) -> Iterator[tuple[tuple[str, str], Any]]:
        for kind in _MARGINS:
            for reference in () if section is None else section.iterchildren(f"{W}{kind}Reference"):
                root = self._root(self._relations.get(reference.get(f"{_R}id", "")), kind)
                if root is not None:
                    yield (kind, reference.get(f"{W}type", "default")), root

    def _only(self, kind: str) -> Any:
        """The part that a document has one of; an empty element where it has none."""
        from docx.oxml.parser import OxmlElement

        found = (self._root(relation, kind) for relation in self._relations.values())
        return next((root for root in found if root is not None), OxmlElement("w:p"))

    def _root(self, relation: Any, kind: str) -> Any:
        """None for no part of this kind."""
        # The parser of python-docx expands no entities and loads nothing.
        from docx.oxml.parser import parse_xml

        if relation is None or relation.is_external or relation.reltype != _KINDS + kind:
            return None
        part = relation.target_part
        return part.element if hasattr(part, "element") else parse_xml(part.blob)


_MARGINS = ("header", "footer")


def is_on(element: Any) -> bool:
    """Of a switch that is there: whether it is not switched off."""
    return element.get(f"{W}val", "1") not in _OFF


def _switched_on(element: Any, name: str) -> bool:
    found = None if element is None else element.find(f"{W}{name}")
    return found is not None and is_on(found)
