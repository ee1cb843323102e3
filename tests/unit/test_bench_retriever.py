"""The comparison of two encoders counts ranks, and pairs questions over seeds."""

from pathlib import Path

import numpy as np
import pytest
from confide.rag.embedder import Embedder
from confide_simulations.benchmarks.rag import retriever
from confide_simulations.benchmarks.rag.retriever import Compared, compare, figures

from tests.tiny_models import tiny_bert

PAIRS = [(f"what of number {n}?", f"number {n} is about walls and fees {n * n}") for n in range(12)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(tiny_bert(tmp_path_factory.mktemp("retriever") / "tiny", head=False))


def test_an_encoder_is_no_better_than_itself(encoder: Embedder) -> None:
    answers = [answer for _, answer in PAIRS]
    found = compare(encoder, encoder, PAIRS[:5], [*answers, *answers])
    for values in found.values.values():
        assert values.shape == (5, 2) and (values[:, 0] == values[:, 1]).all() and (values <= 1).all()
    table = figures([found], 0)["ndcg_at_10"]
    assert (table["difference"], table["interval"], table["better_in"]) == (0.0, [0.0, 0.0], 0)


def test_a_gain_is_of_the_place_at_which_the_answer_stands(encoder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter([np.array([0, 3, 20]), np.array([0, 0, 6])])
    monkeypatch.setattr(retriever, "_ranks", lambda *_: next(ranks))
    found = compare(encoder, encoder, PAIRS[:3], [answer for _, answer in PAIRS])
    np.testing.assert_allclose(found.values["ndcg_at_10"], [[1, 1], [1 / np.log2(5), 1], [0, 1 / 3]])
    assert found.values["recall_at_5"].tolist() == [[1, 1], [1, 1], [0, 0]]


def test_seeds_of_one_question_are_one_draw() -> None:
    names = retriever.MEASURES
    runs = [
        Compared(["a", "b"], dict.fromkeys(names, np.array([[0.0, 1.0], [0.5, 0.5]]))),
        Compared(["a", "c"], dict.fromkeys(names, np.array([[0.0, 1.0], [0.5, 0.5]]))),
    ]
    table = figures(runs, 0)["recall_at_5"]
    assert (table["before"], table["after"], table["difference"], table["better_in"]) == (0.25, 0.75, 0.5, 2)
    assert 0.0 <= table["interval"][0] <= 0.5 <= table["interval"][1] <= 1.0


def test_an_adapter_is_added_to_its_base(encoder: Embedder, tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(encoder.folder)
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "adapter")
    whole = Embedder(retriever.merged(tmp_path / "adapter", encoder.folder, tmp_path / "whole"))
    ids = torch.tensor([encoder._tokenizer.encode(PAIRS[0][1]).ids])
    with torch.inference_mode():
        expected = lora(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy()
    assert float(whole.embed([PAIRS[0][1]])[0] @ expected / np.linalg.norm(expected)) > 0.999
    assert whole.sha256 != encoder.sha256


def test_abstention_is_calibrated_on_what_no_node_had(encoder: Embedder, tmp_path: Path) -> None:
    pairs = [(f"Ask of wall {number}", f"Ask of wall {number}") for number in range(30)]
    found = retriever.abstention(encoder, pairs[:24], [answer for _, answer in pairs], tmp_path / "own")
    assert set(found) == set(retriever.ABSTENTION) and found["abstention_auroc"] > 0.9


def test_what_the_seeds_gave_is_told_after_each(encoder: Embedder) -> None:
    told = [(dict.fromkeys(retriever.ABSTENTION, 0.5), dict.fromkeys(retriever.ABSTENTION, 0.75))]
    answers = [answer for _, answer in PAIRS]
    one = compare(encoder, encoder, PAIRS[:5], answers)
    found = retriever.Found([one], [one], told, [1.0]).to_json()
    assert found["abstention"]["answer_auroc"] == {"before": 0.5, "after": 0.75, "by_seed": [[0.5, 0.75]]}
    assert found["held_out"] == 5 and found["training_s"] == [1.0]
