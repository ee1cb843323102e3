"""approval = "auto" looks at the records first: what can teach nothing waits for a person."""

# ruff: noqa: F811 - bench and store are fixtures

import dataclasses
import threading

import pytest
from confide.errors import ModelError
from confide.runs.specification import Specification
from confide_client.data.fitness import Fitness
from confide_client.state import StateFolder

from tests.node_bench import Bench, bench, store  # noqa: F401


def fitness(unfit: int, records: int = 8) -> Fitness:
    return Fitness(records, unfit, {"the label is not among the run's": (unfit, "line 3")} if unfit else {})


def tried(bench: Bench, found: Fitness | Exception) -> Bench:
    """The bench's node, whose records are found to be so."""

    def tries(_: StateFolder, __: Specification) -> Fitness:
        if isinstance(found, Exception):
            raise found
        return found

    bench.runtime._node = dataclasses.replace(bench.node, tries=tries)
    return bench


def test_a_run_that_could_learn_nothing_here_waits_for_a_person_though_the_policy_says_auto(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    answer = tried(bench, fitness(8)).offer()
    assert (answer.accepted, answer.waiting) == (False, True)
    assert answer.reason == "the node's operator has not approved this run yet"
    assert "nothing can be learned from any of the 8 training records" in bench.record().reason
    for _ in range(2):
        assert bench.offer().waiting
    assert len([r for r in caplog.records if "first line 3: the label is not" in r.getMessage()]) == 1
    bench.decide("approved")
    assert bench.offer().accepted


def test_some_unfit_records_are_left_out_or_asked_about_as_the_policy_says(bench: Bench) -> None:
    with bench.node.state.policy.open("a") as file:
        file.write('unfit_records = "ask"\n')
    assert tried(bench, fitness(2)).offer().waiting
    bench.policy('unfit_records = "ask"', 'unfit_records = "skip"')
    assert bench.offer().accepted
    assert bench.record().reason == "nothing can be learned from 2 of 8 training records"


def test_records_that_fit_need_no_person(bench: Bench) -> None:
    assert tried(bench, fitness(0)).offer().accepted
    assert bench.record().reason == ""


def test_a_trial_that_fails_by_name_refuses(bench: Bench) -> None:
    answer = tried(bench, ModelError("the base has no head for labels; choose another")).offer()
    assert not answer.waiting and "no head for labels" in answer.reason


def test_a_trial_that_fails_for_no_known_reason_asks_a_person(bench: Bench) -> None:
    assert tried(bench, RuntimeError("secret")).offer().waiting
    assert "RuntimeError" in bench.record().reason and "secret" not in bench.record().reason


def test_an_offer_is_answered_while_the_records_are_tried(bench: Bench) -> None:
    go = threading.Event()

    def slow(_: StateFolder, __: Specification) -> Fitness:
        assert go.wait(60)
        return fitness(0)

    federation = bench.spec.federation.model_copy(update={"exchange_deadline_s": 0.3})
    bench.spec = bench.spec.model_copy(update={"federation": federation})
    bench.runtime._node = dataclasses.replace(bench.node, tries=slow)
    answer = bench.offer()
    assert (answer.accepted, answer.waiting, answer.preparing) == (False, True, True)
    go.set()
    assert bench.runtime._trials[bench.run.run_id].ended(60)
    assert bench.offer().accepted
