"""Embeddings do not depend on what a text is embedded beside, on threads, or on which attention computes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from confide.errors import ModelError
from confide.models.arithmetic import precision
from confide.rag import embedder as module
from confide.rag.embedder import Embedder
from confide.rag.encoders import bert, general, plain_attention
from confide.rag.encoders.bert import Bert
from confide.rag.encoders.bert_shape import shape_of
from confide.rag.encoders.general import General
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny_bert, tiny_llama

TEXTS = [" ".join(f"word{n * k % 11}" for n in range(length)) for k, length in enumerate((2, 40, 9, 40, 31, 33, 7, 40))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("embedder") / "tiny", head=False)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_chosen", precision._Chosen())
    precision.prefer("float32")


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.asarray((first * second).sum(axis=1))


def test_a_text_has_one_embedding_in_every_company(folder: Path) -> None:
    embedder = Embedder(folder)
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(embedder.embed(TEXTS), alone, atol=1e-5)


def test_long_texts_stand_beside_texts_of_their_length_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "_LONG", 10)
    lengths = [12, 3, 30, 12, 9, 30, 30, 4, 11, 90]
    batches = General(folder, torch.float32).batches([[0] * length for length in lengths], 60)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert [[lengths[place] for place in batch] for batch in batches] == [
        [3, 4, 9], [11], [12, 12], [30, 30], [30], [90],
    ]  # fmt: skip


def test_cores_that_share_the_batches_embed_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, threads = Embedder(folder), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = embedder.embed(TEXTS)
        monkeypatch.setattr(module, "_FEWEST_AT_ONCE", 64)
        torch.set_num_threads(3)
        np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=1e-5)
        assert torch.get_num_threads() == 3
        assert set(module._pool(3).map(lambda _: torch.get_num_threads(), range(12))) == {1}
        monkeypatch.setattr(Bert, "vectors", lambda model, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embedder.embed(TEXTS)
    finally:
        torch.set_num_threads(threads)


def rows_of(embedder: Embedder, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in embedder._tokenizer.encode_batch_fast(texts)]


@pytest.mark.parametrize("precise", ["float32", "bfloat16"])
def test_bert_as_it_is_written_down_is_the_librarys(folder: Path, precise: str) -> None:
    precision.prefer("float32" if precise == "float32" else "bfloat16")
    embedder = Embedder(folder)
    encoder = embedder.load_soon().result()
    assert isinstance(encoder, Bert)
    rows = sorted(rows_of(embedder, TEXTS), key=len)
    wide = np.concatenate([General(folder, torch.float32).vectors([row]) for row in rows])
    close = 1e-5 if precise == "float32" else 3e-2
    np.testing.assert_allclose(encoder.vectors(rows), wide, atol=close)
    np.testing.assert_allclose(embedder.embed(TEXTS)[0], encoder.vectors(rows_of(embedder, TEXTS[:1]))[0], atol=close)
    assert cosines(encoder.vectors(rows), wide).min() > 0.999


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_with_and_without_a_matrix_unit_an_embedding_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, matrix_unit: bool
) -> None:
    expected = Embedder(folder).embed(TEXTS)
    monkeypatch.setattr(bert, "_matrix_unit", lambda: matrix_unit)
    monkeypatch.setattr(bert, "_PLAIN_UP_TO", 20)
    if not matrix_unit:
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *_: 1 / 0)
    precision.prefer("bfloat16")
    assert cosines(Embedder(folder).embed(TEXTS), expected).min() > 0.999


def test_batches_hold_what_fits_by_length(folder: Path) -> None:
    shape = shape_of(folder)
    assert shape is not None
    encoder = bert.read(folder, shape, torch.float32)
    assert encoder is not None
    lengths = [12, 3, 30, 12, 90, 9]
    batches = encoder.batches([[0] * length for length in lengths], 40)
    assert [[lengths[place] for place in batch] for batch in batches] == [[3, 9, 12, 12], [30], [90]]


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"num_attention_heads": 5},
        {"hidden_size": True},
        {"layer_norm_eps": "small"},
    ],
)
def test_another_bert_is_left_to_the_library(folder: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert shape_of(tmp_path) is not None
    (tmp_path / "config.json").write_text(json.dumps(config | changed), "utf-8")
    assert shape_of(tmp_path) is None


def test_weights_under_other_names_are_left_to_the_library(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "odd")
    path = tmp_path / "odd" / "model.safetensors"
    tensors = load_file(path)
    save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    shape = shape_of(folder)
    assert shape is not None and bert.read(tmp_path / "odd", shape, torch.float32) is not None
    np.testing.assert_allclose(Embedder(tmp_path / "odd").embed(TEXTS), Embedder(folder).embed(TEXTS), atol=1e-6)
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, path, {"format": "pt"})
    assert bert.read(tmp_path / "odd", shape, torch.float32) is None
    with pytest.raises(ModelError, match=r"lacks 'encoder.layer.1.output.dense.bias'; take its whole folder"):
        Embedder(tmp_path / "odd").embed(TEXTS)


def test_a_model_that_cannot_be_loaded_is_told_by_embed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "torn")
    embedder = Embedder(tmp_path / "torn")
    path = tmp_path / "torn" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    embedder.load_soon()
    for _ in range(2):
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            embedder.embed(TEXTS)


@pytest.mark.parametrize("hidden", [False, True])
def test_plain_attention_is_the_fused_kernels(folder: Path, hidden: bool) -> None:
    model = General(folder, torch.float32).model
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if hidden:
        mask[1, 5:] = 0
    plain_attention.register()
    with torch.inference_mode():
        model.set_attn_implementation("sdpa")
        fused = model(input_ids=ids, attention_mask=mask).last_hidden_state
        model.set_attn_implementation(plain_attention.NAME)
        plain = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(plain[mask.bool()], fused[mask.bool()], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [-300.0, -80.0, 0.0, 60.0, 80.0, 300.0])
def test_plain_attention_is_exact_wherever_scores_lie(shift: float, dtype: torch.dtype) -> None:
    """An exponential has an end on both sides; a softmax has none."""
    drawn = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, generator=drawn) for _ in range(3))
    # One number more of each, the same for all, moves every score by `shift`.
    query = torch.cat([query, torch.full((2, 3, 9, 1), abs(shift) ** 0.5)], dim=-1)
    key = torch.cat([key, torch.full((2, 3, 9, 1), abs(shift) ** 0.5 * (-1 if shift < 0 else 1))], dim=-1)
    value = torch.cat([value, value[..., :1]], dim=-1)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # Scores are rounded as they are there; the rest is exact.
    weights = (query @ key.transpose(2, 3)).double().softmax(dim=-1)
    expected = (weights @ value.double()).transpose(1, 2).to(dtype)
    off = 2e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(plain_attention.mixed(query, key, value, 1.0), expected, atol=off, rtol=off)


def test_where_order_counts_or_scores_are_many_the_fused_kernel_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folder = tiny_llama(tmp_path / "llama")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(1, 13)[None]
    plain_attention.register()
    with torch.inference_mode():
        model.set_attn_implementation("sdpa")
        fused = model(input_ids=ids).last_hidden_state
        model.set_attn_implementation(plain_attention.NAME)
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, fused)
    unordered = torch.nn.Module()
    unordered.is_causal = False
    q = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    near, _ = plain_attention.attention(unordered, q, q, q, None)
    monkeypatch.setattr(plain_attention, "_MOST_SCORES", 0)
    monkeypatch.setattr(torch, "matmul", lambda *_: 1 / 0)
    far, _ = plain_attention.attention(unordered, q, q, q, None)
    torch.testing.assert_close(near, far)


def test_in_bfloat16_other_families_attend_plainly(folder: Path) -> None:
    assert General(folder, torch.float32).model.config._attn_implementation == "sdpa"
    assert General(folder, torch.bfloat16).model.config._attn_implementation == plain_attention.NAME


def test_large_libraries_are_imported_without_collecting_garbage(tmp_path: Path) -> None:
    code = f"""
import gc, sys
from pathlib import Path
from confide.rag.embedder import Embedder
from confide.rag.lexical import LexicalIndex
from confide.rag.stores.lance import LanceStore

collecting = {{}}

class Seen:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "lancedb", "bm25s"):
            collecting[name] = collecting.get(name, False) or gc.isenabled()

sys.meta_path.insert(0, Seen())
LanceStore(Path({str(tmp_path)!r}) / "store", 4)
LexicalIndex.build(["a"], ["one word"])
Embedder(Path({str(tiny_bert(tmp_path / "tiny", head=False))!r})).embed(["a"])
print(sorted(collecting.items()), gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[('bm25s', False), ('lancedb', False), ('torch', False)] True\n", done.stderr
