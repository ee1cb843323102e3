"""What the coordinator's log says of events: named, not valued; one line, whatever stands in it."""

import logging

import pytest
from confide_server.state.event_lines import line_of, log_event
from confide_server.state.events import RunFailed, RunFinished, RunWaits
from hypothesis import given
from hypothesis import strategies as st

RUN = "1f" * 16


def test_a_committed_round_is_named_and_not_valued() -> None:
    data = {
        "round": 2,
        "metrics": {"train_loss": {"mean": 1.25, "count": 3}},
        "contributors": ["bank-b", "hospital-a"],
        "dropped": {"law-firm-c": "TransportError: no answer"},
        "update_norm": 0.5,
        "model_sha256": "ab" * 32,
        "seconds": 12.5,
    }
    said = line_of(RUN, "round_committed", data)
    assert said == (
        "run 1f1f1f1f: round_committed round=2 contributors=bank-b,hospital-a "
        "dropped=law-firm-c(TransportError: no answer) seconds=12.5"
    )


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (RunFailed(code="COHORT_TOO_SMALL", reason="nobody came"), logging.WARNING),
        (RunWaits(waits_for=["bank-b"], reason="for its answer"), logging.WARNING),
        (RunWaits(waits_for=[], reason=""), logging.INFO),
        (RunFinished(rounds=2, model_sha256="0" * 64), logging.INFO),
    ],
)
def test_what_somebody_may_want_to_mend_is_a_warning(
    caplog: pytest.LogCaptureFixture, event: RunFailed | RunWaits | RunFinished, level: int
) -> None:
    caplog.set_level(logging.INFO)
    log_event(RUN, event)
    assert [record.levelno for record in caplog.records] == [level]


@given(st.dictionaries(st.text(max_size=8), st.text() | st.lists(st.text(max_size=9)) | st.integers(), max_size=5))
def test_text_from_elsewhere_stays_in_its_line(data: dict[str, object]) -> None:
    assert "\n" not in line_of(RUN, "dropped", {key or "x": value for key, value in data.items() if key.isidentifier()})
