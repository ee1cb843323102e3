"""Pre-training from a file: the same sequences as from memory, made once, made again when in doubt, and erased."""

import hashlib
import json
import mmap
import resource
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.errors import DataError, StateError, TrainingError
from confide.methods.documents import DocumentEncoder
from confide.methods.packing import Packed, PackedSequences, Tokens, token_dtype
from confide.models.architecture import load_tokenizer
from confide.models.trainable import initial_state
from confide.proto import fleet_pb2
from confide_client.data.datasets import DataSets
from confide_client.data.token_files import read_tokens, tokens_of
from confide_client.training import LocalTrainer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.node_bench import make_store, open_bench
from tests.tiny_models import TEXT, make_tokenizer, tiny_bert, tiny_llama
from tests.training_specs import specification

RECORDS = [{"text": f"{TEXT[: 40 + 9 * i]} {i}"} for i in range(30)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "causal_lm": tiny_llama(tmp_path_factory.mktemp("llama")),
        "masked_lm": tiny_bert(tmp_path_factory.mktemp("bert")),
    }


@pytest.fixture(scope="module")
def encoder(bases: dict[str, Path]) -> DocumentEncoder:
    return encoder_of(bases["causal_lm"])


def encoder_of(base: Path) -> DocumentEncoder:
    tokenizer = load_tokenizer(base)
    return DocumentEncoder("causal_lm", tokenizer, special=False, end=tokenizer.eos_token_id)


def same(ours: Tokens, theirs: Tokens) -> bool:
    fields = ("ids", "ends", "text_bytes")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in fields)


# --- packing ---------------------------------------------------------------------------------------------------------


def packed_one_by_one(documents: list[tuple[list[int], int]], length: int) -> list[Packed]:
    """Oracle: fill sequences token by token, adding up the bytes from left to right."""
    sequences, ids, positions, size = [], list[int](), list[int](), 0.0
    for document, document_bytes in documents:
        taken = 0
        while taken < len(document):
            piece = document[taken : taken + length - len(ids)]
            ids, positions = ids + piece, positions + list(range(len(piece)))
            size += document_bytes * (len(piece) - 1) / len(document)
            taken += len(piece)
            if len(ids) == length:
                sequences.append(Packed(np.array(ids, np.int32), np.array(positions, np.int32), size))
                ids, positions, size = [], [], 0.0
    if len(ids) > 1:
        sequences.append(Packed(np.array(ids, np.int32), np.array(positions, np.int32), size))
    return sequences


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 299), min_size=1, max_size=40), st.integers(0, 200)), max_size=12),
    st.integers(2, 17),
)
@example([([1, 2, 3], 7 * number % 11 + 1) for number in range(60)], 150)  # more terms than are added in pairs
@settings(derandomize=True, deadline=None, max_examples=200)
def test_sequences_made_on_demand_are_those_packed_one_by_one(
    documents: list[tuple[list[int], int]], length: int
) -> None:
    ours = PackedSequences(Tokens.of(iter(documents), 300), length)
    theirs = packed_one_by_one(documents, length)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids.dtype == one.positions.dtype == np.int32
        assert one.ids.tolist() == other.ids.tolist() and one.positions.tolist() == other.positions.tolist()
        assert one.bytes == other.bytes
    with pytest.raises(IndexError):
        ours[len(theirs)]


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm"])
def test_training_from_the_file_gives_the_bits_of_training_from_memory(
    bases: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registered data set, both splits, also after a restart, which encodes nothing again."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    data_sets = DataSets(tmp_path / "node")
    data_sets.add("texts", file, evaluation_fraction=0.2)
    data, target = data_sets.load("texts"), {"causal_lm": "q_proj", "masked_lm": "query"}[name]
    spec = specification(method={"name": name, "max_length": 32}, adapter={"target_modules": [target]})
    slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)

    def contribution(folder: Path) -> Any:
        local = LocalTrainer(spec, bases[name], node="hospital-a", folder=folder, threads=1, device="cpu")
        return local.contribute(local.schema.flatten(initial_state(spec, bases[name])), data, slot)

    from_file = contribution(tmp_path / "a")
    files = sorted((tmp_path / "a").glob("tokens-*"))
    assert [path.name for path in files] == ["tokens-evaluation.bin", "tokens-train.bin"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    before = [path.stat().st_ino for path in files]
    restarted = contribution(tmp_path / "a")
    assert [path.stat().st_ino for path in files] == before
    monkeypatch.setattr(LocalTrainer, "_encoded", lambda self, split, records, digest: self._method.prepare(records))
    memory = contribution(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert from_file.update.tobytes() == restarted.update.tobytes() == memory.update.tobytes()
    assert from_file.metrics == restarted.metrics == memory.metrics


def test_tokens_are_mapped_and_as_small_as_the_vocabulary_allows(encoder: DocumentEncoder, tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path / "tokens-train.bin", encoder, RECORDS)
    assert tokens.ids.dtype == token_dtype(encoder.vocabulary) == np.uint16
    for array in (tokens.ids, tokens.ends, tokens.text_bytes):
        holder: Any = array
        while isinstance(holder, np.ndarray):
            holder = holder.base
        assert isinstance(holder, mmap.mmap)
    assert same(tokens, encoder.tokens(RECORDS))


def test_a_data_set_in_which_nothing_can_be_learned_is_an_empty_corpus(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    for records in ([], [{"text": ""}]):
        tokens = tokens_of(tmp_path / "tokens-train.bin", encoder, records)
        assert len(tokens.ids) == len(tokens.ends) == len(PackedSequences(tokens, 8)) == 0


def test_other_records_or_another_tokenizer_make_the_file_anew(
    encoder: DocumentEncoder, bases: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "tokens-train.bin"
    make_tokenizer(tmp_path / "larger", chat=False, vocabulary=310)
    other = load_tokenizer_of(tmp_path / "larger")
    corpora: list[tuple[DocumentEncoder, Sequence[Any]]] = [
        (encoder, RECORDS),
        (other, RECORDS),
        (DocumentEncoder("causal_lm", load_tokenizer(bases["causal_lm"]), special=False, end=0), RECORDS),
        (encoder, RECORDS[:-1]),
        (encoder, [{"text": RECORDS[0]["text"].swapcase()}, *RECORDS[1:-1]]),
        (encoder, [*RECORDS[:-2], RECORDS[-1], RECORDS[-2]]),
        (encoder, [{"text": RECORDS[0]["text"] + RECORDS[1]["text"]}, *RECORDS[2:]]),
    ]
    seen = set()
    for made_with, records in corpora:
        assert same(tokens_of(path, made_with, records), made_with.tokens(records))
        seen.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(seen) == len(corpora)


def load_tokenizer_of(folder: Path) -> DocumentEncoder:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return DocumentEncoder("causal_lm", tokenizer, special=False, end=tokenizer.eos_token_id)


def test_bad_records_alone_are_named_and_leave_nothing(encoder: DocumentEncoder, tmp_path: Path) -> None:
    for bad, message in (({"secret": "secret"}, "lacks the fields"), ({"text": "secret \ud800"}, "surrogate")):
        with pytest.raises(DataError, match=message) as caught:
            tokens_of(tmp_path / "tokens-train.bin", encoder, [bad, bad])
        assert "secret" not in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_leaves_nothing(encoder: DocumentEncoder, tmp_path: Path) -> None:
    path = tmp_path / "tokens-train.bin"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot write tokens-train\.bin.*Free space") as caught:
            tokens_of(path, encoder, RECORDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) not in str(caught.value) and not list(tmp_path.iterdir())
    assert same(tokens_of(path, encoder, RECORDS), encoder.tokens(RECORDS))


def test_what_a_killed_process_left_is_cleared(encoder: DocumentEncoder, tmp_path: Path) -> None:
    (tmp_path / ".tokens-train.bin.abc").write_bytes(b"half")
    tokens_of(tmp_path / "tokens-train.bin", encoder, RECORDS)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens-train.bin"]


class Counting(Sequence[Any]):
    """Records that note how often one is read."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records, self.reads = records, 0

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return self._records[index]


def test_records_that_are_known_are_not_read_again(encoder: DocumentEncoder, tmp_path: Path) -> None:
    path, records = tmp_path / "tokens-train.bin", Counting(RECORDS)
    expected = encoder.tokens(RECORDS)
    for known, reads in (("a", 30), ("a", 0), ("b", 30), ("", 60), ("", 30), ("b", 30), ("b", 0)):
        records.reads = 0
        assert same(tokens_of(path, encoder, records, known), expected)
        assert records.reads == reads, known
    path.write_bytes(path.read_bytes()[:-1])
    assert same(tokens_of(path, encoder, records, "b"), expected)
    other = encoder_of_rules(encoder)
    records.reads = 0
    tokens_of(path, other, records, "b")
    assert records.reads == 30, "the tokenizer is part of the key as ever"


def encoder_of_rules(encoder: DocumentEncoder) -> DocumentEncoder:
    return DocumentEncoder("causal_lm", encoder._tokenizer, special=False, end=0)


def test_a_registration_says_which_records_they_are(tmp_path: Path) -> None:
    file, data_sets = tmp_path / "texts.jsonl", DataSets(tmp_path / "node")
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    seen = []
    for changes in (
        {},
        {"evaluation_fraction": 0.5},
        {"split_seed": "ab" * 32},
        {"group": "g", "split_seed": "ab" * 32},
    ):
        data_sets.add("texts", file, **changes)  # type: ignore[arg-type]
        seen.append(data_sets.load("texts").digest)
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[1:]))
    with pytest.raises(DataError, match="changed since it was registered"):
        data_sets.load("texts")
    data_sets.add("texts", file, split_seed="ab" * 32)
    seen.append(data_sets.load("texts").digest)
    assert len(set(seen)) == 4 and seen[2] == seen[3], "the group decides nothing of it"


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(encoder: DocumentEncoder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "tokens-train.bin"
    tokens_of(path, encoder, RECORDS[:4])
    return path.read_bytes()


def test_a_damaged_file_is_made_again(encoder: DocumentEncoder, sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokens-train.bin"
    flipped = [bytes([*sound[:at], sound[at] ^ 1, *sound[at + 1 :]]) for at in range(0, len(sound), 37)]
    for damaged in [sound[:50], sound[:-1], sound + b"\0", bytes(len(sound)), *flipped]:
        path.write_bytes(damaged)
        with pytest.raises(StateError):
            read_tokens(path, sound[16:48], encoder.vocabulary)
        assert same(tokens_of(path, encoder, RECORDS[:4]), encoder.tokens(RECORDS[:4]))
        assert path.read_bytes() == sound


def forged(ids: bytes, marks: bytes, numbers: tuple[int, int, int], key: bytes) -> bytes:
    """A file whose digest holds, whatever is in it."""
    body = ids + bytes(-len(ids) % 8) + marks
    packed = struct.pack("<QQQ", *numbers)
    return b"confide-tokens-1" + key + hashlib.sha256(body + packed).digest() + packed + body


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    key = bytes(32)
    ids, marks = draw(st.binary(max_size=40)), draw(st.binary(max_size=64))
    counts = draw(st.tuples(st.integers(0, 24), st.integers(0, 5), st.sampled_from([1, 2, 4])))
    huge = draw(st.tuples(*[st.integers(0, 2**64 - 1)] * 3))
    # Close to sound: what is wrong is the order of a few ends, one size, or a token just beyond the vocabulary.
    tokens = draw(st.lists(st.sampled_from([7, 8, 9, 299, 300]), min_size=1, max_size=4)) * 3
    ends = [*draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 11, 2**63 - 1, -1]), max_size=3)), len(tokens)]
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, -1]), min_size=len(ends), max_size=len(ends)))
    nearly = struct.pack(f"<{len(tokens)}H", *tokens), struct.pack(f"<{2 * len(ends)}q", *ends, *sizes)
    return draw(
        st.sampled_from(
            [
                ids + marks,
                *[forged(*nearly, (len(tokens), len(ends), 2), key)] * 3,
                forged(ids, marks, counts, key),
                forged(ids, marks, huge, key),
            ]
        )
    )


@given(hostile())
@settings(derandomize=True, deadline=None, max_examples=400)
def test_arbitrary_bytes_are_refused_by_name_or_can_be_trained_on(data: bytes) -> None:
    path = _scratch() / "tokens-train.bin"
    path.write_bytes(data)
    try:
        tokens = read_tokens(path, bytes(32), 300)
    except StateError:
        return
    for length in (2, 7):
        for sequence in PackedSequences(tokens, length):
            assert len(sequence.ids) == len(sequence.positions) <= length and sequence.ids.max() < 300
            assert sequence.positions[0] == 0 and sequence.bytes >= 0


def test_the_forger_of_the_fuzzer_forges(tmp_path: Path) -> None:
    """Else the test above would only ever see refusals."""
    (tmp_path / "tokens").write_bytes(forged(b"\7\0\x08\0", struct.pack("<qq", 2, 5), (2, 1, 2), bytes(32)))
    assert read_tokens(tmp_path / "tokens", bytes(32), 300).ids.tolist() == [7, 8]
    beyond = struct.pack("<HH", 7, 300)
    wraps = struct.pack("<qqqqqq", 2**63 - 1, -2, 2, 5, 5, 5)
    (tmp_path / "tokens").write_bytes(forged(b"\7\0\x08\0", wraps, (2, 3, 2), bytes(32)))
    with pytest.raises(StateError, match="not in order"):
        read_tokens(tmp_path / "tokens", bytes(32), 300)
    (tmp_path / "tokens").write_bytes(forged(beyond, struct.pack("<qq", 2, 5), (2, 1, 2), bytes(32)))
    with pytest.raises(StateError, match="damaged"):
        read_tokens(tmp_path / "tokens", bytes(32), 300)


_SCRATCH: list[Path] = []


def _scratch() -> Path:
    if not _SCRATCH:
        import tempfile

        _SCRATCH.append(Path(tempfile.mkdtemp()))
    return _SCRATCH[0]


# --- erasure ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    with open_bench(tmp_path, make_store(tmp_path)) as bench:
        bench.offer()
        bench.train()
        yield bench, bench.node.state.run(bench.run.run_id) / "training"


def test_the_end_of_a_run_erases_its_token_files(run_folder: tuple[Any, Path], encoder: DocumentEncoder) -> None:
    bench, training = run_folder
    tokens_of(training / "tokens-train.bin", encoder, RECORDS)
    (training / ".tokens-evaluation.bin.abc").write_bytes(b"half")
    slot_end = fleet_pb2.End(slot=1, committed=True)
    bench.ask(bench.run.make(fleet_pb2.END, slot_end.SerializeToString()))
    assert len(list(training.iterdir())) == 2
    bench.end()
    assert not training.exists()


def test_removing_a_data_set_erases_token_files(run_folder: tuple[Any, Path], encoder: DocumentEncoder) -> None:
    bench, training = run_folder
    tokens = tokens_of(training / "tokens-train.bin", encoder, RECORDS)
    bench.node.data_sets.remove("faq")
    assert not list(training.iterdir())
    # Whoever trains on it at this moment keeps what was mapped.
    assert same(tokens, encoder.tokens(RECORDS))
