"""A cross-encoder over the first of a search: its kind, its scores, and that it is used only where it is better."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from confide.errors import ConfideError, DataError, ModelError, StateError
from confide.rag.access import Caller
from confide.rag.calibration import Calibration
from confide.rag.reranker import Reranker, reranked
from confide_server.rag.answering import Answerer
from confide_server.rag.calibrating import by_chance, calibrate
from confide_server.rag.evaluating import evaluate
from confide_server.rag.questions import Gold, Question, resolved
from confide_server.rag.reading_room import ReadingRoom
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.rag_worlds import FEES, World, embedder
from tests.tiny_models import make_tokenizer
from tests.unit.test_rag_commands import WORDS, confide

OPERATOR = Caller.operator("clinic")


def cross_encoder(folder: Path, *, labels: int = 1, kind: str = "SequenceClassification") -> Path:
    """Of random weights."""
    tokenizer = make_tokenizer(folder, chat=False, mask=True)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=128, num_labels=labels, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    getattr(transformers, f"BertFor{kind}")(config).save_pretrained(folder)
    return folder


def gold(place: int) -> int:
    """Where the answer to a question is: in every third case with the question's own word, else with the next one."""
    return place if place % 3 == 0 else (place + 1) % len(WORDS)


class Knowing(Reranker):
    """The model's hash, and scores of its own, which are right."""

    def scores(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        [place] = [n for n, word in enumerate(WORDS) if f" {word} " in question]
        return np.array([f" {WORDS[gold(place)]} " in text for text in texts], np.float32)


def test_the_first_passages_come_in_the_models_order_and_show_its_score(tmp_path: Path) -> None:
    world, model = World(tmp_path / "world"), Reranker(cross_encoder(tmp_path / "cross"))
    lines = [json.dumps({"text": f"The {word} costs {n + 10} crowns at the desk."}) for n, word in enumerate(WORDS)]
    world.add([world.file("faq.jsonl", "\n".join(lines)), world.file("fees.md", FEES)])
    plain = world.library.search(OPERATOR, "leaflets", "What does the anchor cost?", embedder(), limit=20)
    found = reranked(plain, model, first=6)
    scores = [one.cross for one in found.found[:6]]
    assert None not in scores and scores == sorted(scores, key=lambda one: -(one or 0)) and len(set(scores)) > 1
    assert {one.passage.name for one in found.found[:6]} == {one.passage.name for one in plain.found[:6]}
    assert found.found[6:] == plain.found[6:]
    texts = [one.passage.text for one in plain.found[:6] if not one.passage.headings]
    alone = [model.scores(plain.question, [text])[0] for text in texts]
    assert np.allclose(model.scores(plain.question, texts), alone, atol=1e-4), "padding changes nothing"
    assert model.scores(plain.question, ["crowns " * 3000]).shape == (1,), "a long text is cut"


def test_what_is_no_cross_encoder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="and no cross-encoder"):
        Reranker(embedder().folder)
    with pytest.raises(ModelError, match="sorts texts into 2 classes"):
        Reranker(cross_encoder(tmp_path / "two", labels=2))
    folder = cross_encoder(tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 'classifier\.weight'"):
        Reranker(folder).scores("a", ["b"])


def test_calibration_keeps_it_only_where_it_is_better(tmp_path: Path) -> None:
    world, folder = World(tmp_path / "world"), cross_encoder(tmp_path / "cross")
    lines = [
        json.dumps({"id": str(n), "text": f"A visit to the {word} desk costs {n + 10} crowns."})
        for n, word in enumerate(WORDS)
    ]
    world.add([world.file("faq.jsonl", "\n".join(lines))])
    collection, searcher = world.library.opened(OPERATOR, "leaflets")
    questions = [
        Question(
            id=word, question=f"What is after the {word} desk?",
            gold=(Gold(source="faq.jsonl", record=str(gold(n))),),
        )
        for n, word in enumerate(WORDS)
    ]  # fmt: skip
    asked = resolved(collection, questions)
    nowhere = [replace(one, passages=frozenset({"none.0"})) for one in asked]
    with pytest.raises(DataError, match="none finds its passage first"):
        calibrate(collection, searcher, embedder(), nowhere, OPERATOR, most_risk=None)
    plain = calibrate(collection, searcher, embedder(), asked, OPERATOR, most_risk=None, reranker=Reranker(folder))
    assert plain.calibration.reranker is None, "random weights are no better"
    knowing = Knowing(folder)
    done = calibrate(collection, searcher, embedder(), asked, OPERATOR, most_risk=None, reranker=knowing)
    assert done.calibration.reranker is not None and done.calibration.reranker.sha256 == knowing.sha256
    done.calibration.save(collection.calibration_folder)
    assert Calibration.load(collection.calibration_folder) == done.calibration
    answer = Answerer(world.library, embedder(), reranker=knowing).answer(questions[0].question, OPERATOR, ["leaflets"])
    assert answer.abstained or WORDS[0] in answer.text
    for reranker in (None, Reranker(cross_encoder(tmp_path / "other", labels=1))):
        if reranker is not None:
            reranker.sha256 = "ab" * 32
        with pytest.raises(StateError, match="was calibrated with the cross-encoder"):
            Answerer(world.library, embedder(), reranker=reranker).answer("visit", OPERATOR, ["leaflets"])
        with pytest.raises(StateError, match="was calibrated with the cross-encoder"):
            ReadingRoom(world.library.root, embedder().folder).search(OPERATOR, "leaflets", "visit")
    room = ReadingRoom(world.library.root, embedder().folder, folder)
    assert room.search(OPERATOR, "leaflets", "visit").ranking.found, "the console names it too"
    figures = evaluate(
        collection, searcher, embedder(), asked, OPERATOR, world.library.root, reranker=knowing
    ).figures  # fmt: skip
    table = figures["retrieval"]
    assert table["reranked"]["ndcg_at_10"]["mean"] > table["hybrid"]["ndcg_at_10"]["mean"] + 0.1


def test_on_the_command_line(tmp_path: Path) -> None:
    cross = str(cross_encoder(tmp_path / "cross"))
    (tmp_path / "fees.md").write_text(FEES)
    confide(tmp_path, "add", "leaflets", str(tmp_path / "fees.md"))
    shown = confide(tmp_path, "search", "leaflets", "What does a visit cost?", "--reranker", cross, "--limit", "1")
    assert shown.exit_code == 0 and shown.output.startswith("cross-encoder ") and shown.output.count("BM25") == 1
    assert confide(tmp_path, "ask", "leaflets", "What does a visit cost?", "--reranker", cross).exit_code in {0, 3}
    refused = confide(tmp_path, "search", "leaflets", "visit", "--reranker", str(embedder().folder))
    assert isinstance(refused.exception, ConfideError)


def test_a_gain_that_chance_could_make_is_none() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(400, 60, 12))
    assert 0.02 < np.mean([by_chance(one) < 0.05 for one in noise]) < 0.09, "of twelve tried at once, one in twenty"
    assert by_chance(noise[0] + 0.8) < 0.01
    assert by_chance(np.zeros((30, 4))) == 1.0
