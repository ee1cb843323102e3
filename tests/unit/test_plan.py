"""The plan says what will happen, and refuses what cannot."""

from pathlib import Path

import pytest
from confide.errors import ProtocolFailure
from confide.models.trainable import schema_of
from confide.planning.run_plan import measure, render, upload_bytes
from confide.privacy.organization import slot_noise
from confide.runs.specification import EXAMPLE, parse_toml

from tests.tiny_models import tiny_llama
from tests.training_specs import specification

SEALED = parse_toml(EXAMPLE)
OPEN = parse_toml(EXAMPLE + '\n[sealing]\nkind = "none"\n')


def test_it_promises_what_the_parameters_give() -> None:
    text = render(SEALED, nodes=5)
    assert "with 5 organizations, the coordinator and any 1 of them together learn nothing about another" in text
    assert "1 may be missing" in text
    assert "SEALING IS OFF" not in text


def test_it_says_loudly_when_nothing_is_sealed() -> None:
    text = render(OPEN, nodes=5)
    assert "SEALING IS OFF" in text
    assert "learn nothing" not in text


@pytest.mark.parametrize(("nodes", "says"), [(2, "min_cohort"), (101, "2 to 100")])
def test_impossible_runs_are_refused_by_name(nodes: int, says: str) -> None:
    with pytest.raises(ProtocolFailure, match=says) as caught:
        render(SEALED, nodes=nodes)
    assert caught.value.code == "PARAMETERS_IMPOSSIBLE"


def test_more_colluders_than_can_be_are_refused() -> None:
    greedy = parse_toml(EXAMPLE + "\n[sealing]\ncolluding = 3\n")
    with pytest.raises(ProtocolFailure, match="at least two must be honest"):
        render(greedy, nodes=4)


def test_traffic_counts_bits() -> None:
    assert upload_bytes(OPEN, 8, 1_000_000) == 4_000_000
    eight = parse_toml(EXAMPLE + "\n[sealing]\nbits = 8\n")
    bits = 8 * upload_bytes(eight, 8, 1_000_000) / 1_000_000
    assert 11 <= bits < 11.1


def test_the_plan_counts_what_travels_and_nothing_else(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path)
    size = schema_of(specification(), base).size
    for aggregation, share in (("average", 1), ("fedsvd", 2)):
        spec = specification(adapter={"aggregation": aggregation})
        (sent,) = measure(spec, base).sent
        text = render(spec, nodes=4, base=base)
        assert f"{4 * sent / 1000:.3g} kB up (32 bits a parameter that travels)" in text
        assert ("are sent in a round" in text) == (sent < size) == (share > 1)
    half = specification(adapter={"aggregation": "rolora"}, federation={"rounds": 3, "min_cohort": 2})
    odd, even = measure(half, base).sent
    assert odd + even == size
    total = 2 * (3 * (4 * size + 4096) + 4 * (2 * odd + even)) / 1000
    text = render(half, nodes=2, base=base)
    assert "another part in each of 2 rounds" in text and f"whole run, all nodes: {total:.3g} kB" in text


def test_the_plan_says_the_warm_start() -> None:
    warm = parse_toml(EXAMPLE.replace("rounds = 3", "rounds = 3\nwarm_start_rounds = 1\nwarm_start_steps = 2"))
    assert "warm start: 1 rounds of 2 steps first" in render(warm, nodes=5)


def test_the_plan_says_what_updates_are_clipped_to() -> None:
    assert "clip: an update's L2 norm is at most 12 in every round" in render(SEALED, nodes=5)
    shrinking = parse_toml(EXAMPLE.replace("clip_norm = 12.0", 'clip_norm = 12.0\nclip_schedule = "learning_rate"'))
    text = render(shrinking, nodes=5)
    assert "12 in round 3, as the learning rate of its steps; never below 1/16 of clip_norm" in text
    assert "clip" not in render(specification(), nodes=5)


def test_a_private_run_shows_formula_and_examples() -> None:
    privacy = '[privacy]\nunit = "record"\nepsilon = 2.0\ndelta = 1e-6\nclip = 1.0\n'
    text = render(parse_toml(EXAMPLE + privacy), nodes=4)
    assert "q = 8 / N" in text and "sigma" in text
    assert "no differential privacy" not in text


def test_an_organization_level_run_shows_its_formula() -> None:
    privacy = '[privacy]\nunit = "organization"\nepsilon = 8.0\ndelta = 1e-3\nclip = 12.0\n'
    run = parse_toml(EXAMPLE + privacy)
    text = render(run, nodes=4)
    assert upload_bytes(run, 4, 1_000_000) == 1_001_472 * slot_noise(run, 1_000_000, members=4).lane_bits // 8
    assert "neither weights nor metrics leave" in text
    assert "mu / (fewest survivors - colluding)" in text and "refuse" not in text
