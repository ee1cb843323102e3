"""Text that somebody else chose: whatever it holds, no terminal acts upon it, and none of it is long."""

import io
import logging
import string

import pytest
from confide import canonical
from confide.errors import DataError, FailureName, ProtocolFailure, TransportError
from confide.proto import admin_pb2 as pb
from confide.proto import fleet_pb2
from confide.text import Formatter, cleaned, cleaned_message, identifier, line, markup, paragraph
from confide.transport.envelope import payload_digest
from confide.transport.failures import revive
from confide_client.agent import status
from confide_client.runs import replies
from confide_server.admin_cli.run_view import RunView, plain
from confide_server.rounds.exchange import printable
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

CLEAR = "\x1b[2J\x1b]0;your bank\x07"  # clears the screen, sets the title
TURNED = "\u202egnp.exe"  # right-to-left override: shows as exe.png
C1 = "\x9b31m"  # the same as ESC [ in one character
HOSTILE = f"[bold red]sealed[/] {CLEAR}{TURNED}{C1}\r\n\x00\u2028\ud800end"


def acts(text: str) -> bool:
    """Whether a terminal would do something else than show it."""
    return any(not char.isprintable() for char in text)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.text(max_size=80), st.integers(1, 60))
def test_a_line_is_one_line_and_short(text: str, limit: int) -> None:
    made = line(text, limit)
    assert not acts(made) and len(made) <= limit
    assert line(made, limit) == made
    assert not acts(identifier(text)) and 0 < len(identifier(text)) <= 64
    assert not acts(paragraph(text).replace("\n", ""))


def test_what_is_harmless_stays() -> None:
    assert line("Universitätsklinikum Łódź 北京 5 %") == "Universitätsklinikum Łódź 北京 5 %"
    assert paragraph("one\ntwo") == "one\ntwo"
    assert line(string.printable[:95]) == string.printable[:95]


def test_fifty_megabytes_are_cut_before_they_are_looked_at() -> None:
    assert len(line("\x1b" * (50 << 20))) == 500
    assert len(paragraph("\n" * (50 << 20))) == 4000


def test_documents_are_cleaned_names_included() -> None:
    made = cleaned({HOSTILE: [HOSTILE, 1, None, {"a": HOSTILE}]})
    assert not acts(canonical.encode(made).decode())


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=4000, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markup_is_text() -> None:
    assert "[bold red]sealed[/]" in shown(markup(HOSTILE))
    assert not acts(shown(markup("ends with a backslash \\")).strip("\n"))


# --- where it comes in and goes out


def test_an_error_of_the_coordinator(capsys: pytest.CaptureFixture[str]) -> None:
    error = revive("X" * (1 << 20) + CLEAR, HOSTILE * 9999)
    assert not acts(str(error).replace("\n", "")) and len(str(error)) < 2200


def test_runs_and_events_of_the_coordinator() -> None:
    run = cleaned_message(pb.RunLine(run_id=CLEAR, name=CLEAR, status=CLEAR, detail=CLEAR * 999, sealing=CLEAR))
    assert not any(acts(text) for text in (run.run_id, run.name, run.status, run.detail, run.sealing))
    event = cleaned_message(pb.Event(kind=f"dropped{CLEAR}", dropped=pb.Dropped(reason=HOSTILE.replace("\ud800", ""))))
    assert not acts(event.kind) and not acts(event.dropped.reason)


def test_a_nodes_words_at_the_coordinator() -> None:
    assert not acts(printable(HOSTILE)) and not acts(plain(HOSTILE))
    view = RunView(CLEAR)
    view.feed("run_started", {"nodes": ["a"], "rounds": 1, "sealing": HOSTILE, "name": HOSTILE})
    view.feed("run_failed", {"code": HOSTILE, "reason": HOSTILE})
    assert not acts(shown(view.table()).replace("\n", ""))


def test_a_nodes_status(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "notices": [{"text": HOSTILE, "over": True}],
        "pause": {"by": HOSTILE, "reason": HOSTILE},
        "membership": {"error": HOSTILE},
        "agent": {"running": True, "complaint": HOSTILE},
        "progress": {"at": 0.0, "run": HOSTILE, "words": HOSTILE},
        "policy": {"error": HOSTILE},
        "data_sets": [HOSTILE],
        "runs": [{"run": "0" * 32, "name": HOSTILE, "status": HOSTILE, "reason": HOSTILE, "sealing": HOSTILE}],
        "audit": {
            "entries": 1,
            "head": "0" * 64,
            "newest": [{"at": "2026-11-26T00:00:00+00:00", "event": HOSTILE, "reason": HOSTILE * 99, HOSTILE: 1}],
        },
    }
    console = Console(file=io.StringIO(), width=400, force_terminal=False)
    status.show(document, console)
    assert not acts(console.file.getvalue().replace("\n", ""))  # type: ignore[attr-defined]


def test_a_log_record() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "it said %s", (HOSTILE,), None)
    assert not acts(Formatter("%(message)s").format(record).replace("\n", ""))


@pytest.mark.parametrize(("step", "size"), [(fleet_pb2.END, (64 << 10) + 1), (fleet_pb2.OFFER, (4 << 20) + 1)])
def test_a_body_that_is_too_long_for_its_step(step: fleet_pb2.Step, size: int) -> None:
    instruction = fleet_pb2.Instruction(
        version=1, run_id="0" * 32, step=step, body=bytes(size), payload_digest=payload_digest({})
    )
    with pytest.raises(TransportError, match="at most"):
        replies.check_instruction(instruction, {})


def test_an_error_says_its_code_once() -> None:
    assert ProtocolFailure(FailureName.BLOCK_SPLIT, "one is missing").coded == "BLOCK_SPLIT: one is missing"
    assert DataError("no file").coded == "DataError: no file"
