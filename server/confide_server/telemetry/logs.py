"""Log lines, as text or JSON, that say which run, round, slot and node they are about.

>>> import io
>>> stream = io.StringIO()
>>> configure(logging.INFO, "json", stream=stream)
>>> with about(run="0123", round=2): logging.getLogger("example").info("committed")
>>> said = json.loads(stream.getvalue()); said["message"], said["run"], said["round"]
('committed', '0123', 2)

What a thread is about is set by `about` around its work; a single line may say more with extra={"about": {...}}.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from confide.secrecy import PrivateLogFile
from confide.text import Formatter, cleaned, paragraph

Form = Literal["text", "json"]
FIELDS = ("run", "round", "slot", "node")
MAX_FILE_BYTES = 16 << 20
KEPT_FILES = 8
_ABOUT: ContextVar[Mapping[str, str | int]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


@contextmanager
def about(**fields: str | int) -> Iterator[None]:
    """Within it, this thread's lines are about these (of run, round, slot, node)."""
    token = _ABOUT.set({**_ABOUT.get(), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def fields_of(record: logging.LogRecord) -> dict[str, str | int]:
    """What a line is about, in the order of FIELDS."""
    said = {**_ABOUT.get(), **getattr(record, "about", {})}
    return {name: said[name] for name in FIELDS if said.get(name) not in (None, "")}


class TextFormatter(Formatter):
    """time LEVEL logger: message [run=... round=...]"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with what it is about behind it."""
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        said = not fields or getattr(record, "about_is_said", False)
        return super().formatMessage(record) + ("" if said else f" [{fields}]")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, run, round, slot, node, error."""

    def format(self, record: logging.LogRecord) -> str:
        """The object; nothing in it that a terminal acts upon."""
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            said["error"] = paragraph(self.formatException(record.exc_info), 1 << 16)
        lines = said.pop("error", None)
        document: dict[str, object] = cleaned(said, 1 << 16)
        return json.dumps(document | ({"error": lines} if lines else {}), ensure_ascii=False)


def configure(
    level: int, form: Form, *, path: Path | None = None, stream: IO[str] | None = None, max_bytes: int = MAX_FILE_BYTES
) -> None:
    """Send this process's log to a file (0600, rotated at `max_bytes`, eight older ones kept), or to a stream.

    Without either: standard error. Handlers of before are replaced.
    """
    handler: logging.Handler
    if path is not None:
        handler = PrivateLogFile(path, max_bytes=max_bytes, kept=KEPT_FILES)
    else:
        handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
