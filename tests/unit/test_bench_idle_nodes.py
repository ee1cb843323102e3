"""`confide bench idle-nodes` with three nodes: it says what it says of a thousand."""

import json
from pathlib import Path

from confide_simulations.commands.bench import app
from typer.testing import CliRunner


def test_three_light_nodes_are_idle_and_make_a_round(tmp_path: Path) -> None:
    told = tmp_path / "idle.json"
    made = CliRunner().invoke(
        app, ["idle-nodes", "--nodes", "3", "--window-s", "0.5", "--rounds", "1", "--json", str(told)]
    )
    assert made.exit_code == 0, made.output
    document = json.loads(told.read_text())
    (row,) = document["results"]
    assert (row["nodes"], row["connected"], len(row["empty_round_s"])) == (3, 3, 1)
    assert row["sockets"] >= 3 and row["memory_mib"] > 0 and row["coordinator_cpu_s_a_round"] > 0
    assert document["config"]["nodes"] == "3" and document["seed"] == 0
