"""The benchmark of routing, on made-up embeddings: what it says of organizations that are told apart, and of none."""

import numpy as np
import pytest
from confide_simulations.benchmarks.rag import retrieval
from confide_simulations.benchmarks.rag.retrieval import Material, bytes_a_node, measured

D = 64


def material(count: int, each: int) -> Material:
    """Subjects around axes of their own; each document's question lies near it."""
    random = np.random.default_rng(3)
    labels = tuple(f"subject-{number}" for number in range(count) for _ in range(each))
    axes = np.repeat(np.eye(D)[:count], each, axis=0)
    documents = axes + random.normal(size=axes.shape) / np.sqrt(D)
    questions = documents + 0.3 * random.normal(size=axes.shape) / np.sqrt(D)
    unit = lambda rows: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return Material(labels, ("A sentence of a document.",) * len(labels), unit(questions), unit(documents))


def test_subjects_save_inquiries_and_chance_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SIZES", (4, 8))
    rows = measured(material(8, 120), 100, lambda text: None)
    by_subject = [row for row in rows if row["dealt"] != retrieval.RANDOM]
    at_random = [row for row in rows if row["dealt"] == retrieval.RANDOM]
    assert len(by_subject) == 8 and len(at_random) == 2
    assert all(row["recall_kept"] > 0.95 and row["inquiries_saved"] >= 0.6 for row in by_subject)
    assert all(row["recall_kept"] < 0.95 or row["inquiries_saved"] < 0.3 for row in at_random)
    assert all(row["bytes_routed"] < row["bytes_asking_all"] for row in by_subject)


def test_bytes_are_those_of_sealed_documents() -> None:
    sizes = bytes_a_node(["A sentence of a document."] * 3)
    assert 2048 < sizes["inquiry"] < 2048 + 128 and 8192 < sizes["answer"] < 8192 + 128
