"""The whole demo's own pieces: one policy for several runs, what may be let out, and the lineage page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confide.identity.keys import SigningKey
from confide_client.policy.policy import parse_policy
from confide_simulations.demo import job as tuning_job
from confide_simulations.local_federation import policy_text
from confide_simulations.whole import aligned, federated, page
from confide_simulations.whole.lineage import Lineage, Step

from tests.inquiry_worlds import InquiryWorld

PRIVACY = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-5\nclip = 1.0\n'


def test_one_policy_allows_both_runs_and_no_third() -> None:
    tuning = tuning_job.specification(
        sha256="1" * 64, name="x", dtype="float32", layers=4, rounds=2, nodes=4, sealing="sealed", privacy=PRIVACY
    )
    reward = federated.reward("2" * 64, 4)
    texts = [policy_text(one, root_public="0" * 64, data=one.federation.data) for one in (tuning, reward)]
    policy = parse_policy(federated._together(texts))
    policy.check(tuning, group="shard")
    policy.check(reward, group="preferences")
    assert policy.min_cohort == min(tuning.federation.min_cohort, reward.federation.min_cohort)
    assert set(policy.budgets) == {"shard", "preferences"} and policy.retrieval is None


def let_out(world: InquiryWorld, folder: Path, *, passed: bool) -> tuple[aligned.LetOut, Path, Path]:
    """(what is let out, the released adapter, the aligned one)."""
    folders = []
    for name in ("released", "policy"):
        made = folder / name
        made.mkdir()
        (made / "adapter_config.json").write_text("{}")
        (made / "adapter_model.safetensors").write_bytes(name.encode())
        folders.append(made)
    policy: Any = SimpleNamespace(verdict=SimpleNamespace(passed=passed), evidence=b"evidence", adapter=folders[1])
    admin: Any = SimpleNamespace(
        name="administrator", identity=world.administrator, roster=SimpleNamespace(current=world.roster)
    )
    return aligned.let_out(policy, folders[0], admin, "support"), folders[0], folders[1]


def test_what_did_not_pass_the_gate_is_not_let_out(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = InquiryWorld(tmp_path / "world")
    found, released, _ = let_out(world, tmp_path, passed=False)
    assert found.folder == released and not found.aligned and not found.signature
    world.close()


def test_what_passed_is_released_by_an_administrators_signature(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = InquiryWorld(tmp_path / "world")
    found, _, policy = let_out(world, tmp_path, passed=True)
    assert found.folder == policy and found.aligned and found.sha256.encode() in found.document
    world.administrator = SigningKey.generate()  # of whom the roster knows nothing
    (tmp_path / "other").mkdir()
    with pytest.raises(Exception, match="does not verify"):
        let_out(world, tmp_path / "other", passed=True)
    world.close()


def lineage(**changes: Any) -> Lineage:
    rows = [
        [Step("base", "base", "A base", [("sha-256", "0" * 24)])],
        [Step("answer", "answer", "An <answer>", [("citation 1", "<script>alert(1)</script>")], ["base"], good=False)],
    ]
    said = {"rows": rows, "ledgers": [{"organization": "clinic", "epsilon": "8"}], "question": "Who & why?", "base": "",
            "answer": "<b>", "quoted": '"A visit costs forty crowns." [1]'}  # fmt: skip
    return Lineage(**{**said, **changes})


def test_the_page_escapes_everything_and_runs_nothing() -> None:
    text = page.render(lineage())
    assert "<script" not in text and "&lt;script&gt;" in text and "Who &amp; why?" in text
    assert "http" not in text and 'class="step bad"' in text and "made from base" in text


def test_a_step_that_is_made_from_nothing_above_it_is_a_mistake() -> None:
    rows = [[Step("answer", "answer", "An answer", [], ["base"])]]
    with pytest.raises(ValueError, match="made from base, which is not above it"):
        page.render(lineage(rows=rows))
