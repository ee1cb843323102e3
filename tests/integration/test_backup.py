"""A coordinator's folder is copied while it runs, lost, and its copy goes on elsewhere, as docs/deployment.md says."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide_simulations.processes import ProcessGroup

from tests.kill_worlds import COORDINATOR, PARAMETERS, PATIENCE_S, KillWorld, _watched

PROGRAM = Path(__file__).resolve().parents[2] / "server" / "deploy" / "backup.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillWorld]:
    with ProcessGroup() as processes:
        made = KillWorld(tmp_path_factory.mktemp("backup"), processes)
        made.start()
        yield made


def backup(*arguments: object) -> str:
    done = subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("stale", [0, 1])
def test_x(world: KillWorld, tmp_path: Path, stale: int) -> None:
    chosen = world.specified("long", 4)
    world.federation.allow(chosen)
    run_id = world.federation.submit(chosen, bytes(4 * PARAMETERS))
    target = tmp_path / "backup"
    place = world.federation.server_folder
    with _watched(world.federation, run_id) as seen:
        for kind, data in seen:
            print(kind, data, flush=True)
            if kind == "round_committed" and data["round"] == 1:
                print(backup(place, target))
                print(backup("--check", target))
                if not stale:
                    break
            if kind == "round_committed" and data["round"] == 3:
                break
        world.processes.stop(COORDINATOR)
        place.rename(tmp_path / "lost")
        restored = tmp_path / "elsewhere"
        target.rename(restored)
        world.federation._start(world.processes, COORDINATOR, ["-m", "confide", "server", "start", str(restored)], None)
        world.federation.wait_for_server(world.processes, PATIENCE_S)
        for kind, data in seen:
            print("after", kind, data, flush=True)
    world.processes.stop(COORDINATOR)
    restored.rename(place)
    world.start
    world._start(COORDINATOR)
    world.federation.wait_for_server(world.processes, PATIENCE_S)
    assert 0
