"""The plan says what will happen, and refuses what cannot."""

import pytest
from confide.errors import ProtocolFailure
from confide.privacy.organization import slot_noise
from confide.runs.plan import render, upload_bytes
from confide.runs.specification import EXAMPLE, parse_toml

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
