"""The run specification: strict, canonical, and clear about what is wrong."""

import json

import pytest
from confide import canonical
from confide.errors import SpecificationError
from confide.runs.specification import EXAMPLE, parse_canonical, parse_toml
from hypothesis import given
from hypothesis import strategies as st


def test_canonical_bytes_round_trip_and_defaults_are_hashed() -> None:
    specification = parse_toml(EXAMPLE)
    assert parse_canonical(specification.canonical_bytes()) == specification
    spelled_out = parse_toml(EXAMPLE + "\n[sealing]\nbits = 16\n")
    assert spelled_out.digest == specification.digest
    assert parse_toml(EXAMPLE + "\n[sealing]\nbits = 8\n").digest != specification.digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("version = 1", "version = 2"), "version"),
        (('name = "support-answers"', 'name = "Bad Name"'), "name"),
        (("rounds = 3", "rounds = 0"), "federation.rounds"),
        (("rounds = 3", 'rounds = "3"'), "federation.rounds"),
        (("rounds = 3", "rounds = 3\nrouns = 4"), "federation.rouns: unknown field"),
        (("learning_rate = 3e-3", "learning_rate = nan"), "learning_rate|valid"),
        (("clip_norm = 12.0", ""), "clip_norm"),
        (("[training]", '[method]\nname = "mind_reading"\n[training]'), "method.name"),
        (("[training]", '[method]\nname = "classification"\n[training]'), "labels"),
        (("[training]", '[privacy]\nunit = "record"\nepsilon = 0.0\ndelta = 1e-5\nclip = 1.0\n[training]'), "epsilon"),
        (("[training]", '[privacy]\nunit = "record"\nepsilon = 5000.0\ndelta = 1e-5\nclip = 1.0\n[training]'), "1000"),
        (("[training]", '[privacy]\nunit = "user"\nepsilon = 1.0\ndelta = 1e-5\nclip = 1.0\n[training]'), "user_key"),
        (("[training]", "[privacy]\nepsilon = 1.0\n[training]"), "unit"),
        (
            ("rounds = 3", "rounds = 3\nwarm_start_rounds = 1\nwarm_start_steps = 4"),
            "more than training.local_steps = 3",
        ),
        (
            (
                "[federation]",
                '[privacy]\nunit = "record"\nepsilon = 1.0\ndelta = 1e-5\nclip = 1.0\n[federation]\n'
                "warm_start_rounds = 1",
            ),
            "not offered under privacy",
        ),
        (("version = 1", "version = "), "TOML"),
    ],
)
def test_bad_specifications_name_field_and_remedy(change: tuple[str, str], says: str) -> None:
    assert change[0] in EXAMPLE
    with pytest.raises(SpecificationError, match=says):
        parse_toml(EXAMPLE.replace(*change))


@pytest.mark.parametrize("unit", ['unit = "record"', 'unit = "user"\nuser_key = "author"'])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[training]", '[method]\nname = "contrastive"\n[training]'), '"contrastive", which compares.*"organization"'),
        (("[training]", "[training]\ncompile = true"), "compile is on.*Switch it off"),
        (("[training]", "[training]\ngradient_checkpointing = true"), "gradient_checkpointing is on.*Switch it off"),
    ],
)
def test_what_gives_no_gradient_of_a_single_record_is_refused_before_anybody_is_asked(
    unit: str, change: tuple[str, str], says: str
) -> None:
    """By whoever parses it: plan, submission, and each node, from the canonical bytes."""
    privacy = f"\n[privacy]\n{unit}\nepsilon = 1.0\ndelta = 1e-5\nclip = 1.0\n"
    parse_toml(EXAMPLE + privacy)
    with pytest.raises(SpecificationError, match=says):
        parse_toml(EXAMPLE.replace(*change) + privacy)
    document = json.loads(parse_toml(EXAMPLE.replace(*change)).canonical_bytes())
    document["privacy"] = json.loads(parse_toml(EXAMPLE + privacy).canonical_bytes())["privacy"]
    with pytest.raises(SpecificationError, match=says):
        parse_canonical(canonical.encode(document))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("[federation.outer]\nmomentum = 0.5", "federation.outer keeps values"),
        ('[federation.outer]\nname = "adam"', "federation.outer keeps values"),
        ("[sealing]\nerror_feedback = true", "sealing.error_feedback keeps values"),
    ],
)
def test_fedsvd_keeps_nothing_in_a_basis_that_changes(section: str, says: str) -> None:
    fedsvd = EXAMPLE.replace("rank = 8", 'rank = 8\naggregation = "fedsvd"')
    parse_toml(fedsvd)
    with pytest.raises(SpecificationError, match=says):
        parse_toml(fedsvd + section)
    with pytest.raises(SpecificationError, match=r"training\.keep_optimizer_state keeps values"):
        parse_toml(fedsvd.replace("[training]", "[training]\nkeep_optimizer_state = true"))


@pytest.mark.parametrize("scheme", ["rolora", "fedsvd"])
def test_fragments_do_not_go_with_schemes_that_have_their_own_turns(scheme: str) -> None:
    text = EXAMPLE.replace("rank = 8", f'rank = 8\naggregation = "{scheme}"')
    with pytest.raises(SpecificationError, match="fragments must be 1"):
        parse_toml(text.replace("rounds = 3", "rounds = 3\nfragments = 2"))


def test_steps_count_the_warm_start() -> None:
    warm = parse_toml(EXAMPLE.replace("rounds = 3", "rounds = 4\nwarm_start_rounds = 2"))
    assert [warm.steps_in(number) for number in range(1, 5)] == [1, 1, 3, 3]
    assert [warm.steps_before(number) for number in range(1, 6)] == [0, 1, 2, 5, 8]
    cold = parse_toml(EXAMPLE)
    assert [cold.steps_before(number) for number in range(1, 4)] == [0, 3, 6]


def test_only_the_canonical_form_is_taken_from_the_network() -> None:
    data = parse_toml(EXAMPLE).canonical_bytes()
    with pytest.raises(SpecificationError, match="canonical"):
        parse_canonical(json.dumps(json.loads(data)).encode())
    with pytest.raises(SpecificationError, match="canonical"):
        parse_canonical(data.replace(b'"seed":0,', b""))


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_arbitrary_bytes_raise_only_the_named_error(data: bytes) -> None:
    with pytest.raises(SpecificationError):
        parse_canonical(data)


_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=3)
)


@given(st.data())
def test_a_changed_leaf_is_refused_or_changes_the_hash(data: st.DataObject) -> None:
    original = parse_toml(EXAMPLE)
    document = json.loads(original.canonical_bytes())
    section = data.draw(st.sampled_from([key for key, value in document.items() if isinstance(value, dict)]))
    field = data.draw(st.sampled_from(sorted(document[section])))
    before = document[section][field]
    document[section][field] = data.draw(_LEAVES)
    encoded = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    try:
        changed = parse_canonical(encoded)
    except SpecificationError:
        return
    assert (changed.digest == original.digest) == (document[section][field] == before)


@given(st.text(max_size=200))
def test_arbitrary_text_raises_only_the_named_error(text: str) -> None:
    with pytest.raises(SpecificationError):
        parse_toml(text)
