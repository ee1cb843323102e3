"""Embeddings do not depend on what a text is embedded beside, on threads, or on which attention computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from confide.models import precision
from confide.rag import embedder as module
from confide.rag import plain_attention
from confide.rag.embedder import Embedder

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


def test_long_texts_stand_beside_texts_of_their_length_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONG", 10)
    lengths = [12, 3, 30, 12, 9, 30, 30, 4, 11, 90]
    batches = module._batches([[0] * length for length in lengths], 60)
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
        monkeypatch.setattr(module, "_embedded", lambda model, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embedder.embed(TEXTS)
    finally:
        torch.set_num_threads(threads)


def test_in_bfloat16_embeddings_stay_where_they_were(folder: Path) -> None:
    wide = Embedder(folder)
    expected = wide.embed(TEXTS)
    assert wide._model.config._attn_implementation == "sdpa"
    precision.prefer("bfloat16")
    narrow = Embedder(folder)
    assert cosines(narrow.embed(TEXTS), expected).min() > 0.999
    assert narrow._model.config._attn_implementation == plain_attention.NAME


@pytest.mark.parametrize("hidden", [False, True])
def test_plain_attention_is_the_fused_kernels(folder: Path, hidden: bool) -> None:
    embedder = Embedder(folder)
    embedder.embed(TEXTS[:1])
    model = embedder._model.float()
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
