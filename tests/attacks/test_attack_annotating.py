"""Texts, files and sittings of annotators that would be lost, mixed up, or counted for somebody else."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confide.errors import DataError, RetryableError
from confide_server.rlhf.annotation.annotating import Session
from confide_server.rlhf.annotation.preferences import (
    Candidate,
    Comparison,
    append_line,
    lines_of,
    read_lines,
    standing,
)
from confide_server.rlhf.annotation.snapshots import Snapshot, export, load_rows
from confide_server.rlhf.candidates import prompt_set
from pydantic import ValidationError

from tests.unit.test_rlhf_preferences import MODEL, candidates, longer_is_better

ODD = "a\u2028b\u2029c\x85d\x1ce\x0bf\x0cg \N{PILE OF POO} \u202e\x00"
"""What str.splitlines takes for ends of lines, and more."""


def test_a_text_is_not_cut_where_unicode_ends_a_line(tmp_path: Path) -> None:
    one = Candidate(prompt=ODD, text=ODD, model=MODEL)
    append_line(tmp_path / "candidates.jsonl", one)
    append_line(tmp_path / "candidates.jsonl", Candidate(prompt="p", text="", model=MODEL))
    assert read_lines(tmp_path / "candidates.jsonl", Candidate)[0] == one
    rows = [{"prompt": ODD, "chosen": ODD, "rejected": "x" * 100_000}]
    export(rows, tmp_path / "pairs.jsonl")
    assert load_rows(tmp_path / "pairs.jsonl") == rows
    made = Snapshot.imported(rows)
    assert Snapshot.read(made.write(tmp_path)).preferences() == rows
    (tmp_path / "prompts.txt").write_bytes("one\u2028and on\r\ntwo\n".encode())
    assert prompt_set(tmp_path / "prompts.txt")[0] == ["one\u2028and on", "two"]
    assert lines_of(b"a\r\nb\n") == ["a", "b", ""]


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    file, (one, other) = tmp_path / "ratings.jsonl", longer_is_better(candidates(), "ada")[:2]
    append_line(file, one)
    file.write_bytes(file.read_bytes().rstrip(b"\n"))  # as some editors leave it
    append_line(file, other)
    assert read_lines(file, Comparison) == [one, other]
    before = file.read_bytes()
    code = f"""
import resource, signal
from pathlib import Path
from confide_server.rlhf.annotation.preferences import Comparison, append_line
from confide.errors import RetryableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 10},) * 2)
try:
    append_line(Path({str(file)!r}), Comparison.model_validate_json({one.model_dump_json()!r}))
except RetryableError:
    print("refused")
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "refused\n" and file.read_bytes() == before
    with pytest.raises(RetryableError, match="cannot write"):
        append_line(tmp_path / "nowhere" / "ratings.jsonl", one)


def test_two_windows_of_one_annotator_judge_a_pair_once(tmp_path: Path) -> None:
    known, file = candidates(), tmp_path / "ratings-ada.jsonl"
    one, other = Session(known, "ada", file), Session(known, "ada", file)
    first, same = one.next(), other.next()
    assert first is not None and first == same
    one.judge(first, "first")
    with pytest.raises(DataError, match="RATING_REPLAYED"):
        other.judge(first, "second")
    assert other.next() not in (None, first) and other.done == 1
    assert other.undo() and one.next() == first and one.done == 0
    for turn in itertools.cycle((one, other)):
        if (task := turn.next()) is None:
            break
        turn.judge(task, "tie")
    assert len(standing(read_lines(file, Comparison))) == one.total == one.done == 9
    os.truncate(file, 0)
    assert one.next() is not None and one.done == 0


def test_nobody_goes_on_in_somebody_elses_file(tmp_path: Path) -> None:
    known, file = candidates(), tmp_path / "ratings-ada.jsonl"
    append_line(file, longer_is_better(known, "ada")[0])
    with pytest.raises(DataError, match="ANNOTATOR_OTHER"):
        Session(known, "ben", file)


def test_a_judgement_is_of_two_answers_to_one_prompt() -> None:
    known = candidates()
    one, far = known[0], known[-1]
    for ends in ({"first": one.id, "second": one.id}, {"first": "", "second": one.id}):
        with pytest.raises(ValidationError):
            Comparison.model_validate({**ends, "choice": "first", "annotator": "eve"})
    across = Comparison(first=one.id, second=far.id, choice="first", annotator="eve")
    with pytest.raises(DataError, match="PROMPTS_DIFFER: eve"):
        Snapshot.of(known, [*longer_is_better(known, "ada"), across])


def test_the_same_judgements_are_the_same_snapshot_in_any_order() -> None:
    known = candidates()
    ada, ben = (longer_is_better(known, name) for name in ("ada", "ben"))
    undone = [ada[0], ada[0].model_copy(update={"undone": True})]
    hashes = {
        Snapshot.of(one, two).sha256
        for one, two in ((known, ada + ben), (known[::-1], ben + ada), (known, undone + ben + ada[::-1]))
    }
    assert len(hashes) == 1
