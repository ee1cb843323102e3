"""`confide bench retrieval`: routing by noised centroids against asking every organization.

Organizations are simulated: builders with a FAQ on construction, developers with Python's, and clinics each with the
findings of one organ system of the Human Phenotype Ontology ("mixed"); clinics alone, whose subjects overlap
("clinics"); or the documents of the mixed ones dealt at random, where no routing can help. Outlines, routing, inquiries
and their sealing are the product's; the search itself is by the same embeddings in one matrix, since a node's own
search is measured elsewhere (`confide bench rag`). The margin was chosen on questions of even number among mixed
organizations; figures are of the odd ones.
"""

import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confide.errors import DataError
from confide.identity.keys import SigningKey
from confide.inquiries.asking import INQUIRY_STEP
from confide.inquiries.documents import Answer, IndexCard, Inquiry, Quotation, digest, info_of_answer, signed
from confide.inquiries.outline import noised
from confide.inquiries.routing import MANY, MARGIN, chosen, known_of
from confide.inquiries.sealed import BoxKey, seal
from confide.privacy.noise.randomness import SecureRandom
from confide.rag.embedder import Embedder
from confide_client.retrieval.desk import ANSWER_STEP
from numpy.typing import NDArray
from rich.console import Console

from confide_simulations import assets
from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.demo.rag.sets import asked_of_python

SIZES = (4, 8, 12, 20)
TRADES = ("builders", "developers")
MIXED, CLINICS, RANDOM = "mixed", "clinics", "at random"
EPSILONS = (1.0, 2.0, 4.0)
DELTA = 1e-6
TOP = 5
QUOTES = 3


@dataclass(frozen=True)
class Material:
    """Documents and the question to each, row by row. labels: the subject of each. texts: of the documents."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    questions: NDArray[np.float32]
    documents: NDArray[np.float32]


def material(embedder: Embedder, each: int, say: assets.Say) -> Material:
    """At most `each` documents a subject, embedded."""
    rows = [("builders", r["question"], r["answer"]) for r in assets.construction_faq(say)]
    try:
        rows += [("developers", question, answer) for _, question, answer in asked_of_python(say)]
    except DataError as error:
        say(f"without Python's FAQ: {error}")
    rows += [(one["system"], f"What is {one['name']}?", one["definition"]) for one in assets.phenotypes(say)]
    by_subject: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        by_subject.setdefault(row[0], []).append(row)
    kept: list[tuple[str, str, str]] = []
    systems = sorted(set(by_subject) - set(TRADES), key=lambda subject: (-len(by_subject[subject]), subject))
    for subject in [*(one for one in TRADES if one in by_subject), *systems[: max(SIZES)]]:
        own = by_subject[subject]
        random.Random(0).shuffle(own)
        kept += own[:each]
    say(f"embedding {len(kept)} documents and as many questions")
    texts = tuple(row[2] for row in kept)
    return Material(
        tuple(row[0] for row in kept), texts, embedder.embed([row[1] for row in kept]), embedder.embed(list(texts))
    )


def of_organizations(found: Material, count: int, deal: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows that are used, the organization of each)."""
    subjects = [one for one in dict.fromkeys(found.labels) if deal != CLINICS or one not in TRADES][:count]
    rows = np.array([row for row, label in enumerate(found.labels) if label in subjects])
    owner = np.array([subjects.index(found.labels[row]) for row in rows])
    return rows, owner if deal != RANDOM else np.random.default_rng(0).permutation(owner)


def held_out(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places in `rows` of the questions that figures are of: of odd number, at most so many, at random."""
    odd = np.arange(1, len(rows), 2)
    return np.sort(np.random.default_rng(0).permutation(odd)[:most])


def routed(
    found: Material, rows: NDArray[np.int64], owner: NDArray[np.int64], places: NDArray[np.int64], epsilon: float
) -> NDArray[np.bool_]:
    """(questions, organizations): whom the product would ask."""
    count, dimension = int(owner.max()) + 1, found.documents.shape[1]
    cards = {}
    for number in range(count):
        own = {"all": found.documents[rows[owner == number]]}
        card = IndexCard(
            node=f"node-{number}", key="0" * 64, embedder="0" * 64, dimension=dimension, issued_at=0, expires_at=1,
            outline=noised(own, epsilon=epsilon, delta=DELTA, random=SecureRandom()),
        )  # fmt: skip
        cards[card.node] = known_of(card, "0" * 64, dimension)
    asked = np.zeros((len(places), count), np.bool_)
    for line, place in enumerate(places):
        names = chosen(found.questions[rows[place]].astype(float), cards)
        asked[line, [int(name.removeprefix("node-")) for name in names]] = True
    return asked


def figures(
    found: Material, rows: NDArray[np.int64], owner: NDArray[np.int64], places: NDArray[np.int64],
    asked: NDArray[np.bool_],
) -> dict[str, Any]:  # fmt: skip
    """Recall at 5 of asking all and of routing, and what is saved."""
    scores = found.questions[rows[places]] @ found.documents[rows].T
    line = np.arange(len(places))
    better = scores > scores[line, places][:, None]
    there = asked[:, owner]
    everybody = better.sum(axis=1) < TOP
    hit = ((better & there).sum(axis=1) < TOP) & there[line, places]
    return {
        "questions": len(places),
        "recall_asking_all": round(float(everybody.mean()), 4),
        "recall_routed": round(float(hit.mean()), 4),
        "recall_kept": round(float(hit.mean() / everybody.mean()), 4),
        "nodes_asked": round(float(asked.sum(axis=1).mean()), 2),
        "inquiries_saved": round(float(1 - asked.mean()), 4),
    }


def bytes_a_node(texts: Sequence[str]) -> dict[str, int]:
    """What one inquiry and its answer take, sealed: made by the product's code with real quotations."""
    key, signer = BoxKey(), SigningKey.generate()
    inquiry = Inquiry(
        id=secrets.token_hex(16), asker="asker", node="node", purpose="bench", question=texts[0][:200] or "?",
        quotes=QUOTES, issued_at=1, expires_at=2, reply_key=key.public.hex(),
    )  # fmt: skip
    data = signed(inquiry, signer)
    quotes = tuple(
        Quotation(
            collection="papers",
            document=secrets.token_hex(16),
            source="papers.jsonl",
            version=1,
            sha256="0" * 64,
            text_sha256="0" * 64,
            start=0,
            stop=len(text[:600]),
            text=text[:600],
        )
        for text in texts[:QUOTES]
    )
    answer = Answer(
        id=inquiry.id, inquiry=digest(data), node="node", asker="asker", answered_at=1, outcome="quotes", found=QUOTES,
        quotes=quotes,
    )  # fmt: skip
    there = seal(data, key.public, b"", step=INQUIRY_STEP)
    back = seal(signed(answer, signer), key.public, info_of_answer(answer.inquiry), step=ANSWER_STEP)
    return {"inquiry": len(there), "answer": len(back)}


def measured(found: Material, questions: int, say: assets.Say) -> list[Mapping[str, Any]]:
    """One row for each number of organizations, deal and epsilon."""
    size = sum(bytes_a_node(found.texts).values())
    table: list[Mapping[str, Any]] = []
    for count in SIZES:
        for deal in (MIXED, CLINICS, RANDOM):
            rows, owner = of_organizations(found, count, deal)
            places = held_out(rows, questions)
            for epsilon in EPSILONS if deal == MIXED else EPSILONS[:1]:
                row = figures(found, rows, owner, places, routed(found, rows, owner, places, epsilon))
                row = {
                    "organizations": count,
                    "dealt": deal,
                    "epsilon": epsilon,
                    "fewest_documents": int(np.bincount(owner).min()),
                    **row,
                    "bytes_asking_all": count * size,
                    "bytes_routed": round(row["nodes_asked"] * size),
                }
                say(", ".join(f"{name} {value}" for name, value in row.items()))
                table.append(row)
    return table


def retrieval(
    json: Annotated[Path, typer.Option(help="Where the figures go.", dir_okay=False)] = Path("bench-retrieval.json"),
    documents: Annotated[int, typer.Option(help="Of one organization at most.", min=50)] = 300,
    questions: Annotated[int, typer.Option(help="At most, of each size.", min=50)] = 1000,
) -> None:
    """Recall kept, and inquiries and bytes saved, by routing to 4 to 20 organizations; about 2 CPU-minutes."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False)

    found = material(Embedder(assets.minilm(say)), documents, say)
    result: dict[str, Any] = {
        "meta": meta(
            seed=0,
            config={"documents": documents, "questions": questions, "margin": MARGIN, "many": MANY, "delta": DELTA},
        ),
        "bytes_a_node": bytes_a_node(found.texts),
        "rows": measured(found, questions, say),
    }
    write_result(json, result)
