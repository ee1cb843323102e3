"""What a trainer and its worker processes tell each other, as JSON, raw float32 and safetensors in a folder.

    job.json specification.json         what is to be done
    received.f32 start.f32              the model to evaluate, and where training starts if that is another
    evaluation.jsonl                    the node's evaluation records
    batches-000000.safetensors          the micro-batches of each step, collated
    outcome.json trained.f32            what came of it
    failure-RANK.json                   why a worker failed (reports.py)
    progress.json                       how far the workers are (reports.py)

>>> import tempfile; from pathlib import Path; import torch
>>> folder = Path(tempfile.mkdtemp())
>>> write_batches(folder, 0, [Batch({"input_ids": torch.zeros(1, 2, dtype=torch.int64)}, torch.ones(1, 2), 2)])
>>> [part.count for part in read_batches(folder, 0)]
[2]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from confide.errors import DataError, TrainingError
from confide.methods.base import Batch
from confide.runs.fields import Record
from confide.runs.metrics import Metric
from confide.runs.specification import Specification, parse_canonical
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Outcome:
    """Of one local step: metrics of the received model, and the trained tensors with their mean loss, if trained.

    update: in place of them where exact integers travel (privacy.noise "shared").
    """

    metrics: dict[Metric, float] = field(default_factory=dict)
    trained: NDArray[np.float32] | None = None
    loss: float | None = None
    update: NDArray[np.float32] | None = None


class Job(BaseModel):
    """job.json.

    base: the base model's folder. states: where optimizer state is kept. threads: of all processes together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base: str
    states: str
    device: str
    processes: int
    threads: int | None
    round: int
    seed: int
    trains: bool


def write_job(
    folder: Path,
    job: Job,
    specification: Specification,
    received: NDArray[np.float32],
    start: NDArray[np.float32] | None,
    evaluation: Sequence[Record],
) -> None:
    """start: None when training starts from the received model, or not at all."""
    (folder / "job.json").write_bytes(job.model_dump_json().encode())
    (folder / "specification.json").write_bytes(specification.canonical_bytes())
    received.astype("<f4", copy=False).tofile(folder / "received.f32")
    if start is not None:
        start.astype("<f4", copy=False).tofile(folder / "start.f32")
    with (folder / "evaluation.jsonl").open("w", encoding="utf-8") as file:
        for record in evaluation:
            file.write(_line(record))


def _line(record: Record) -> str:
    # Columns that JSON cannot hold are no text: no method reads them.
    kept = {name: value for name, value in record.items() if isinstance(value, str | int | float | bool | list | dict)}
    try:
        return json.dumps(kept) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError("a record of the evaluation split holds values that are neither text nor numbers") from error


def read_job(folder: Path) -> tuple[Job, Specification]:
    """The job and its specification."""
    job = Job.model_validate_json((folder / "job.json").read_bytes())
    return job, parse_canonical((folder / "specification.json").read_bytes())


def read_evaluation(folder: Path) -> list[dict[str, Any]]:
    """The evaluation records."""
    with (folder / "evaluation.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_batches(folder: Path, step: int, parts: Sequence[Batch]) -> None:
    """Keep one step's micro-batches."""
    tensors = {"counts": torch.tensor([part.count for part in parts], dtype=torch.int64)}
    for index, part in enumerate(parts):
        tensors[f"{index}/labels"] = part.labels.contiguous()
        tensors |= {f"{index}/inputs/{name}": tensor.contiguous() for name, tensor in part.inputs.items()}
    save_file(tensors, _batches(folder, step))


def read_batches(folder: Path, step: int) -> list[Batch]:
    """One step's micro-batches."""
    tensors = load_file(_batches(folder, step))
    return [
        Batch(
            {name.split("/", 2)[2]: t for name, t in tensors.items() if name.startswith(f"{index}/inputs/")},
            tensors[f"{index}/labels"],
            count,
        )
        for index, count in enumerate(tensors["counts"].tolist())
    ]


def _batches(folder: Path, step: int) -> Path:
    return folder / f"batches-{step:06d}.safetensors"


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep what came of the step."""
    if outcome.trained is not None:
        outcome.trained.astype("<f4", copy=False).tofile(folder / "trained.f32")
    document = {"metrics": outcome.metrics, "loss": outcome.loss}
    (folder / "outcome.json").write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def read_outcome(folder: Path) -> Outcome:
    """What came of the step. Raises TrainingError when a worker ended without an outcome."""
    try:
        document = json.loads((folder / "outcome.json").read_bytes())
    except (OSError, ValueError) as error:
        raise TrainingError("the worker processes ended without an outcome; see this node's log") from error
    metrics = {Metric(name): float(value) for name, value in document["metrics"].items()}
    path = folder / "trained.f32"
    trained = np.fromfile(path, dtype="<f4") if path.exists() else None
    return Outcome(metrics, trained, document["loss"])
