"""The one module that imports TRL, with the real TRL: named stops, a reference that stays, no texts in its log."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytest
from confide import canonical
from confide.errors import SpecificationError, StateError, TrainingError
from confide_server.rlhf import commands
from confide_server.rlhf.training.documents import EXAMPLE, RlhfSpecification, parse_toml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.preferences import pairs
from tests.tiny_models import tiny_llama

pytest.importorskip("trl")
# Not by importorskip: of a module of our own that is not there nothing may be skipped.
from confide_server.rlhf.training import trl_adapter

pytestmark = pytest.mark.filterwarnings("default")


def specify(kind: str = "dpo", **sections: Any) -> RlhfSpecification:
    ranked = kind in ("dpo", "kto")
    document: dict[str, Any] = {
        "version": 1, "name": "test", "method": kind, "base": {"sha256": "0" * 64},
        "data": {"snapshot": "1" * 64} if ranked else {"prompts": "1" * 64},
        "reward": {"kind": "none"} if ranked else {"kind": "rules", "rules": [{"name": "length", "argument": "9"}]},
        "training": {"steps": 2, "batch_size": 4, "generations": 2, "learning_rate": 1e-2, "rank": 4,
                     "max_new_tokens": 4, "save_steps": 1, "max_prompt_tokens": 64, **sections.pop("training", {})},
    }  # fmt: skip
    return RlhfSpecification.model_validate_json(canonical.encode(document | sections))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def preference_records(count: int = 8) -> list[dict[str, Any]]:
    return [{name: record[name] for name in ("prompt", "chosen", "rejected")} for record in pairs(count)]


def prompts(count: int = 4) -> list[dict[str, Any]]:
    return [{"prompt": f"How is wall {number}?"} for number in range(count)]


def test_dpo_trains_an_adapter_and_goes_on_from_its_checkpoint(base: Path, tmp_path: Path) -> None:
    run = specify()
    first = trl_adapter.train(run, base=base, folder=tmp_path, records=preference_records())
    assert (first.steps, first.stopped) == (2, None)
    assert (first.adapter / "adapter_model.safetensors").exists()
    assert any("loss" in line for line in first.history)
    longer = specify(training={"steps": 3})
    again = trl_adapter.train(longer, base=base, folder=tmp_path, records=preference_records())
    assert again.steps == 3 and sum("loss" in line for line in again.history) == 1, "two steps were not done again"


@pytest.mark.parametrize("save_steps", [1, 50])
def test_a_run_that_is_done_stays_as_it_is(base: Path, tmp_path: Path, save_steps: int) -> None:
    def again(folder: Path, adapter: Path | None = None) -> tuple[int, bytes, int]:
        run = specify(training={"save_steps": save_steps})
        made = trl_adapter.train(run, base=base, folder=folder, records=preference_records(), adapter=adapter)
        weights = (made.adapter / "adapter_model.safetensors").read_bytes()
        return made.steps, weights, sum("loss" in line for line in made.history)

    first = again(tmp_path / "run")
    assert first[0] == first[2] == 2
    assert again(tmp_path / "run") == first
    # Also one that started from an adapter, which is its reference.
    further = again(tmp_path / "further", tmp_path / "run" / "adapter")
    assert further[1] != first[1] and again(tmp_path / "further", tmp_path / "run" / "adapter") == further


def test_a_policy_of_nan_is_not_kept(base: Path, tmp_path: Path) -> None:
    run = specify(training={"learning_rate": 1e38})
    with pytest.raises(TrainingError, match="POLICY_NOT_FINITE"):
        trl_adapter.train(run, base=base, folder=tmp_path, records=preference_records())
    assert not (tmp_path / "adapter").exists()


def test_a_checkpoint_that_was_cut_off_is_not_the_newest(tmp_path: Path) -> None:
    for step, state in ((2, b"{}"), (9, b'{"global_st'), (10, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_bytes(state)
    assert trl_adapter._newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    with (
        commands._alone(tmp_path),
        pytest.raises(StateError, match="another process trains into"),
        commands._alone(tmp_path),
    ):
        pass
    with commands._alone(tmp_path):
        pass


def test_trl_says_nothing_by_itself(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither its metrics as they come nor bars: `say` is told, and who calls decides what is shown."""
    said: list[Any] = []
    trl_adapter.train(specify(), base=base, folder=tmp_path, records=preference_records(), say=said.append)
    shown = capfd.readouterr()
    assert said and "loss" not in shown.out + shown.err and "it/s" not in shown.err


def test_a_run_from_an_adapter_is_measured_against_that_adapter(base: Path, tmp_path: Path) -> None:
    started = trl_adapter.train(specify(), base=base, folder=tmp_path / "a", records=preference_records())
    went_on = trl_adapter.train(
        specify(), base=base, folder=tmp_path / "b", records=preference_records(), adapter=started.adapter
    )
    first = next(line for line in went_on.history if "rewards/margins" in line)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5), "policy and reference begin as one"


def test_a_reference_that_drifts_is_found(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = trl_adapter.train(specify(), base=base, folder=tmp_path / "a", records=preference_records())
    import trl

    honest = trl.DPOTrainer.training_step

    def drifting(self: Any, model: Any, *rest: Any, **named: Any) -> Any:
        for name, parameter in self.model.named_parameters():
            if ".ref." in name:
                parameter.data.add_(1e-3)
        return honest(self, model, *rest, **named)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", drifting)
    with pytest.raises(TrainingError, match="REFERENCE_DRIFTED"):
        trl_adapter.train(
            specify(), base=base, folder=tmp_path / "b", records=preference_records(), adapter=started.adapter
        )


def test_kto_learns_from_unpaired_labels(base: Path, tmp_path: Path) -> None:
    records = [
        {"prompt": record["prompt"], "completion": record[side], "label": side == "chosen"}
        for record in preference_records(4)
        for side in ("chosen", "rejected")
    ]
    trained = trl_adapter.train(specify("kto"), base=base, folder=tmp_path, records=records)
    assert trained.steps == 2 and trained.stopped is None


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_group_methods_go_by_the_reward(base: Path, tmp_path: Path, method: str) -> None:
    seen: list[int] = []

    def reward(asked: Any, answers: Any) -> list[float]:
        seen.append(len(answers))
        return [float(number % 2) for number, _ in enumerate(answers)]

    run = specify(method, limits={"clipped_share": 1.0, "kl": 1e6})
    trained = trl_adapter.train(run, base=base, folder=tmp_path, records=prompts(), reward=reward)
    assert seen and (trained.steps == 2 or trained.stopped is trl_adapter.StopReason.ALL_CLIPPED)


STOPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "REWARDS_EQUAL": (lambda asked, answers: [1.0] * len(answers), {"equal_batches": 1}),
    "REWARD_NOT_FINITE": (lambda asked, answers: [math.nan] * len(answers), {}),
    "REWARDS_LATE": (lambda asked, answers: time.sleep(2) or [0.0] * len(answers), {"reward_deadline_s": 0.05}),
    "KL_LIMIT": (lambda asked, answers: [float(n % 2) for n in range(len(answers))], {"kl": 1e-12}),
}


@pytest.mark.parametrize("reason", STOPS)
def test_a_run_stops_with_its_reason(base: Path, tmp_path: Path, reason: str) -> None:
    reward, limits = STOPS[reason]
    run = specify("grpo", training={"steps": 4, "learning_rate": 0.1}, limits={"clipped_share": 1.0, **limits})
    trained = trl_adapter.train(run, base=base, folder=tmp_path, records=prompts(), reward=reward)
    # A tiny model of noise never ends a sentence: what is cut off may be seen before the policy has moved.
    allowed = {reason, "ALL_CLIPPED"} if reason == "KL_LIMIT" else {reason}
    assert (
        trained.stopped is not None and trained.stopped.value in allowed and trained.detail.startswith(trained.stopped)
    )


def test_answers_that_are_all_cut_off_stop_the_run(base: Path, tmp_path: Path) -> None:
    run = specify("grpo", training={"max_new_tokens": 1}, limits={"clipped_share": 0.5})
    trained = trl_adapter.train(
        run, base=base, folder=tmp_path, records=prompts(), reward=lambda asked, answers: list(range(len(answers)))
    )
    assert trained.stopped is trl_adapter.StopReason.ALL_CLIPPED and "max_new_tokens = 1" in trained.detail


@pytest.mark.parametrize("name", ["trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer"])
def test_texts_never_reach_the_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    trl_adapter.silence()
    logger = logging.getLogger(name)
    with caplog.at_level(logging.WARNING, logger=name):
        logger.warning("All reward functions returned None for the following kwargs:\n{'prompt': 'secret'}\n")
        logger.warning("something else")
    assert "secret" not in caplog.text and "something else" in caplog.text


def test_trl_still_writes_the_line_that_is_filtered() -> None:
    """When TRL words it anew, this fails first."""
    import inspect

    from trl.trainer import grpo_trainer, rloo_trainer

    for module in (grpo_trainer, rloo_trainer):
        assert "All reward functions returned None" in inspect.getsource(module)


def test_only_the_adapter_imports_trl() -> None:
    root = Path(__file__).resolve().parents[2]
    found = [
        path.name
        for folder in ("server", "client", "common", "simulations")
        for path in (root / folder).rglob("*.py")
        if any(line.strip().startswith(("import trl", "from trl")) for line in path.read_text().splitlines())
    ]
    assert found == ["trl_adapter.py"]


BAD = {
    "no snapshot": ("dpo", {"data": {}}, "learns from data.snapshot"),
    "a reward beside pairs": ("dpo", {"reward": {"kind": "model", "model": "2" * 64}}, "learns from data.snapshot"),
    "no reward": ("grpo", {"reward": {"kind": "none"}}, "needs data.prompts and a reward"),
    "a broken group": ("grpo", {"training": {"batch_size": 3}}, "does not divide"),
    "unknown loss": ("dpo", {"training": {"loss": "hinge"}}, "training.loss"),
    "unknown method": ("ppo", {"method": "ppo"}, "method"),
    "code as a rule": ("grpo", {"reward": {"kind": "rules", "rules": [{"name": "eval"}]}}, "reward.rules"),
}


@pytest.mark.parametrize("case", BAD)
def test_documents_that_mean_nothing_are_refused(case: str) -> None:
    method, sections, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        specify(method, **sections)


def test_a_document_has_one_hash() -> None:
    assert parse_toml(EXAMPLE).digest == parse_toml("# a comment\n" + EXAMPLE).digest
    with pytest.raises(SpecificationError, match=r"training.steps.*got '-1'"):
        parse_toml(EXAMPLE.replace("steps = 20", "steps = -1"))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_any_text_is_a_document_or_a_named_error(text: str) -> None:
    with pytest.raises(SpecificationError):
        parse_toml(text)
