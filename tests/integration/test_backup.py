"""A coordinator's folder is copied while it runs, lost, and its copy goes on elsewhere, as docs/deployment.md says.

The nodes are stand-ins without torch; agent, transport, sealing and driver are the product's own.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide import journal
from confide_simulations.processes import ProcessGroup

from tests.kill_worlds import COORDINATOR, PARAMETERS, PATIENCE_S, Killed, KillWorld, check_rounds

PROGRAM = Path(__file__).resolve().parents[2] / "server" / "deploy" / "backup.py"
ROUNDS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillWorld]:
    with ProcessGroup() as processes:
        made = KillWorld(tmp_path_factory.mktemp("backup"), processes)
        made.start()
        yield made


def backup(*arguments: object) -> str:
    done = subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


def restore(world: KillWorld, copy: Path, elsewhere: Path) -> None:
    """The coordinator and its folder are gone; the copy is moved to another place and started there."""
    world.processes.children[COORDINATOR].kill()
    world.processes.stop(COORDINATOR)
    place = world.federation.server_folder
    place.rename(elsewhere.with_name("lost"))
    copy.rename(elsewhere)
    place.symlink_to(elsewhere)  # for this test's own reading
    world.federation.start_server(world.processes)
    world.federation.wait_for_server(world.processes, PATIENCE_S)


def run(world: KillWorld, folder: Path, saved_after: int, lost_after: int) -> Killed:
    """One run: a backup once a round is committed, the loss once the same or a later one is."""
    chosen = world.specified(f"saved-{saved_after}-{lost_after}", ROUNDS)
    patient = {"step_deadline_s": PATIENCE_S, "exchange_deadline_s": PATIENCE_S}
    chosen = chosen.model_copy(update={"federation": chosen.federation.model_copy(update=patient)})
    world.federation.allow(chosen)
    run_id = world.federation.submit(chosen, bytes(4 * PARAMETERS))
    copy = folder / "backup"
    for kind, data in world.federation.watch(run_id):
        if kind == "round_committed" and data["round"] == saved_after:
            backup(world.federation.server_folder, copy)
            assert "as they were copied" in backup("--check", copy)
        if kind == "round_committed" and data["round"] == lost_after:
            break
    restore(world, copy, folder / "elsewhere")
    # From the start: what the lost coordinator told after the copy was made never happened for this one.
    return Killed(world, run_id, ROUNDS, list(world.federation.watch(run_id)))


def test_a_copy_goes_on_elsewhere(world: KillWorld, tmp_path: Path) -> None:
    check_rounds(run(world, tmp_path, saved_after=1, lost_after=1))


@pytest.mark.full
def test_nodes_refuse_a_copy_that_they_are_ahead_of(world: KillWorld, tmp_path: Path) -> None:
    killed = run(world, tmp_path, saved_after=1, lost_after=3)
    assert killed.events[-1][0] == "run_failed", killed.events[-3:]
    committed = [data["round"] for data in killed.of_kind("round_committed")]
    assert committed == [1], "a round that was opened once is never opened again in the same run"
    refused = {(data["node"], data["code"]) for data in killed.of_kind("dropped")}
    assert {code for _, code in refused} <= {"MODEL_CHAIN_BROKEN", "SLOT_REUSED", "TransportError"}
    assert {node for node, _ in refused} == set(world.federation.nodes)
    for node in world.federation.nodes:
        bodies, _ = journal.read(killed.seal_log(node))
        spent = [body["slot"] for body in bodies if body["event"] == "spent"]
        assert spent == sorted(set(spent))
    # What the page advises: another run, from the last model that the copy has.
    chosen = world.specified("after-the-loss", 2)
    world.federation.allow(chosen)
    _, model = world.federation.checkpoint(killed.run_id)
    events = list(world.federation.watch(world.federation.submit(chosen, model)))
    assert events[-1][0] == "run_finished", events[-3:]
