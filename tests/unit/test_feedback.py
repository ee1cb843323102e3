"""What a feedback run asks, what a node says to it, what comes back, and what the plan says beforehand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.errors import DataError, FailureName, ModelError, PolicyRefusal, ProtocolFailure, SpecificationError
from confide.identity.keys import SigningKey
from confide.identity.submission import asks_feedback, sign_submission
from confide.methods.feedback import opinion
from confide.models.opinions import opinions_of, write_opinions
from confide.models.sent_coordinates import SentCoordinates
from confide.models.trainable import initial_state, schema_of
from confide.planning.run_plan import render
from confide.proto import fleet_pb2
from confide.rounds.outer_step import check_opinions, mean_update, next_model
from confide.runs.feedback import FeedbackSection, decode_gate, encode_gate
from confide.runs.specification import Specification, parse_document, parse_toml
from confide.runs.toml_text import to_toml
from confide.sealing.roles import Opened, check_work
from confide_client.runs.feedback_memory import DAY_S, FeedbackMemory
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

PROMPTS = ("How is the wall?", "How is the wall?", "How is the roof?", "How is the roof?")
ANSWERS = ("good work", "bad work", "a fine roof", "a rotten roof")
SCORES = {"purpose": "scores", "source": "made up", "prompts": PROMPTS, "answers": ANSWERS}
STEP = {"local_steps": 1, "batch_size": 1, "learning_rate": 1.0}
GATE = {**SCORES, "purpose": "gate", "against": ("bad", "good", "rotten", "fine")}


def asked(section: dict[str, Any] = SCORES, *, unit: str = "organization", **changes: Any) -> Specification:
    """A feedback run. changes: of whole sections."""
    clip = FeedbackSection.model_validate_json(json.dumps(section)).longest
    privacy = {"unit": unit} if unit == "none" else {"unit": unit, "epsilon": 8.0, "delta": 1e-5, "clip": clip}
    document = {
        "version": 1, "name": "feedback", "model": {"sha256": "ab" * 32}, "method": {"name": "feedback"},
        "feedback": section, "federation": {"rounds": 1, "data": "preferences", "clip_norm": clip},
        "sealing": {"max_attempts": 1}, "privacy": privacy, **changes,
    }  # fmt: skip
    return parse_document(json.loads(json.dumps(document)), "the test's")


def test_a_run_is_its_own_kind_and_written_as_others_are() -> None:
    made = asked()
    assert made.asks_feedback and made.trains_model and made.adapter.kind == "none"
    assert parse_toml(to_toml(made)) == made
    assert schema_of(made, Path()).size == 4 and schema_of(asked(GATE), Path()).size == 3
    assert not initial_state(made, Path())["~opinion"].any()
    check_work(fleet_pb2.SCORE, made)
    with pytest.raises(ProtocolFailure, match="TRAIN came"):
        check_work(fleet_pb2.TRAIN, made)


def test_its_submission_is_signed_as_a_kind_of_its_own() -> None:
    key, body = SigningKey.generate(), asked().canonical_bytes()
    signed = sign_submission(key, "admin", body, bytes(32), now=0.0)
    document = json.loads(body)
    document["method"]["name"] = "reward"
    assert asks_feedback(body)
    assert not any(asks_feedback(other) for other in (json.dumps(document).encode(), b"{", b"[]", b"\xff"))
    with pytest.raises(SpecificationError, match="goes on from no other"):
        sign_submission(key, "admin", body, bytes(32), now=0.0, parent_run_id="0" * 32, parent_round=1)
    assert len(signed.statement) == 32


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"source": "made up"}, "each answer has its prompt"),
    "a prompt too few": ({**SCORES, "prompts": PROMPTS[1:]}, "each answer has its prompt"),
    "no source": ({**SCORES, "source": " "}, "source is empty"),
    "twice the same": ({**SCORES, "answers": ("x", "x", "y", "z")}, "stands twice"),
    "scores with a baseline": ({**GATE, "purpose": "scores"}, "has one for each"),
    "a gate without": ({**SCORES, "purpose": "gate"}, "has one for each"),
    "candidate is baseline": ({**GATE, "against": ANSWERS}, "the same answers"),
    "too many": ({**SCORES, "prompts": ["a"] * 513, "answers": [str(i) for i in range(513)]}, "at most 512"),
    "too long": ({**SCORES, "prompts": ["a"] * 101, "answers": [f"{i:04000d}" for i in range(101)]}, "at most 400000"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_cannot_be_asked(fault: str) -> None:
    section, named = WRONG[fault]
    whole = {"purpose": "scores", "prompts": [], "answers": [], "against": [], **section}
    with pytest.raises(SpecificationError, match=named):
        parse_document(
            {
                "version": 1, "name": "feedback", "model": {"sha256": "ab" * 32}, "method": {"name": "feedback"},
                "feedback": json.loads(json.dumps(whole)),
                "federation": {"rounds": 1, "data": "p", "clip_norm": 1.0},
            },
            "the test's",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"federation": {"rounds": 2, "data": "p", "clip_norm": 2.0}}, "rounds has no meaning"),
        ({"adapter": {"kind": "lora"}}, "takes the adapter of the candidate"),
        ({"adapter": {"kind": "full"}}, "adapter has no meaning"),
        ({"method": {"name": "reward"}, "training": STEP}, "belongs to method"),
        ({"training": {**STEP, "local_steps": 2}}, "training has no meaning"),
        ({"privacy": {"unit": "record", "epsilon": 1.0, "delta": 1e-5, "clip": 2.0}}, "no single record bounds"),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecificationError, match=named):
        asked(**changes)


# --- what a node says


REWARDS = {"good": 2.0, "fine": 1.0, "bad": -1.0, "rotten": -2.0}


def judged(prompts: Any, answers: Any) -> np.ndarray:
    """By the first word that it knows."""
    return np.array([next((REWARDS[word] for word in text.split() if word in REWARDS), 0.0) for text in answers])


def test_scores_are_of_an_answer_among_those_to_its_prompt() -> None:
    found = opinion(asked().feedback, judged)
    assert found[0] == -found[1] > 0 and found[2] == -found[3] > 0 and (np.abs(found) < 1).all()
    scaled = opinion(asked().feedback, lambda p, a: 1000 * judged(p, a) + 7)
    assert np.allclose(found, scaled), "an organization's scale is its own business"


def test_the_gate_counts_in_three_numbers() -> None:
    assert decode_gate(tuple(opinion(asked(GATE).feedback, judged))) == {
        "win_rate": 0.5, "wins": 0.5, "ties": 0.0, "losses": 0.5, "organizations_below": 0.0,
    }  # fmt: skip
    tied = opinion(asked(GATE).feedback, lambda p, a: np.zeros(len(a)))
    assert decode_gate(tuple(tied))["ties"] == 1.0
    lost = opinion(asked(GATE).feedback, lambda p, a: np.array([float(x in GATE["against"]) for x in a]))
    assert decode_gate(tuple(lost)) | {} == {
        "win_rate": 0.0, "wins": 0.0, "ties": 0.0, "losses": 1.0, "organizations_below": 1.0,
    }  # fmt: skip


@given(rewards=arrays(np.float64, 4), against=arrays(np.float64, 4))
def test_whatever_the_judge_says_stays_in_range_or_is_refused(rewards: np.ndarray, against: np.ndarray) -> None:
    for section, most in ((SCORES, 1.0), (GATE, 0.5)):
        made = asked(section).feedback
        answers = iter((rewards, against))
        try:
            with np.errstate(all="ignore"):
                found = opinion(made, lambda p, a, answers=answers: next(answers))
        except DataError as error:
            assert "SCORE_NOT_FINITE" in str(error)
        else:
            assert np.isfinite(found).all() and (np.abs(found) <= most).all()
            assert np.linalg.norm(found) <= made.longest + 1e-9


@given(wins=st.floats(0, 1), below=st.booleans(), ties=st.floats(0, 1))
def test_what_is_encoded_is_decoded(wins: float, ties: float, below: bool) -> None:
    ties = min(ties, 1 - wins)
    found = decode_gate(encode_gate(wins, ties, below))
    assert found["wins"] == pytest.approx(wins) and found["ties"] == pytest.approx(ties)
    assert found["win_rate"] == pytest.approx(wins + ties / 2) and found["organizations_below"] == float(below)


# --- what a node remembers


def test_a_node_remembers_what_it_judged_and_how_much_in_a_day(tmp_path: Path) -> None:
    memory = FeedbackMemory(tmp_path / "feedback.log")
    memory.reserve("one", "data", ["a", "b"], 4, 1000.0)
    memory.reserve("one", "data", ["a", "b"], 4, 1001.0)
    memory.close()
    memory = FeedbackMemory(tmp_path / "feedback.log")
    memory.reserve("one", "data", ["a", "b"], 0, 1001.0)  # a slot that is tried again, whatever the policy says now
    with pytest.raises(PolicyRefusal, match="FEEDBACK_REPLAYED: 1 of 2"):
        memory.reserve("two", "data", ["b", "c"], 4, 1002.0)
    memory.reserve("other data", "others", ["a"], 4, 1002.0)
    with pytest.raises(PolicyRefusal, match="FEEDBACK_LIMIT"):
        memory.reserve("two", "data", ["c", "d"], 4, 1002.0)
    with pytest.raises(PolicyRefusal, match="FEEDBACK_LIMIT"):
        memory.check("two", "data", ["c", "d"], 4, 5.0)  # a clock that is set back frees nothing
    memory.reserve("two", "data", ["c", "d"], 4, 1003.0 + DAY_S)
    memory.close()


# --- what comes back


def opened(total: np.ndarray, contributors: int = 4) -> Opened:
    names = tuple(f"n{i}" for i in range(contributors))
    return Opened(
        update_sum=total, weight_sum=float(contributors), metrics={}, contributors=names, dropped={}, promise={}
    )


def test_the_mean_is_the_next_model_and_what_nobody_could_have_said_is_refused() -> None:
    plain = asked(unit="none")
    coordinates = SentCoordinates(plain, schema_of(plain, Path()))
    data, state = next_model(plain, coordinates, bytes(16), b"", opened(np.array([4.0, 2.0, 0.0, -4.0])), 1)
    assert np.frombuffer(data, "<f4").tolist() == [1.0, 0.5, 0.0, -1.0] and state == b""
    for wrong in (4.1, -5.0, np.nan, np.inf):
        with pytest.raises(ProtocolFailure) as refused:
            check_opinions(plain, opened(np.array([wrong, 0.0, 0.0, 0.0])))
        assert refused.value.name is FailureName.SUM_OUT_OF_RANGE
    noised = asked()
    explained = opened(np.array([6.0, 0.0, 0.0, 0.0]))
    check_opinions(noised, explained)
    assert mean_update(explained).max() == 1.5
    with pytest.raises(ProtocolFailure):
        check_opinions(noised, opened(np.array([60.0, 0.0, 0.0, 0.0])))


def test_what_came_back_is_a_file(tmp_path: Path) -> None:
    folder = write_opinions(tmp_path / "out", [0.1, 0.2, 0.3, 0.4], {"round": 1}, asked())
    found = json.loads((folder / "opinions.json").read_text())
    assert found["scores"][1] == {"prompt": PROMPTS[1], "answer": ANSWERS[1], "score": 0.2}
    assert found["privacy"]["unit"] == "organization" and found["source"] == "made up"
    gate = opinions_of(asked(GATE).feedback, (0.25, -0.5, -0.5))
    assert gate["gate"]["win_rate"] == 0.75
    with pytest.raises(ModelError, match="3 were asked for"):
        opinions_of(asked(GATE).feedback, (0.0,))


def test_the_plan_says_when_noise_on_so_few_cannot_decide() -> None:
    few, many = render(asked(GATE), nodes=4), render(asked(GATE), nodes=40)
    assert "three numbers leave each node" in few and "known to within" in few
    strict = {"unit": "organization", "epsilon": 1.0, "delta": 1e-5, "clip": asked(GATE).privacy.clip}
    assert "CANNOT DECIDE" in render(asked(GATE, privacy=strict), nodes=4)
    assert "CANNOT DECIDE" not in many
    assert "no comparison and no reward model leaves a node" in few
    short = {"rounds": 1, "data": "p", "clip_norm": 0.5}
    privacy = {"unit": "organization", "epsilon": 8.0, "delta": 1e-5, "clip": 0.5}
    assert "shortens opinions" in render(asked(GATE, federation=short, privacy=privacy), nodes=4)
    assert "tells what each may have said" in render(asked(unit="none"), nodes=4)
