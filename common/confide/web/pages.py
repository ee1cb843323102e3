"""Templates that escape everything, and what is written the same on every page: times, ages, sizes, durations.

A name or reason that came from elsewhere is cleaned (confide.text) and escaped where it is shown, whatever the template
does: there is no way to switch either off for a value. Only what this module or a macro builds is markup.

>>> pages = Pages([], texts=lambda key, **said: key)
>>> pages.environment.from_string("{{ name }}").render(name="<b>x\\u202e")
'&lt;b&gt;x '
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from confide.text import paragraph

WHOLE_CHARS = 1 << 20
SHARED = Path(__file__).parent / "templates"


def _shown(value: Any) -> Any:
    """What is put out in place of a value."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return paragraph(value)


class Pages:
    """Renders templates of the folders, the first that has it."""

    def __init__(self, folders: Sequence[Path], texts: Callable[..., str], **everywhere: object) -> None:
        """everywhere: what each template knows beside what it is given."""
        self.environment = Environment(
            loader=FileSystemLoader([*folders, SHARED]),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters |= {
            "when": when,
            "duration": duration,
            "size": size,
            "figure": figure,
            "whole": whole,
        }
        self.environment.globals |= {"t": texts, "age": age, **everywhere}

    def render(self, template: str, **given: object) -> str:
        """The page as text."""
        return self.environment.get_template(template).render(**given)


def whole(text: str) -> Markup:
    """A document that is longer than what others' words may be: cleaned and escaped alike, and not cut."""
    return escape(paragraph(text, WHOLE_CHARS))


def when(seconds: float | None) -> Markup | str:
    """A moment: universal time here, the viewer's zone where scripts run, ISO on hover."""
    if not seconds:
        return "–"
    moment = datetime.fromtimestamp(seconds, UTC)
    iso = moment.isoformat(timespec="seconds")
    return Markup('<time datetime="{0}" title="{0}">{1} UTC</time>').format(iso, moment.strftime("%Y-%m-%d %H:%M:%S"))


def age(seconds: float) -> Markup:
    """How old something is, which goes on ticking where scripts run."""
    return Markup('<span class="age" data-age="{}">{}</span>').format(round(max(0.0, seconds), 1), duration(seconds))


def duration(seconds: float | None) -> str:
    """In the two largest units at most.

    >>> duration(4.2), duration(64), duration(3 * 3600 + 120), duration(90_000)
    ('4 s', '1 min', '3 h 2 min', '1 d 1 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60 % 60, whole // 3600 % 24, whole // 86400
    parts = [(days, "d"), (hours, "h"), (minutes, "min")]
    return " ".join([f"{count} {unit}" for count, unit in parts if count][:2])


def size(count: float) -> str:
    """Bytes.

    >>> size(0), size(1536), size(5e9)
    ('0 B', '1.5 KiB', '4.7 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def figure(value: float | None, digits: int = 4) -> str:
    """A number of so many significant digits; a dash where there is none.

    >>> figure(3.14159), figure(None), figure(123456.0), figure(0.0)
    ('3.142', '–', '1.235e+05', '0')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"
