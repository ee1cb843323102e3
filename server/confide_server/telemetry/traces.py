"""OpenTelemetry traces of what the coordinator does: a span for each run, round, slot and step of the protocol.

    stop = configure("otlp")                 # or the path of a file, one JSON object a span
    with span("round", round=3): ...         # costs next to nothing where nothing is configured

A span tells which run, round, attempt, slot and step it is of, how long it took, and the code of what went wrong. No
organization's name, no text and no value of a node is in it. Needs the extra `telemetry`.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, StateError
from confide.secrecy import PrivateLogFile

from confide_server.telemetry.logs import KEPT_FILES, MAX_FILE_BYTES

OTLP = "otlp"
"""Where the environment says: OTEL_EXPORTER_OTLP_ENDPOINT and the other variables of OpenTelemetry. Needs the package
opentelemetry-exporter-otlp-proto-http too."""
NAMES = frozenset({"run", "round", "slot", "phase"})
_tracer: Any = None


def configure(where: str) -> Callable[[], None]:
    """Send spans to `where`: "otlp", or a file (0600, rotated as logs are); returns how to send the rest and stop.

    Raises StateError when the extra is not installed, or the file cannot be written.
    """
    global _tracer
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _otlp() if where == OTLP else _file_exporter(Path(where))
    except ImportError as error:
        raise StateError(
            f"traces need the extra telemetry, and otlp opentelemetry-exporter-otlp-proto-http beside it ({error}): "
            "pip install 'confide[telemetry]' opentelemetry-exporter-otlp-proto-http"
        ) from error
    except OSError as error:
        raise StateError(f"traces cannot be written to {where}: {error.strerror}; choose another file") from error
    provider = TracerProvider(resource=Resource({SERVICE_NAME: "confide-coordinator"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("confide")

    def stop() -> None:
        global _tracer
        _tracer = None
        provider.shutdown()

    return stop


@contextlib.contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A span around this thread's work, within the one that is open. name: one of NAMES.

    An error that has a code leaves that, and no other word, in it; whatever is raised goes on.
    """
    if _tracer is None:
        yield
        return
    said = {f"confide.{key}": value for key, value in attributes.items()}
    with _tracer.start_as_current_span(
        f"confide.{name}", attributes=said, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute("confide.code", error.code if isinstance(error, ConfideError) else "Internal")
            raise


def note(**attributes: str | int) -> None:
    """What became known of the innermost open span: its outcome, as a code."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        for key, value in attributes.items():
            get_current_span().set_attribute(f"confide.{key}", value)


def _otlp() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _file_exporter(path: Path) -> Any:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class FileExporter(SpanExporter):  # type: ignore[misc]  # of a library without types here
        """One JSON object a line."""

        def __init__(self) -> None:
            self._file = PrivateLogFile(path, max_bytes=MAX_FILE_BYTES, kept=KEPT_FILES)

        def export(self, spans: Sequence[Any]) -> Any:
            for one in spans:
                self._file.handle(logging.makeLogRecord({"msg": json.dumps(_document(one))}))
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            self._file.close()

    return FileExporter()


def _document(one: Any) -> dict[str, Any]:
    return {
        "name": one.name,
        "trace": f"{one.context.trace_id:032x}",
        "span": f"{one.context.span_id:016x}",
        "parent": f"{one.parent.span_id:016x}" if one.parent else "",
        "began_ns": one.start_time,
        "ended_ns": one.end_time,
        **dict(one.attributes),
    }
