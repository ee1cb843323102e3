"""A process that scores models on the held-out questions and trains the "alone" baselines.

    python -m confide_simulations.demo.worker work.json results.jsonl

It appends one JSON line per finished job, {"label", "kind", "value", "seconds"}, so that its parent can show progress.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """One thing to find out.

    score: mean NLL of the model in `model` (raw trainable tensors) on the held-out questions, in nats per token.
    alone: train the initial model in `model` on `shard` for all rounds of the specification, then score it.
    answer: the text that the model in `model` answers to `question`.
    """

    kind: Literal["score", "alone", "answer"]
    label: str
    model: str
    shard: str = ""
    question: str = ""


@dataclass(frozen=True)
class Work:
    """All jobs of one worker; paths are files of the demo's folder."""

    specification: str
    base: str
    held_out: str
    threads: int
    jobs: tuple[Job, ...]

    def write(self, path: Path) -> Path:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Work":
        """What `write` wrote."""
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return cls(**{**document, "jobs": tuple(Job(**job) for job in document["jobs"])})


class _Bench:
    """The base model, loaded once, with adapters put into it for each job."""

    def __init__(self, work: Work) -> None:
        from confide.models.architecture import load_tokenizer
        from confide.runs.specification import parse_canonical
        from confide_client.training import LocalTrainer

        from confide_simulations.demo.shards import read_records

        self.specification = parse_canonical(Path(work.specification).read_bytes())
        self.read_records = read_records
        base, self._folder = Path(work.base), Path(work.specification).parent
        self._tokenizer = load_tokenizer(base)
        self.held_out = read_records(Path(work.held_out))
        self._trainer = LocalTrainer(self.specification, base, node="worker", folder=self._folder, threads=work.threads)

    def score(self, model: NDArray[np.float32]) -> float:
        from confide.proto import fleet_pb2
        from confide.runs.metrics import Metric
        from confide_client.data.datasets import LocalData

        slot = fleet_pb2.SlotOpen(slot=1, round=1, attempt=1, evaluate_only=True)
        contribution = self._trainer.contribute(model, LocalData((), self.held_out), slot)
        return float(contribution.metrics[Metric.EVAL_LOSS])

    def alone(self, initial: NDArray[np.float32], job: Job) -> float:
        """The same local steps as in the federation, on this shard only; each round starts where the last ended."""
        from confide.proto import fleet_pb2
        from confide_client.data.datasets import LocalData

        trainer, model = self._trainer.for_node(job.label, self._folder), initial
        data = LocalData(self.read_records(Path(job.shard)), ())
        for round_number in range(1, self.specification.federation.rounds + 1):
            slot = fleet_pb2.SlotOpen(slot=round_number, round=round_number, attempt=1)
            model = model + trainer.contribute(model, data, slot).update
        return self.score(model)

    def answer(self, model: NDArray[np.float32], question: str, max_new_tokens: int = 48) -> str:
        import torch
        from confide.models.answering import prompt_ids
        from confide.models.trainable import load_trainable

        tokenizer, network = self._tokenizer, self._trainer.model
        load_trainable(network, self._trainer.schema.unflatten(model))
        network.eval()
        turns = [{"role": "user", "content": question}]
        asked = prompt_ids(tokenizer, turns)
        with torch.no_grad():
            tokens = network.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
            )
        text: str = tokenizer.decode(tokens[0, asked.shape[1] :], skip_special_tokens=True)
        return text.strip()


def main(arguments: Sequence[str]) -> None:
    """Do every job of the work file."""
    work = Work.read(Path(arguments[0]))
    bench = _Bench(work)
    do: Mapping[str, Callable[[Job, NDArray[np.float32]], float | str]] = {
        "score": lambda job, model: bench.score(model),
        "alone": lambda job, model: bench.alone(model, job),
        "answer": lambda job, model: bench.answer(model, job.question),
    }
    with Path(arguments[1]).open("a", encoding="utf-8") as results:
        for job in work.jobs:
            started = time.monotonic()
            value = do[job.kind](job, np.frombuffer(Path(job.model).read_bytes(), "<f4"))
            line = {"label": job.label, "kind": job.kind, "value": value, "seconds": time.monotonic() - started}
            results.write(json.dumps(line) + "\n")
            results.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
