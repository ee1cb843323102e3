"""What passes by itself is tried again soon; damage, later and later."""

import doctest
from pathlib import Path

import pytest
from confide.errors import RetryableError, StateError
from confide.files import write_atomic
from confide.journal import Journal
from confide_server.rounds import retrying


def test_the_examples_hold() -> None:
    found = doctest.testmod(retrying)
    assert found.attempted and not found.failed


def test_damage_is_tried_later_and_later_and_whatever_else_too() -> None:
    for error in (StateError("line 3 does not follow"), RuntimeError("unforeseen")):
        waits = [retrying.wait_s(error, failures, 5.0) for failures in range(1, 100)]
        assert waits == sorted(waits) and waits[:2] == [5.0, 10.0] and waits[-1] == retrying.MOST_RETRY_S


def test_a_full_disk_may_be_tried_again_and_a_broken_journal_not_so_soon(tmp_path: Path) -> None:
    with pytest.raises(RetryableError, match="cannot write"):
        write_atomic(tmp_path / "no such folder" / "file", b"x")
    journal = Journal(tmp_path / "journal")
    journal.append({"event": "one"})
    journal.append({"event": "two"})
    journal.close()
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data.replace(b"one", b"two"))
    with pytest.raises(StateError, match="does not follow") as damaged:
        Journal(tmp_path / "journal")
    assert not isinstance(damaged.value, RetryableError)
