"""`confide bench scale`: real epochs and slots in groups, with every phase accounted for."""

from confide_simulations.benchmarks.scale.command import PHASES, growth
from confide_simulations.benchmarks.scale.worker import measure


def test_two_groups_are_measured_phase_by_phase() -> None:
    row = measure(6, 64, 3)
    assert (row["nodes"], row["groups"]) == (6, 2)
    assert set(row["phases_s"]) == set(row["nodes_s"]) == set(PHASES)
    assert row["message_mib"] > row["later_slot"]["message_mib"] > 0
    assert row["later_slot"]["nodes_s"]["share"] == 0.0
    larger = row | {"nodes": 60, "coordinator_s": 10 * row["coordinator_s"]}
    assert growth([row, larger])[0] == {"from": 6, "to": 60, "coordinator": 10.0, "one_node": 1.0, "peak_memory": 1.0}
