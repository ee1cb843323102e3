"""`confide bench sealing` end to end on a tiny vector: every key that its readers use, and honest gaps."""

import json
import math

import pytest
from confide_simulations.benchmarks import meta
from confide_simulations.commands.bench import BENCHMARKS, app
from typer.testing import CliRunner

FIGURES = {"client_ns_per_param", "coordinator_ns_per_param", "wire_bits_per_param", "client_peak_mib"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("bench") / "sealing.json"
    arguments = "sealing --params 3e4 --nodes 4 --repetitions 1 --many-nodes 5 --many-params 2e3 --memory-params 1e5"
    outcome = CliRunner().invoke(app, [*arguments.split(), "--json", str(path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "masking alone" in outcome.output
    return dict(json.loads(path.read_text()))


def test_every_contender_carries_the_four_figures(result: dict[str, object]) -> None:
    assert (result["params"], result["nodes"], result["bits"]) == (30_000, 4, 8)
    for name in ("ours", "flower_secagg_plus", "ckks", "plain", "floor"):
        contender = result[name]
        assert isinstance(contender, dict)
        assert contender.keys() >= FIGURES
        missing = [key for key in FIGURES if contender[key] is None]
        assert not missing or contender["reason"], "a gap says why"
        assert all(contender[key] >= 0 and math.isfinite(contender[key]) for key in FIGURES - set(missing))


def test_ours_and_secagg_are_measured_with_and_without_dropouts(result: dict[str, object]) -> None:
    for case in (result, result["many_nodes"]):
        assert isinstance(case, dict)
        for name in ("ours", "flower_secagg_plus"):
            assert case[name]["dropouts"].keys() == {"0", "2"}
        ratios = case["ratios"]["flower_secagg_plus_over_ours"]
        assert ratios["client_0_dropped"] == pytest.approx(
            case["flower_secagg_plus"]["client_ns_per_param"] / case["ours"]["client_ns_per_param"]
        )


def test_the_opened_mean_is_checked_and_its_error_reported(result: dict[str, object]) -> None:
    ours = result["ours"]
    assert isinstance(ours, dict)
    assert 1e-4 < ours["relative_error_of_mean"] < 2e-2
    assert ours["wire_bits_per_param"] == pytest.approx(10.0, rel=0.1)


def test_the_result_says_where_and_how_it_was_made(result: dict[str, object]) -> None:
    made = result["meta"]
    assert isinstance(made, dict)
    assert made.keys() == {"date", "hardware", "versions", "seed", "config"}
    assert made["versions"]["flwr"]
    assert made["config"]["params"] == 30_000


def test_every_benchmark_on_the_list_can_be_loaded_and_helps() -> None:
    for name in BENCHMARKS:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0
    assert CliRunner().invoke(app, ["unknown"]).exit_code == 2


def test_peak_memory_sees_what_was_held_and_let_go() -> None:
    peak = meta.peak_mib(lambda: bytearray(64 * 2**20))
    assert peak is None or 50 < peak < 100
