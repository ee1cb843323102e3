"""A node knows how fast it is before it accepts: measured once, remembered; what is too slow is refused by name."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confide.runs.deadline import Speed
from confide.runs.specification import Specification
from confide_client.runs.records import Record
from confide_client.runs.speed import MOST_KEPT, Speeds, shape_of
from confide_client.state import Settings

from tests.node_bench import Bench, ShardTrainer, allow, kinds, make_store, open_bench
from tests.training_specs import specification


@dataclass
class TimedTrainer(ShardTrainer):
    """Says how fast it is, when it may."""

    step_s: float = 10.0
    evaluation_s: float = 0.0
    measured: int = 0
    may: threading.Event = field(default_factory=threading.Event)

    def measure(self) -> Speed:
        assert self.may.wait(60)
        self.measured += 1
        return Speed(step_s=self.step_s, evaluation_s=self.evaluation_s)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def bench(tmp_path: Path, store: tuple[Path, str]) -> Iterator[Bench]:
    with open_bench(tmp_path, store) as made:
        yield with_trainer(made, TimedTrainer())


def with_trainer(bench: Bench, trainer: TimedTrainer) -> Bench:
    trainer.may.set()
    bench.trainer = trainer
    object.__setattr__(bench.node, "make_trainer", lambda *_, **__: trainer)
    return bench


def asked(bench: Bench, **federation: Any) -> None:
    """The run of the bench, with other deadlines."""
    changed = bench.spec.federation.model_copy(update=federation)
    bench.spec = bench.spec.model_copy(update={"federation": changed})


def status(bench: Bench) -> str:
    record = Record.load(bench.node.state.run(bench.run.run_id))
    return record.status if record else ""


def test_it_says_how_long_a_round_takes_it_measured_once(bench: Bench) -> None:
    bench.trainer.evaluation_s = 0.5
    answer = bench.offer()
    # Three steps, and a quarter of eight records for evaluation.
    assert answer.accepted and answer.round_s == 3 * 10.0 + 2 * 0.5
    assert bench.again().offer().round_s == answer.round_s
    assert bench.trainer.measured == 1
    assert (bench.node.state.speeds).stat().st_mode & 0o777 == 0o600


def test_it_refuses_by_name_what_it_cannot_do_and_names_what_would(bench: Bench) -> None:
    asked(bench, step_deadline_s=20.0)
    answer = bench.offer()
    assert not answer.accepted and not answer.waiting and answer.round_s == 0
    assert answer.reason.startswith("TOO_SLOW: a round takes this node about 30 s")
    assert "federation.step_deadline_s = 50 would do" in answer.reason
    assert status(bench) == "refused" and bench.runtime.open_runs == 0
    (refused,) = [event for event in bench.events() if event["event"] == "offer refused"]
    assert refused["code"] == "TOO_SLOW"


def test_while_it_measures_it_is_offered_the_run_again(bench: Bench) -> None:
    bench.trainer.may.clear()
    asked(bench, exchange_deadline_s=0.3)
    answer = bench.offer()
    assert not answer.accepted and answer.waiting and answer.preparing
    assert status(bench) == "preparing" and bench.runtime.open_runs == 1
    assert bench.node.progress.now() is not None
    bench.trainer.may.set()
    answer = bench.settled_offer()
    assert answer.accepted and answer.round_s == 30.0
    assert bench.trainer.measured == 1


def test_a_run_that_ends_while_it_is_measured_is_let_go(bench: Bench) -> None:
    bench.trainer.may.clear()
    asked(bench, exchange_deadline_s=0.3)
    assert bench.offer().preparing
    bench.end()
    assert status(bench) == "ended" and bench.runtime.open_runs == 0
    bench.trainer.may.set()


def test_what_is_not_allowed_is_refused_before_anything_is_measured(bench: Bench) -> None:
    bench.policy('methods = ["sft"', 'methods = ["causal_lm"')
    assert not bench.offer().accepted
    assert bench.trainer.measured == 0


def test_a_trainer_that_cannot_tell_is_no_reason_to_refuse(tmp_path: Path, store: tuple[Path, str]) -> None:
    with open_bench(tmp_path, store) as made:
        asked(made, step_deadline_s=0.001)
        answer = made.offer()
        assert answer.accepted and answer.round_s == 0


def test_a_measurement_that_fails_is_no_reason_not_to_train(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Speed:
        raise RuntimeError("no kernel")

    bench.trainer.measure = fails
    answer = bench.offer()
    assert answer.accepted and answer.round_s == 0
    assert "could not be measured" in caplog.text
    assert bench.train()[1]


def test_a_private_run_sets_nothing_aside_when_it_is_too_slow_and_tells_nothing_of_the_data(
    tmp_path: Path, store: tuple[Path, str]
) -> None:
    private = {"unit": "record", "epsilon": 4.0, "delta": 1e-3, "clip": 1.0}
    with open_bench(tmp_path, store, records=40, privacy=private) as made:
        bench = with_trainer(made, TimedTrainer(evaluation_s=100.0, metrics={}))
        allow(bench)
        object.__setattr__(bench.node, "check_allowed", lambda specification: None)
        asked(bench, step_deadline_s=20.0)
        assert "about 30 s" in bench.offer().reason, "the evaluation records do not count"
        assert kinds(bench) == []


# --- what is remembered


def changed(spec: Specification, section: str, **fields: Any) -> Specification:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=fields)})


def test_a_figure_is_found_again_for_the_same_shape_of_step_only(tmp_path: Path) -> None:
    spec, settings, speeds = specification(), Settings(threads=2), Speeds(tmp_path / "speed.json")
    speed = Speed(step_s=1.5, evaluation_s=0.25)
    speeds.keep(spec, settings, speed)
    assert speeds.find(spec, settings) == speed
    for same in (changed(spec, "training", learning_rate=0.5, local_steps=9), changed(spec, "federation", rounds=7)):
        assert speeds.find(same, settings) == speed
    for other in (changed(spec, "training", batch_size=5), changed(spec, "method", max_length=65),
                  changed(spec, "adapter", first_layer=1), changed(spec, "training", local_steps=0)):  # fmt: skip
        assert speeds.find(other, settings) is None
    assert speeds.find(spec, Settings(threads=1)) is None
    assert speeds.find(spec, Settings(threads=2, models="/elsewhere")) == speed


def test_another_processor_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    before = shape_of(specification(), Settings())
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert shape_of(specification(), Settings()) != before


def test_the_oldest_figures_go_and_a_damaged_file_is_no_error(tmp_path: Path) -> None:
    speeds, settings = Speeds(tmp_path / "speed.json"), Settings()
    shapes = [changed(specification(), "method", max_length=64 + number) for number in range(MOST_KEPT + 3)]
    for number, spec in enumerate(shapes):
        speeds.keep(spec, settings, Speed(step_s=number + 1.0, evaluation_s=0.0))
    assert [speeds.find(spec, settings) is None for spec in shapes[:4]] == [True, True, True, False]
    (tmp_path / "speed.json").write_bytes(b"{")
    assert speeds.find(shapes[-1], settings) is None
    speeds.keep(shapes[-1], settings, Speed(step_s=1.0, evaluation_s=0.0))
    assert speeds.find(shapes[-1], settings) == Speed(step_s=1.0, evaluation_s=0.0)
