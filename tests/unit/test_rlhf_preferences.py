"""Comparisons, snapshots, annotation, rules, reward models and the gate of the central half."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.errors import ConfideError, DataError, IdentityError, ModelError, PolicyRefusal, SpecificationError
from confide.identity.keys import SigningKey
from confide.models.reward_folder import write_reward
from confide.models.store import folder_digest
from confide_server.rlhf import best_of_n, central_reward, gate, page
from confide_server.rlhf.annotation.annotating import Session, tasks
from confide_server.rlhf.annotation.preferences import (
    Candidate,
    Comparison,
    append_line,
    check_annotators,
    check_candidates,
    pairs_of,
    read_lines,
    standing,
)
from confide_server.rlhf.annotation.snapshots import Filters, Snapshot, export, krippendorff_alpha, load_rows
from confide_server.rlhf.candidates import prompt_set
from confide_server.rlhf.commands import app
from confide_server.rlhf.policy import Completion, Policy, Sampling
from confide_server.rlhf.reward_model import RewardModel
from confide_server.rlhf.training.documents import Rule
from confide_server.rlhf.training.rules import rules_reward
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.preferences import pairs
from tests.tiny_models import tiny_bert, tiny_llama

MODEL = "0" * 64


def candidates(prompts: int = 3, answers: int = 3) -> list[Candidate]:
    return [
        Candidate(prompt=f"prompt {p}", text=f"answer {p} {a}" + "!" * a, model=MODEL)
        for p in range(prompts)
        for a in range(answers)
    ]


def longer_is_better(known: list[Candidate], annotator: str) -> list[Comparison]:
    return [
        Comparison(
            first=task.first.id, second=task.second.id, annotator=annotator, milliseconds=5,
            choice="first" if len(task.first.text) > len(task.second.text) else "second",
        )
        for task in tasks(known, annotator)
    ]  # fmt: skip


def test_everybody_sees_all_pairs_blind_in_an_order_of_their_own() -> None:
    known = candidates()
    orders = {name: tasks(known, name) for name in ("ada", "ben", "eve")}
    pairs_seen = [{frozenset((t.first.id, t.second.id)) for t in order} for order in orders.values()]
    assert pairs_seen[0] == pairs_seen[1] == pairs_seen[2] and len(pairs_seen[0]) == len(pairs_of(known)) == 9
    assert orders["ada"] == tasks(known, "ada") != orders["ben"]
    sides = [t.first.id < t.second.id for order in orders.values() for t in order]
    assert 5 < sum(sides) < 22, "neither side always holds the same answer"


def test_a_sitting_resumes_undoes_and_is_durable(tmp_path: Path) -> None:
    known, file, now = candidates(), tmp_path / "ratings-ada.jsonl", iter(np.arange(0.0, 90.0, 0.5))
    session = Session(known, "ada", file, clock=lambda: float(next(now)))
    for _ in range(3):
        task = session.next()
        assert task is not None
        session.judge(task, "first")
    assert session.undo() and session.done == 2
    again = Session(known, "ada", file)
    redo = again.next()
    assert again.done == 2 and redo == task
    again.judge(task, "second", reason="clearer")
    kept = read_lines(file, Comparison)
    assert len(kept) == 5 and [one.undone for one in kept] == [False, False, False, True, False]
    assert kept[0].milliseconds == 500 and file.stat().st_mode & 0o777 == 0o600
    assert [one.choice for one in standing(kept)] == ["first", "first", "second"]
    while (task := again.next()) is not None:
        again.judge(task, "tie")
    assert again.done == again.total == 9


def test_a_snapshot_is_frozen_under_its_hash(tmp_path: Path) -> None:
    known = candidates()
    judged = [one for name in ("ada", "ben", "eve") for one in longer_is_better(known, name)]
    made = Snapshot.of(known, judged)
    path = made.write(tmp_path)
    assert Snapshot.read(path).sha256 == path.stem == made.sha256
    rows = made.preferences()
    assert len(rows) == 9 and all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    statistics = made.document["statistics"]
    assert statistics["krippendorff_alpha"] == 1.0 and statistics["chosen_is_longer"] == 1.0
    assert len(made.document["comparisons"]) == 27, "every rating is kept"
    path.write_bytes(path.read_bytes().replace(b"answer 0 0", b"answer 0 9"))
    with pytest.raises(DataError, match="SNAPSHOT_CHANGED"):
        Snapshot.read(path)


def test_disagreement_is_decided_or_left_open_and_gold_counts(tmp_path: Path) -> None:
    known = candidates()
    good = [one for name in ("ada", "ben") for one in longer_is_better(known, name)]
    flip = {"first": "second", "second": "first"}
    bad = [one.model_copy(update={"choice": flip[one.choice]}) for one in longer_is_better(known, "eve")]
    gold = {one.pair: one.preferred or "" for one in longer_is_better(known, "gold")[:4]}
    made = Snapshot.of(known, good + bad, gold=gold)
    assert made.document["statistics"]["gold_agreement"] == {"ada": 1.0, "ben": 1.0, "eve": 0.0}
    assert len(made.preferences()) == 9
    with pytest.raises(DataError, match="SNAPSHOT_EMPTY"):
        Snapshot.of(known, good + bad, filters=Filters(disagreement="unanimous"))
    strict = Snapshot.of(known, good + bad, gold=gold, filters=Filters(disagreement="unanimous", least_gold=0.5))
    assert len(strict.preferences()) == 9 and strict.document["statistics"]["kept"] == 18
    alpha = krippendorff_alpha(good + bad)
    assert alpha is not None and alpha < 0.5
    assert krippendorff_alpha(longer_is_better(known, "ada")) is None


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_preferences_go_out_and_come_back_in_trls_formats(tmp_path: Path, ending: str) -> None:
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs(4)]
    chat = [{"role": "assistant", "content": "so"}]
    talked = [{"prompt": "why?", "chosen": chat, "rejected": [{"role": "assistant", "content": "no"}]}]
    made = Snapshot.imported(rows + (talked if ending == ".jsonl" else []))
    export(made.preferences(), tmp_path / f"pairs{ending}")
    assert Snapshot.imported(load_rows(tmp_path / f"pairs{ending}")).sha256 == made.sha256
    assert [row["label"] for row in made.unpaired()[:2]] == [True, False]
    with pytest.raises(DataError, match="are written as"):
        export(rows, tmp_path / "pairs.txt")


BAD: dict[str, tuple[Any, str]] = {
    "no candidates": (lambda: check_candidates([]), "no candidates"),
    "identical": (lambda: check_candidates([*candidates(), candidates()[0].model_copy(update={"seed": 1})]),
                  "CANDIDATES_IDENTICAL"),
    "empty": (lambda: Snapshot.of(candidates(), []), "SNAPSHOT_EMPTY"),
    "one-sided": (lambda: Snapshot.of(candidates(8), [one.model_copy(update={"choice": "first"})
                  for one in longer_is_better(candidates(8), "ada")]), "SNAPSHOT_ONE_SIDED"),
    "replayed": (lambda: standing(longer_is_better(candidates(), "ada") * 2), "RATING_REPLAYED"),
    "stranger": (lambda: check_annotators(longer_is_better(candidates(), "eve"), ["ada"]), "ANNOTATOR_UNKNOWN"),
    "of other candidates": (lambda: Snapshot.of(candidates(1), longer_is_better(candidates(), "ada")), "no file of"),
    "chosen is rejected": (lambda: Snapshot.imported([{"prompt": "a", "chosen": "b", "rejected": "b"}]), "the same"),
    "no rejected": (lambda: Snapshot.imported([{"prompt": "a", "chosen": "b"}]), "has no 'rejected'"),
    "leak": (lambda: gate.check_no_leak(["Why  so?", "b"], ["why so?"]), "PROMPTS_LEAK: 1 of 1"),
    "too few": (lambda: central_reward.fit(np.ones((5, 3))), "too few"),
    "all equal": (lambda: best_of_n.pairs([[(1.0, Completion("a", "b", False)), (1.0, Completion("a", "c", False))]]),
                  "REWARDS_EQUAL"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_nothing_can_be_learned_from_is_named(case: str) -> None:
    act, said = BAD[case]
    with pytest.raises(DataError, match=said):
        act()


def test_private_prompts_are_refused_for_what_is_called_post_processing() -> None:
    best_of_n.check_public("public")
    with pytest.raises(PolicyRefusal, match="federated DPO"):
        best_of_n.check_public("private")


def test_pairs_go_from_the_outside_of_a_ranking_to_its_middle() -> None:
    group = [(float(5 - n), Completion("p", f"answer {n}", False)) for n in range(5)]
    found = [(one.chosen[-1], one.rejected[-1], one.margin) for one in best_of_n.pairs([group], each=3)]
    assert found == [("0", "4", 4.0), ("1", "3", 2.0)], "the middle one is no pair by itself"
    assert [one.margin for one in best_of_n.pairs([group, group], each=2)] == [4.0, 4.0, 2.0, 2.0]


def test_rules_are_names_with_arguments() -> None:
    rules = (Rule(name="regular_expression", argument="[0-9]+"), Rule(name="length", argument="4", weight=0.5))
    assert rules_reward(rules)(["", ""], ["1234", "ab"]) == [1.0, -0.25]
    for rule in (Rule(name="regular_expression", argument="(a+)+$"), Rule(name="regular_expression", argument="("),
                 Rule(name="length", argument="-1")):  # fmt: skip
        with pytest.raises(SpecificationError):
            rules_reward((rule,))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=120))
def test_any_file_is_read_or_refused_by_name(data: bytes) -> None:
    path = Path(FOLDER) / "any"
    path.write_bytes(data)
    for act in (
        lambda: read_lines(path, Candidate), lambda: read_lines(path, Comparison), lambda: Snapshot.read(path),
        lambda: load_rows(path), lambda: prompt_set(path),
    ):  # fmt: skip
        try:
            act()
        except ConfideError:
            continue


FOLDER = ""


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = str(tmp_path_factory.mktemp("any"))


def test_the_central_head_is_the_convex_minimum_and_reports_its_bias() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(size=6)
    x = rng.normal(size=(800, 6))
    sign = np.where(rng.random(800) < 1 / (1 + np.exp(-x @ true)), 1.0, -1.0)
    differences = x * sign[:, None]
    weight, report = central_reward.fit(differences, longer_N=list(range(-400, 400)), organizations=["a", "b"] * 400)
    probability = 1 / (1 + np.exp(differences @ weight))
    assert np.linalg.norm(-(differences.T @ probability) / 800 + 1e-3 * weight) < 1e-8
    assert report.interval[0] < report.accuracy < report.interval[1] and report.held_out == 160
    assert report.calibration_error < 0.12 and report.shorter_chosen is not None
    assert report.worst is not None and set(report.organizations) == {"a", "b"}
    assert abs(np.corrcoef(weight, true)[0, 1]) > 0.97


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def test_a_reward_model_of_another_base_is_refused(bert: Path, tmp_path: Path) -> None:
    weight, base = np.linspace(-1, 1, 32), folder_digest(bert)
    write_reward(tmp_path, weight, base_sha256=base, pooling="mean", max_length=32, lineage={})
    model = RewardModel(tmp_path, bert, base)
    scores = model.scores(["", "how?"], ["a fine wall", "a fine wall"])
    assert scores.shape == (2,) and scores[0] != scores[1]
    write_reward(
        tmp_path / "alone", weight, base_sha256=base, pooling="mean", max_length=32, lineage={}, reads_prompts=False
    )
    alone = RewardModel(tmp_path / "alone", bert, base).scores(["", "how?"], ["a fine wall", "a fine wall"])
    assert alone[0] == alone[1] == pytest.approx(scores[0], rel=1e-5)  # another batch shape, another order of sums
    with pytest.raises(ModelError, match="REWARD_OF_ANOTHER_BASE"):
        RewardModel(tmp_path, bert, "1" * 64)
    with pytest.raises(ModelError, match="NaN"):
        write_reward(tmp_path / "b", np.full(32, np.nan), base_sha256=base, pooling="mean", max_length=32, lineage={})
    with pytest.raises(ModelError, match="no reward model"):
        RewardModel(tmp_path / "nothing", bert, base)
    model.weight[:] = np.inf
    with pytest.raises(ModelError, match="REWARD_NOT_FINITE"):
        model.scores([""], ["a"])


class Fixed:
    """A judge and a model from tables."""

    def __init__(self, better: str = "good", log_p: float = -1.0) -> None:
        self.better, self.log_p = better, log_p

    def prefers(self, prompts: Any, first: Any, second: Any) -> Any:
        value = {(True, False): 1.0, (False, True): 0.0}
        return np.array(
            [value.get((self.better in a, self.better in b), 0.5) for a, b in zip(first, second, strict=True)]
        )

    def log_probabilities(self, prompts: Any, answers: Any) -> Any:
        return np.full(len(answers), self.log_p)


def measured(good: int, *, count: int = 40, kl: float = 1.0, **named: Any) -> gate.Figures:
    asked = [f"prompt {n}" for n in range(count)]
    ours = [["good answer"] if n < good else ["bad answer"] for n in range(count)]
    theirs = [["good answer"] if n >= good else ["bad answer"] for n in range(count)]
    return gate.measure(Fixed(log_p=-1.0), Fixed(log_p=-1.0 - kl), Fixed(), asked, (ours, theirs), **named)


def test_the_gate_passes_only_what_it_can_tell() -> None:
    won, unsure = measured(34), measured(23)
    assert won.win_rate == pytest.approx(34 / 40) and won.interval[0] > 0.7 and won.kl == pytest.approx(1.0)
    assert gate.decide(won, gate.Thresholds()).passed
    verdict = gate.decide(unsure, gate.Thresholds())
    assert unsure.win_rate > 0.5 and not verdict.passed and "lower end is not above" in verdict.failed[0]
    assert len(verdict.unknown) == 3


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"kl": 30.0}, "nats an answer"),
        ({"organizations": ["a"] * 20 + ["b"] * 20}, "at b"),
        ({"general": ["one two"], "tokens": lambda text: 1, "kl": -3.0}, "perplexity"),
    ],
)
def test_each_threshold_stops_a_candidate(named: dict[str, Any], said: str) -> None:
    verdict = gate.decide(measured(24, **named), gate.Thresholds(win_rate=0.1))
    assert not verdict.passed and said in " ".join(verdict.failed)


def test_the_same_answers_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="CANDIDATES_IDENTICAL"):
        gate.measure(Fixed(), Fixed(), Fixed(), ["a"], ([["b"]], [["b"]]))


def test_evidence_is_signed_and_its_page_escapes_everything() -> None:
    figures, key = measured(34), SigningKey.generate()
    verdict = gate.decide(figures, gate.Thresholds())
    evidence = gate.evidence_of(
        figures, gate.Thresholds(), verdict, lineage={"base": "<script>alert(1)</script>"}, made_at=1.0
    )
    data = gate.sign_evidence(evidence, key)
    assert gate.open_evidence(data, key.public)["passed"] is True
    with pytest.raises(IdentityError):
        gate.open_evidence(data.replace(b'"passed":true', b'"passed":false'), key.public)
    html = page.render(evidence)
    assert "<script" not in html and "NOT SIGNED" in html and "passed" in html


def test_a_policy_samples_the_same_for_the_same_seed_and_knows_how_likely_it_was(llama: Path) -> None:
    import torch

    policy = Policy(llama)
    sampling = Sampling(max_new_tokens=5, seed=3)
    one, other = (policy.sample(["why?", "how?"], count=2, sampling=sampling) for _ in range(2))
    assert one == other and [len(group) for group in one] == [2, 2]
    found = float(policy.log_probabilities(["why?"], ["because"])[0])
    answer = policy._encoder.answer([{"role": "user", "content": "why?"}], "because")
    ids = torch.tensor(answer.ids[None], dtype=torch.int64)
    with torch.no_grad():
        log_p = torch.log_softmax(policy.model(input_ids=ids).logits[0].double(), dim=-1)
    expected = sum(float(log_p[t - 1, ids[0, t]]) for t in range(answer.start, ids.shape[1]))
    assert found == pytest.approx(expected, rel=1e-5)


def test_commands_from_candidates_to_a_reward_model(llama: Path, bert: Path, tmp_path: Path) -> None:
    run = CliRunner()
    asked = tmp_path / "prompts.txt"
    asked.write_text("".join(f"How is wall {number}?\n" for number in range(4)))
    out = tmp_path / "candidates.jsonl"
    arguments = [
        "candidates",
        str(asked),
        "--base",
        str(llama),
        "--out",
        str(out),
        "--count",
        "4",
        "--max-new-tokens",
        "6",
    ]
    assert run.invoke(app, arguments, catch_exceptions=False).exit_code == 0
    first = out.read_bytes()
    assert run.invoke(app, arguments, catch_exceptions=False).exit_code == 0 and out.read_bytes() == first
    keys = "".join(key + "\n" for key in itertools.islice(itertools.cycle("12u2t1"), 60)) + "q\n"
    judged = run.invoke(app, ["annotate", str(out), "--annotator", "ada"], input=keys, catch_exceptions=False)
    assert "pairs judged" in judged.output
    ratings = str(tmp_path / "ratings-ada.jsonl")
    frozen = run.invoke(
        app, ["snapshot", ratings, "--candidates", str(out), "--out", str(tmp_path / "s")], catch_exceptions=False
    )
    path = frozen.output.strip().splitlines()[-1]
    exported = tmp_path / "kto.jsonl"
    assert run.invoke(app, ["export", path, "--to", str(exported), "--unpaired"]).exit_code == 0
    assert {"prompt", "completion", "label"} == set(json.loads(exported.read_text().splitlines()[0]))
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in pairs(40)))
    imported = run.invoke(
        app, ["snapshot", str(rows), "--import", "--out", str(tmp_path / "s")], catch_exceptions=False
    )
    snapshot = imported.output.strip().splitlines()[-1]
    reward = tmp_path / "reward"
    told = run.invoke(app, ["reward", snapshot, "--base", str(bert), "--out", str(reward)], catch_exceptions=False)
    assert "accuracy" in told.output and (reward / "reliability.png").exists()
    assert json.loads((reward / "reward.json").read_bytes())["reads_prompts"] is True
    # The same preferences as conversations are the same head; and without prompts one that reads none.
    head = (reward / "reward_head.safetensors").read_bytes()
    turns = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
        }
        for row in pairs(40)
    ]
    for kept, reads in ((turns, True), ([{k: row[k] for k in ("chosen", "rejected")} for row in pairs(40)], False)):
        rows.write_text("".join(json.dumps(row) + "\n" for row in kept))
        snap = run.invoke(app, ["snapshot", str(rows), "--import", "--out", str(tmp_path / "s")]).output.split()[-1]
        there = tmp_path / f"reward-{reads}"
        run.invoke(app, ["reward", snap, "--base", str(bert), "--out", str(there)], catch_exceptions=False)
        assert ((there / "reward_head.safetensors").read_bytes() == head) is reads
        assert json.loads((there / "reward.json").read_bytes())["reads_prompts"] is reads
    append_line(tmp_path / "more.jsonl", candidates()[0])
    assert json.loads((reward / "reward.json").read_bytes())["lineage"]["snapshot"] == Path(snapshot).stem


# --- disagreements


def judged(pair: tuple[str, str], annotator: str, better: str | None) -> Comparison:
    choice = "tie" if better is None else "first" if better == pair[0] else "second"
    return Comparison(first=pair[0], second=pair[1], choice=choice, annotator=annotator)  # type: ignore[arg-type]


def test_disagreements_are_decided_by_somebody_else_and_nothing_else_is() -> None:
    known = candidates(prompts=2, answers=2)
    (a, b), (c, d) = ((one.id, other.id) for one, other in pairs_of(known))
    made = [judged((a, b), "ada", a), judged((a, b), "bob", b), judged((c, d), "ada", c), judged((c, d), "bob", c)]
    plain = Snapshot.of(known, made)
    assert (plain.document["statistics"]["pairs"], plain.document["statistics"]["undecided"]) == (1, 1)
    settled = Snapshot.of(known, made, adjudicated=[judged((a, b), "eve", b)])
    statistics = settled.document["statistics"]
    assert (statistics["pairs"], statistics["undecided"], statistics["adjudicated"]) == (2, 0, 1)
    assert settled.sha256 != plain.sha256 and settled.document["adjudicated"][0]["annotator"] == "eve"
    texts = {one.id: one.text for one in known}
    assert {"prompt": "prompt 0", "chosen": texts[b], "rejected": texts[a]} in settled.preferences() or {
        "prompt": "prompt 1", "chosen": texts[b], "rejected": texts[a],
    } in settled.preferences()  # fmt: skip
    still = Snapshot.of(known, made, adjudicated=[judged((a, b), "eve", None)])
    assert still.document["statistics"]["undecided"] == 1
    for wrong, named in (
        ([judged((a, b), "ada", a)], "ADJUDICATOR_JUDGED"),
        ([judged((c, d), "eve", d)], "NOTHING_TO_ADJUDICATE"),
        ([judged((a, b), "eve", a), judged((a, b), "kim", b)], "ADJUDICATED_TWICE"),
        ([judged((a, b), "eve", a), judged((a, b), "eve", b)], "RATING_REPLAYED"),
    ):
        with pytest.raises(DataError, match=named):
            Snapshot.of(known, made, adjudicated=wrong)


def test_how_far_each_annotator_agrees_with_the_others() -> None:
    known = candidates(prompts=3, answers=2)
    pairs_known = [(one.id, other.id) for one, other in pairs_of(known)]
    made = [judged(pair, name, pair[0]) for pair in pairs_known for name in ("ada", "bob")]
    made += [judged(pair, "kim", pair[number % 2]) for number, pair in enumerate(pairs_known)]
    found = Snapshot.of(known, made).document["statistics"]["agreement_with_others"]
    assert found["kim"] == pytest.approx(2 / 3)
    assert found["ada"] == found["bob"] == 1.0, "where kim differs, the two others are of two minds: it says nothing"


def test_adjudicating_in_the_terminal(tmp_path: Path) -> None:
    run, known = CliRunner(), candidates(prompts=2, answers=2)
    file = tmp_path / "candidates.jsonl"
    for one in known:
        append_line(file, one)
    for number, (one, other) in enumerate(pairs_of(known)):
        append_line(tmp_path / "ratings-ada.jsonl", judged((one.id, other.id), "ada", one.id))
        append_line(tmp_path / "ratings-bob.jsonl", judged((one.id, other.id), "bob", (one, other)[number].id))
    ratings = [str(tmp_path / f"ratings-{name}.jsonl") for name in ("ada", "bob")]
    asked = ["adjudicate", str(file), *ratings, "--annotator"]
    with pytest.raises(DataError, match="ADJUDICATOR_JUDGED"):
        run.invoke(app, [*asked, "ada"], catch_exceptions=False)
    told = run.invoke(app, [*asked, "eve"], input="1\n", catch_exceptions=False)
    assert told.exit_code == 0 and "1 pairs were left open" in told.output and "1 of 1 pairs judged" in told.output
    frozen = run.invoke(
        app,
        ["snapshot", *ratings, "--candidates", str(file), "--adjudicated", str(tmp_path / "adjudicated-eve.jsonl"),
         "--out", str(tmp_path / "snapshots")],
        catch_exceptions=False,
    )  # fmt: skip
    assert frozen.exit_code == 0 and '"adjudicated": 1' in frozen.output


def test_whose_preferences_and_prompts_are(tmp_path: Path) -> None:
    rows = [{"chosen": f"good {n}", "rejected": f"bad {n}", "organization": "ab"[n % 2]} for n in range(4)]
    made = Snapshot.imported(rows)
    assert made.organizations == ["a", "b", "a", "b"] and "organization" not in made.preferences()[0]
    assert Snapshot.imported([*rows, {"chosen": "x", "rejected": "y"}]).organizations == []
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert gate.whose(names, ["p", "q"]) == ["a", "b"] and gate.whose(None, ["p"]) == []
    with pytest.raises(DataError, match="names 2 organizations for 1"):
        gate.whose(names, ["p"])
