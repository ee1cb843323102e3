"""Text that somebody else chose, made fit for a terminal, a log and a page: one place for all of it.

A name, reason or answer that came from a peer, a file or a model can hold escape sequences (which move a terminal's
cursor or set its title), characters that turn the direction of writing, markup, line breaks, or fifty megabytes. It is
bounded and cleaned where it is parsed, with `line` or `cleaned`, and escaped where it is shown, with `markup`.

>>> line("ok\\x1b[2Jgone\\n" + "x" * 9, 12)
'ok [2Jgone …'
>>> markup("[red]no[/red]")
'\\\\[red]no\\\\[/red]'
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.table import Table

LINE_CHARS = 500
"""Of a reason. Names are shorter, and their patterns say so."""
PARAGRAPH_CHARS = 4000
MAX_ITEMS = 10_000
"""Most entries of one list or object in a document from elsewhere."""


def line(text: object, limit: int = LINE_CHARS) -> str:
    """One line of at most `limit` characters, none of which a terminal acts upon.

    What is not printable (Unicode categories Other and Separator, the plain space excepted) becomes a space; a text
    that is cut ends with an ellipsis.
    """
    whole = text if isinstance(text, str) else str(text)
    cut = whole if len(whole) <= limit else f"{whole[: max(0, limit - 1)]}…"
    return cut if cut.isprintable() else "".join(char if char.isprintable() else " " for char in cut)


def paragraph(text: object, limit: int = PARAGRAPH_CHARS) -> str:
    """As `line`, with its line breaks kept: for errors and for answers of a model."""
    whole = text if isinstance(text, str) else str(text)
    if len(whole) <= limit and whole.isprintable():
        return whole
    cut = whole if len(whole) <= limit else f"{whole[: max(0, limit - 1)]}…"
    return "\n".join(line(one, limit) for one in cut.split("\n"))


def markup(text: object, limit: int = LINE_CHARS) -> str:
    """As `line`, for a rich table or console: nothing in it is taken for markup."""
    from rich.markup import escape

    return escape(line(text, limit))


def identifier(text: str) -> str:
    """A failure's code or an event's kind from elsewhere: ASCII letters, digits and underscores, at most 64."""
    return "".join(char for char in text[:64] if char.isascii() and (char.isalnum() or char == "_")) or "Unnamed"


def cleaned(document: Any, limit: int = PARAGRAPH_CHARS) -> Any:
    """A JSON document from elsewhere with every string in it, names of fields included, as `line` makes it.

    Lists and objects keep their first MAX_ITEMS entries.
    """
    if isinstance(document, str):
        return line(document, limit)
    if isinstance(document, list):
        return [cleaned(one, limit) for one in document[:MAX_ITEMS]]
    if isinstance(document, dict):
        return {line(key, limit): cleaned(value, limit) for key, value in list(document.items())[:MAX_ITEMS]}
    return document


_Message = TypeVar("_Message", bound="Message")
_LONG_FIELDS = frozenset({"specification_toml", "plan", "notes"})
"""Texts of several lines, in answers of the coordinator."""


def cleaned_message(message: _Message) -> _Message:
    """A protobuf message from elsewhere with every text in it made fit to be shown, in place."""
    for field, value in message.ListFields():
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            for key in list(value):
                if isinstance(value[key], str):
                    value[key] = line(value[key], PARAGRAPH_CHARS)
        elif field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                cleaned_message(one)
        elif field.type == field.TYPE_STRING:
            limit = 1 << 20 if field.name in _LONG_FIELDS else PARAGRAPH_CHARS
            clean = paragraph if field.name in _LONG_FIELDS else line
            if field.is_repeated:
                value[:] = [clean(one, limit) for one in value]
            else:
                setattr(message, field.name, clean(value, limit))
    return message


def table(*columns: str, keys: Mapping[str, int] | None = None, title: str | None = None) -> "Table":
    """A rich table that cuts nothing at 80 columns: what is too wide goes on in the next line.

    keys: columns of ids and keys, by their widths; these stay in one line.
    """
    from rich.table import Table

    made, widths = Table(title=title, title_justify="left"), keys or {}
    for name in columns:
        made.add_column(name, overflow="fold", min_width=widths.get(name), no_wrap=name in widths)
    return made


def log_to_stderr(level: int, form: str = "%(asctime)s %(levelname)s %(message)s") -> None:
    """What a command's log looks like: on standard error, each record cleaned."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    logging.basicConfig(level=level, handlers=[handler])


class Formatter(logging.Formatter):
    """Formats log records whose arguments came from elsewhere: a terminal may show the log."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, tracebacks included, with nothing in it that a terminal acts upon."""
        return paragraph(super().format(record), 1 << 20)
