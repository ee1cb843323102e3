"""Write docs/specification.md from the models of the run specification; with --check, fail when it is not current."""

import sys
from collections.abc import Iterator
from pathlib import Path

from confide.runs.reference import Field, Section, sections
from confide.runs.starting_points import STARTING_POINTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "specification.md"


def _page() -> Iterator[str]:
    yield "# The run specification"
    yield ""
    yield "A run is one TOML document. `confide run new run.toml --recipe fine-tune --model-folder MODEL` writes one"
    yield "with comments, `confide run plan run.toml` says what it will do, and what is not listed here is refused."
    yield "This page is made from the models themselves (`python tools/generate_specification_page.py`)."
    yield ""
    yield "| recipe of `run new` | what it is |"
    yield "| --- | --- |"
    for name, (about, _) in STARTING_POINTS.items():
        yield f"| `{name}` | {about} |"
    for section in sections():
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield ""
    yield f"## [{section.path}]" if section.path else "## The document"
    yield ""
    yield section.about
    yield ""
    yield "| field | type | default | allowed | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for field in section.fields:
        yield f"| `{field.name}` | {field.kind} | {_default(field)} | {_cell(field.allowed)} | {_cell(field.about)} |"


def _default(field: Field) -> str:
    return "**needed**" if field.required else f"`{field.default}`" if field.default else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write, or compare."""
    text = "\n".join(_page()) + "\n"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE.name} is not what the specification says; run `python tools/generate_specification_page.py`")


if __name__ == "__main__":
    main()
