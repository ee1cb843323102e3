"""The public rule of a tokenizer run: counts, merges, candidates, the state's bytes, and the finished tokenizer."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import transformers
from confide.errors import ConfideError, DataError, SpecificationError, UpdateError
from confide.methods.first_model import check_first_model, first_model, update_schema, update_schema_of
from confide.models.sent_coordinates import SentCoordinates
from confide.planning.run_plan import render
from confide.privacy.counting import counting_plan, floors, private_counts, run_cost
from confide.privacy.events import GaussianRelease
from confide.privacy.noise.randomness import SecureRandom
from confide.rounds.outer_step import next_model
from confide.runs.specification import NO_MODEL, parse_canonical
from confide.sealing.roles import Opened
from confide.tokenizer.counting import Corpus, texts_of
from confide.tokenizer.export import byte_characters, bytes_per_token, finished, pre_tokenizer, write_tokenizer_export
from confide.tokenizer.merging import Floors, check_step, next_state
from confide.tokenizer.state import TokenizerState, first_state, key_of, left_of, parse_state, right_of
from confide.tokenizer.terms import Terms
from confide_client.training.tokens import units_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tests.private_federation import fixed_source
from tests.tokenizer_runs import FLOORS, TEXTS, corpus, states, tokenizer_spec

SPEC = tokenizer_spec()
TERMS = Terms.of(SPEC)
RECORD = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-6\nclip = 4.0'
words = st.text(alphabet="abc é", min_size=0, max_size=24)


# --- counts


def brute_force(texts: list[str], state: TokenizerState) -> Counter[tuple[int, int]]:
    """Every piece merged by hand, in the order of the merges, and its neighbours counted one by one."""
    value_of = {character: value for value, character in enumerate(byte_characters())}
    counts: Counter[tuple[int, int]] = Counter()
    for text in texts:
        for piece, _ in pre_tokenizer().pre_tokenize_str(text):
            tokens = [value_of[character] for character in piece]
            for number, pair in enumerate(state.merges, start=256):
                place = 0
                while place < len(tokens) - 1:
                    if (tokens[place], tokens[place + 1]) == pair:
                        tokens[place : place + 2] = [number]
                    place += 1
            counts.update(itertools.pairwise(tokens))
    return counts


def test_counts_are_those_of_a_brute_force_count_in_every_round() -> None:
    for state in states(SPEC, TEXTS):
        expected = brute_force(TEXTS, state)
        pairs = zip(left_of(state.candidates).tolist(), right_of(state.candidates).tolist(), strict=True)
        assert corpus(TEXTS).counts(state).tolist() == [expected[pair] for pair in pairs]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    units=st.lists(st.lists(words, max_size=3), min_size=1, max_size=6),
    clip=st.floats(0.5, 20),
    round_=st.integers(0, 3),
)
def test_without_one_unit_the_sum_moves_by_at_most_the_clip(units: list[list[str]], clip: float, round_: int) -> None:
    state = states(SPEC, TEXTS)[round_]
    whole = Corpus.of(units).clipped_counts(state, clip, step=clip / 2**22)
    for left_out in range(len(units)):
        without = Corpus.of([*units[:left_out], *units[left_out + 1 :]]).clipped_counts(state, clip, step=clip / 2**22)
        assert sum(int(x) ** 2 for x in whole - without) <= 2**44


def test_a_clip_that_binds_nobody_gives_the_plain_counts_and_one_that_binds_scales() -> None:
    state = states(SPEC, TEXTS)[1]
    plain = corpus(TEXTS[:1]).counts(state)
    assert corpus(TEXTS).clipped_counts(state, 1e9, step=1.0) == pytest.approx(corpus(TEXTS).counts(state))
    clipped = corpus(TEXTS[:1]).clipped_counts(state, 2.0, step=2.0**-21)
    assert clipped * 2.0**-21 == pytest.approx(plain * 2.0 / np.linalg.norm(plain), abs=2.0**-21)


def test_units_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    state = states(SPEC, TEXTS)[1]
    whole = corpus(TEXTS * 5).clipped_counts(state, 3.0, step=3 / 2**22)
    monkeypatch.setattr("confide.tokenizer.counting._BLOCK", 40)
    assert (corpus(TEXTS * 5).clipped_counts(state, 3.0, step=3 / 2**22) == whole).all()


def test_texts_of_every_alternative_of_fields() -> None:
    assert list(texts_of({"text": "a"})) == ["a"]
    assert list(texts_of({"question": "a", "answer": "b", "id": 1})) == ["a", "b"]
    assert list(texts_of({"messages": [{"role": "user", "content": "a"}, {"role": "x", "content": "b"}]})) == ["a", "b"]
    for bad in ({}, {"text": 3}, {"messages": "a"}, {"messages": [{"role": "user"}]}):
        with pytest.raises(DataError):
            list(texts_of(bad))


def test_a_users_records_are_one_unit() -> None:
    user = RECORD.replace('"record"', '"user"\nuser_key = "who"')
    records = [{"text": "a", "who": "x"}, {"text": "b", "who": "y"}, {"text": "c", "who": "x"}, None]
    assert units_of(tokenizer_spec(privacy=user), records) == [["a", "c"], ["b"], []]
    assert units_of(tokenizer_spec(privacy=RECORD), records) == [["a"], ["b"], ["c"], []]
    with pytest.raises(DataError, match="lacks that field"):
        units_of(tokenizer_spec(privacy=user), [{"text": "a"}])


# --- merges and candidates


def test_merges_are_the_most_frequent_pairs_that_do_not_overlap() -> None:
    state = states(SPEC, TEXTS)[1]
    counts = brute_force(TEXTS, first_state())
    added = list(state.merges)
    assert added[0] == min(counts, key=lambda pair: (-counts[pair], pair))
    assert [counts[pair] for pair in added] == sorted((counts[pair] for pair in added), reverse=True)
    assert not {left for left, right in added if left != right} & {right for _, right in added}
    assert state.size == TERMS.tokens_after(1)


def test_the_whole_vocabulary_is_reached_and_no_token_stands_twice() -> None:
    text = " ".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "nrst") * 3
    last = states(SPEC, [text])[-1]
    assert last.size + 2 == 300 and len(set(last.tokens)) == last.size
    assert last.round == 3


def test_candidates_hold_every_pair_that_still_occurs() -> None:
    for state in states(SPEC, TEXTS)[1:]:
        occurring = {pair for pair, count in brute_force(TEXTS, state).items() if count >= 2}
        pairs = set(zip(left_of(state.candidates).tolist(), right_of(state.candidates).tolist(), strict=True))
        assert occurring <= pairs


def test_the_most_frequent_candidates_stay_when_there_is_no_room_for_all() -> None:
    narrow = Terms(vocabulary=300, special_tokens=(b"<pad>", b"<eos>"), candidates=10, max_token_bytes=32, rounds=3)
    counts = corpus(TEXTS).counts(first_state())
    few = next_state(first_state(), counts, narrow, FLOORS)
    many = next_state(first_state(), counts, TERMS, FLOORS)
    assert len(few.candidates) == 10 and np.isin(few.candidates, many.candidates).all()


def test_a_floor_keeps_rare_pairs_out_and_long_tokens_are_never_made() -> None:
    state = next_state(first_state(), corpus(TEXTS).counts(first_state()), TERMS, Floors(merge=1e9, keep=1e9))
    assert (state.round, state.merges, len(state.candidates)) == (1, (), 0)
    assert corpus(TEXTS).counts(state).shape == (0,)
    assert corpus(TEXTS).clipped_counts(state, 1.0, step=2.0**-22).shape == (0,)
    short = tokenizer_spec(extra="tokenizer.max_token_bytes = 2")
    assert max(len(token) for token in states(short, TEXTS)[-1].tokens) == 2
    made = max((token for token in states(SPEC, TEXTS)[-1].tokens if token.isalpha()), key=len)
    taken = tokenizer_spec(vocabulary=301, extra=f'tokenizer.special_tokens = ["<pad>", "<eos>", "{made.decode()}"]')
    assert len(made) > 2 and made not in states(taken, TEXTS)[-1].tokens


def test_the_outer_step_is_a_function_of_sum_and_state() -> None:
    counts = np.zeros(TERMS.candidates)
    counts[: 1 << 16] = corpus(TEXTS).counts(first_state())
    opened = Opened(counts, 3.0, {}, ("a", "b", "c"), {}, {})
    coordinates = SentCoordinates(SPEC, update_schema(SPEC, Path()))
    model, outer = next_model(SPEC, coordinates, first_state().to_bytes(), b"", opened, 1)
    assert (model, outer) == (states(SPEC, TEXTS)[1].to_bytes(), b"")
    assert next_model(SPEC, coordinates, first_state().to_bytes(), b"", opened, 1) == (model, outer)


# --- the state's bytes


def test_states_survive_their_bytes() -> None:
    for state in states(SPEC, TEXTS):
        assert parse_state(state.to_bytes(), TERMS) == state


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_altered_states_are_refused_or_keep_the_rules(data: st.DataObject) -> None:
    raw = bytearray(states(SPEC, TEXTS)[data.draw(st.integers(1, 3))].to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        match data.draw(st.sampled_from(("set", "cut", "grow"))):
            case "set":
                place = data.draw(st.integers(0, max(len(raw) - 1, 0)))
                raw[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del raw[data.draw(st.integers(0, len(raw))) :]
            case _:
                raw += data.draw(st.binary(min_size=1, max_size=16))
    try:
        state = parse_state(bytes(raw), TERMS)
    except UpdateError:
        return
    assert state.to_bytes() == raw
    assert state.size <= TERMS.tokens_after(state.round) and max(map(len, state.tokens)) <= TERMS.max_token_bytes


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_named_refusal(data: bytes) -> None:
    for raw in (data, first_state().to_bytes()[:38] + data):
        with pytest.raises(UpdateError):
            parse_state(raw, TERMS)


def test_tokens_that_double_do_not_fill_the_memory() -> None:
    wide = Terms(vocabulary=70000, special_tokens=(), candidates=65536, max_token_bytes=256, rounds=1)
    merges = ((97, 97), *((number, number) for number in range(256, 300)))
    with pytest.raises(UpdateError, match="longer than 256 bytes"):
        parse_state(TokenizerState(1, merges, first_state().candidates).to_bytes(), wide)


def state_of(merges: tuple[tuple[int, int], ...], candidates: list[tuple[int, int]], round_: int = 1) -> bytes:
    return TokenizerState(round_, merges, np.array([key_of(*pair) for pair in candidates], dtype=np.int64)).to_bytes()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (state_of((), [], 4), "is of round 4"),
        (state_of(tuple((97, 98 + i) for i in range(20)), []), "at most 13 are allowed"),
        (state_of(((97, 256),), []), "come after it"),
        (state_of(((97, 98), (97, 98)), []), "the same token"),
        (state_of(((97, 98),), [(1, 257)]), "does not exist"),
        (state_of(((60, 112), (97, 100), (256, 257), (258, 62)), []), "makes a special token"),
        (state_of((), [(2, 1), (1, 2)]), "ascending"),
        (state_of((), [(1, 2), (1, 2)]), "ascending"),
    ],
)
def test_states_against_the_terms(raw: bytes, reason: str) -> None:
    with pytest.raises(UpdateError, match=reason):
        parse_state(raw, TERMS)


def test_missed_rounds_are_held_to_what_can_still_be_seen() -> None:
    made = states(SPEC, TEXTS)
    check_step(made[0], made[3], TERMS)
    with pytest.raises(UpdateError, match="taken back"):
        check_step(made[1], TokenizerState(3, made[1].merges[1:], made[1].candidates), TERMS)
    with pytest.raises(UpdateError, match="does not come after"):
        check_step(made[2], made[1], TERMS)


# --- what the run is


def test_a_tokenizer_run_needs_no_model_and_says_so() -> None:
    assert SPEC.model == NO_MODEL and SPEC.training.local_steps == 1
    assert parse_canonical(SPEC.canonical_bytes()) == SPEC
    text = render(SPEC, nodes=4)
    assert "300 tokens" in text and "summed count of any string" in text and "LoRA" not in text
    first, schema = first_model(SPEC, None)
    assert first == first_state().to_bytes()
    assert schema == update_schema(SPEC, Path()) == update_schema_of(SPEC, b"", len(first)) and schema.size == 65536
    check_first_model(SPEC, first, schema)
    with pytest.raises(UpdateError, match="another first state"):
        check_first_model(SPEC, states(SPEC, TEXTS)[1].to_bytes(), schema)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("training = {local_steps = 2, batch_size = 1, learning_rate = 1.0}", "training has no meaning"),
        (f'model = {{sha256 = "{"0" * 64}"}}', "model has no meaning"),
        ("adapter = {rank = 4}", "adapter has no meaning"),
        ("sealing.error_feedback = true", "error_feedback"),
        ('federation.weights = "examples"', "uniform"),
        ('privacy = {unit = "organization", epsilon = 8.0, delta = 1e-6, clip = 4.0}', "organization"),
        ('tokenizer.roles.mask_token = "<mask>"', "not among special_tokens"),
        ('tokenizer.roles.cls_token = "<eos>"', "both or neither"),
        ('tokenizer.special_tokens = ["aa", "aa"]', "stands once"),
    ],
)
def test_what_means_nothing_is_refused_by_name(extra: str, reason: str) -> None:
    from confide.runs.specification import parse_toml

    text = 'version = 1\nname = "words"\nmethod.name = "tokenizer"\n' + extra + "\n"
    text += "federation.rounds = 3\nfederation.data = 'shard'\nfederation.clip_norm = 1e4\n"
    with pytest.raises(SpecificationError, match=reason):
        parse_toml(text)
    with pytest.raises(SpecificationError, match="needs a base model"):
        sft = '[training]\nlocal_steps = 1\nbatch_size = 1\nlearning_rate = 0.1\n[federation]\nrounds = 1\ndata = "a"'
        parse_toml(f'version = 1\nname = "x"\nsealing.kind = "none"\nmodel.sha256 = "{NO_MODEL.sha256}"\n{sft}')


# --- privacy


def test_the_noise_is_calibrated_for_all_slots_and_charged_as_gaussian_releases() -> None:
    spec = tokenizer_spec(rounds=10, privacy=RECORD)
    plan = counting_plan(spec, units=500)
    assert plan.epsilon <= 8.0 < plan.epsilon * 1.01
    assert plan.slots == 11  # one spare for a second attempt
    cost = run_cost(spec, 500)
    assert cost.slot == (GaussianRelease(noise_multiplier=plan.noise_multiplier),) and cost.slots == 11
    # Closed form: 11 Gaussian releases of multiplier s are one of s / sqrt(11).
    multiplier = plan.noise_multiplier / math.sqrt(11)
    normal = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    delta = normal(0.5 / multiplier - 8.0 * multiplier) - math.exp(8.0) * normal(-0.5 / multiplier - 8.0 * multiplier)
    assert 0.9e-6 < delta <= 1e-6
    with pytest.raises(SpecificationError, match="not below one over"):
        counting_plan(spec, units=2_000_000)
    with pytest.raises(DataError):
        counting_plan(spec, units=0)
    assert "standard deviation" in render(spec, nodes=4)


def test_private_counts_carry_the_noise_that_the_plan_says() -> None:
    spec = tokenizer_spec(rounds=10, privacy=RECORD)
    plan, texts = counting_plan(spec, units=len(TEXTS)), corpus(TEXTS)
    step = plan.lattice.granularity
    clean = texts.clipped_counts(first_state(), plan.clip, step=step) * step
    noise = private_counts(texts, first_state(), plan, SecureRandom(fixed_source(1))) - clean
    assert (noise / step == np.rint(noise / step)).all()
    assert abs(float(noise.std()) / (4.0 * plan.noise_multiplier) - 1) < 0.02  # the clip of RECORD is 4
    assert abs(float(noise.mean())) < 5 * plan.noise_stddev / 256
    again = private_counts(texts, first_state(), plan, SecureRandom(fixed_source(2))) - clean
    assert abs(float(np.corrcoef(noise, again)[0, 1])) < 0.03


def test_pairs_must_stand_out_of_the_noise() -> None:
    assert floors(SPEC, contributors=4) == Floors(merge=1.5, keep=1.5)
    spec = tokenizer_spec(rounds=10, privacy=RECORD)
    found = floors(spec, contributors=4)
    assert found.merge == pytest.approx(4.5 * 2 * counting_plan(spec).noise_stddev)
    random = np.random.default_rng(3)
    noise = random.normal(0, 2 * counting_plan(spec).noise_stddev, 1 << 16)
    assert not next_state(first_state(), noise, Terms.of(spec), found).merges


# --- the finished tokenizer


def test_the_export_loads_in_transformers_and_gives_text_back(tmp_path: Path) -> None:
    roles = {
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[M]",
    }
    lines = [f'tokenizer.roles.{name} = "{token}"' for name, token in roles.items()]
    special = 'tokenizer.special_tokens = ["<pad>", "<eos>", "[CLS]", "[SEP]", "[M]"]\n'
    for name, spec in (("plain", SPEC), ("bert", tokenizer_spec(extra=special + "\n".join(lines)))):
        last = states(spec, TEXTS)[-1]
        folder = write_tokenizer_export(tmp_path / name, last.to_bytes(), {"round": 3}, spec)
        assert (folder / "manifest.json").is_file()
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert len(loaded) == last.size + len(spec.tokenizer.special_tokens)
        for text in [*TEXTS, "\x00 never seen 🙂\r\n\t<eos"]:
            ids = loaded(text, add_special_tokens=False)["input_ids"]
            assert loaded.decode(ids) == text
        assert loaded.convert_tokens_to_ids("<eos>") == 1 and loaded.pad_token_id == 0
    assert loaded("the wall")["input_ids"][0] == 2 and loaded("the wall")["input_ids"][-1] == 3
    assert loaded.mask_token_id == 4
    assert bytes_per_token(finished(last, spec.tokenizer), TEXTS) > 1.3


def test_bytes_and_characters_are_those_of_the_tokenizers_library() -> None:
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    for value, character in enumerate(byte_characters()[:128]):
        if chr(value).isprintable():
            (shown, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
                chr(value)
            )
            assert shown == character


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfideError):
        write_tokenizer_export(tmp_path / "out", b"damaged", {}, SPEC)
