"""Nodes on slow machines, as processes: they say so before they accept, while they train, and after a restart."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide_simulations.local_federation import LocalFederation, run_command
from confide_simulations.processes import ProcessGroup

from tests.integration.test_federation import specification_for, write_shards
from tests.tiny_models import tiny_llama

LOSS_S = 1.0
STEPS = {"local_steps": 8, "batch_size": 4, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalFederation, ProcessGroup]]:
    folder = tmp_path_factory.mktemp("slow")
    program = [str(Path(__file__).parent.parent / "slow_node.py")]
    made = LocalFederation(folder, nodes=write_shards(folder), base=tiny_llama(folder / "llama"), node_program=program)
    made.set_up()
    with ProcessGroup() as processes, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_TEST_LOSS_S", str(LOSS_S))
        made.start(processes)
        yield made, processes


def test_a_node_that_cannot_meet_the_deadline_refuses_by_name_and_says_which_would_do(
    federation: tuple[LocalFederation, ProcessGroup],
) -> None:
    made, _ = federation
    # Also the time that they have to load and to measure, on a busy machine.
    deadline = {"rounds": 1, "data": made.data, "step_deadline_s": 100.0}
    asked = specification_for(made, reproducible=False, training={**STEPS, "local_steps": 40}, federation=deadline)
    made.allow(asked)
    events = list(made.watch(made.submit(asked)))
    assert events[-1][0] == "run_failed" and events[-1][1]["code"] == "COHORT_TOO_SMALL"
    refused = [data["reason"] for kind, data in events if kind == "offer_answered" and not data["waiting"]]
    assert refused  # the run ends once too few are left: the others may not have answered by then
    pattern = r"TOO_SLOW: .* about (\d+) s, .* deadline is 100 s\. federation\.step_deadline_s = (\d+) would do"
    for reason in refused:
        found = re.search(pattern, reason)
        assert found is not None, reason
        measured_s, would_do_s = map(int, found.groups())
        assert measured_s >= 40 * 4 * LOSS_S and would_do_s >= 1.5 * measured_s
    said = [run_command("node", "status", str(made.node_folder(name)), "--json") for name in made.nodes]
    assert any("TOO_SLOW" in status for status in said)


def test_run_watch_shows_the_steps_of_nodes_and_a_killed_one_goes_on_where_it_was(
    federation: tuple[LocalFederation, ProcessGroup],
) -> None:
    made, processes = federation
    # The killed node has time to start again on a busy machine.
    patient = {"rounds": 1, "data": made.data, "exchange_deadline_s": 120.0, "deadline_factor": 50.0}
    asked = specification_for(made, reproducible=False, training=STEPS, federation=patient)
    made.allow(asked)
    run_id = made.submit(asked)
    killed, seen = False, []
    for kind, data in made.watch(run_id):
        if kind == "progress" and data["phase"] == "training":
            seen.append(data)
            if not killed and data["node"] == "bank-b" and data["step"] >= 2:
                killed = True
                processes.children["bank-b"].send_signal(signal.SIGKILL)
                processes.children.pop("bank-b").wait()
                made.start_node(processes, "bank-b")
        if kind == "run_finished":
            break
    assert killed and {data["steps"] for data in seen} == {8}
    assert {data["node"] for data in seen} == set(made.nodes)
    assert any(data["seconds_left"] > 0 for data in seen)
    printed = run_command("run", "watch", run_id, "--admin", str(made.admin_folder))
    assert "measured" in printed and "for a round" in printed
    assert re.search(r"goes on after step [2-7]", (made.folder / "bank-b.log").read_text())
    manifest, _ = made.checkpoint(run_id)
    (entry,) = manifest["rounds"]
    assert entry["contributors"] == sorted(made.nodes) and entry["attempts"] == 1
