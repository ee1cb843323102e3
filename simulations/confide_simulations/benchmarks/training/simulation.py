"""`confide bench simulation`: what a simulation costs beyond the local steps that it simulates.

The same local steps are taken twice: by bare trainers in as many processes as there are workers, and in a simulation,
with everything that the product does around them (set-up, signatures, checks, journals, rounds, outer step). Ray's
start is left out; making the virtual nodes' keys, roster and shards is not. The steps are timed before and after, since
a busy machine changes its speed.
"""

import json as json_module
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

_SAMPLE = 4
"""Contributions by which each process times the bare steps."""


def simulation(
    json: Annotated[Path | None, typer.Option(help="Write the full result here.")] = None,
    nodes: Annotated[int, typer.Option(help="Virtual nodes.", min=3, max=100)] = 100,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    compute: Annotated[
        float, typer.Option(help="Seconds of local steps of one node and round, about.", min=0.01)
    ] = 2.0,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 2,
    sealed: Annotated[bool, typer.Option(help="Also a sealed simulation.")] = True,
) -> None:
    """Wall time of a simulation over that of its bare local steps; unsealed, and sealed beside it."""
    from confide_simulations.benchmarks.meta import meta, write_result
    from confide_simulations.benchmarks.privacy.task import write_start
    from confide_simulations.simulate.engine import Engine, Resources

    console = Console()
    with tempfile.TemporaryDirectory(prefix="confide-bench-simulation-") as name:
        folder = Path(name)
        base = folder / "base"
        write_start((text for record in _records(0) for text in record.values()), base, width=64)
        steps = max(1, round(compute / _one_step(folder, base)))
        shards = {f"node-{number:03d}": _shard(folder, number) for number in range(nodes)}
        found: dict[str, Any] = {}
        with Engine(Resources(workers=workers), nodes=nodes) as engine:
            for kind in ("none", "sealed")[: 1 + sealed]:
                console.print(f"{kind}: {nodes} nodes, {rounds} rounds, {steps} local steps", highlight=False)
                found[kind] = _measure(folder / kind, engine, base, shards, rounds, steps, kind)
                console.print_json(data=found[kind])
    config = {"nodes": nodes, "rounds": rounds, "local_steps": steps, "compute_s": compute, "workers": workers}
    if json is not None:
        write_result(json, {"overhead": found["none"]["ratio"], **found, "meta": meta(seed=1, config=config)})


def specification(base: Path, rounds: int, steps: int, kind: str) -> Any:
    """The run that is simulated: a small Llama in full."""
    from confide.models.store import folder_digest
    from confide.runs.specification import parse_document

    document = {
        "version": 1,
        "name": "overhead",
        "reproducible": True,
        "seed": 1,
        "model": {"sha256": folder_digest(base)},
        "adapter": {"kind": "full"},
        "method": {"name": "sft", "max_length": 64},
        "training": {"local_steps": steps, "batch_size": 8, "learning_rate": 1e-3},
        "federation": {"rounds": rounds, "data": "shard", "clip_norm": 4.0},
        "sealing": {"kind": kind, "bits": 8},
    }
    return parse_document(document, "the benchmark's specification")


def _measure(
    folder: Path, engine: Any, base: Path, shards: Mapping[str, Path], rounds: int, steps: int, kind: str
) -> dict[str, Any]:
    from confide_simulations.simulate.simulation import Job, Simulation

    spec = specification(base, rounds, steps, kind)
    job = Job(specification=spec, base=base, shards=shards, evaluation=0.0)
    before = _bare(base, next(iter(shards.values())), rounds, steps, engine.workers)
    began = time.monotonic()
    marks: list[float] = []
    finished = Simulation(folder, job).run(
        engine, lambda event, data: marks.append(time.monotonic() - began) if event == "round_committed" else None
    )
    wall_s = time.monotonic() - began
    after = _bare(base, next(iter(shards.values())), rounds, steps, engine.workers)
    if [len(entry["contributors"]) for entry in finished.manifest["rounds"]] != [len(shards)] * rounds:
        raise AssertionError("not every node contributed to every round")
    pure_s = (before + after) / 2 * len(shards) * rounds / engine.workers
    later = marks[-1] - marks[0]
    return {
        "ratio": round(wall_s / pure_s, 3),
        # Without the first round, in which workers import torch and load the model: None for one round.
        "later_rounds_ratio": round(later / (pure_s * (rounds - 1) / rounds), 3) if rounds > 1 else None,
        "wall_s": round(wall_s, 2),
        "pure_compute_s": round(pure_s, 2),
        "contribution_s": {"before": round(before, 4), "after": round(after, 4)},
        "beyond_compute_per_node_and_round_s": round((wall_s - pure_s) * engine.workers / (len(shards) * rounds), 4),
        "round_ends_s": [round(mark, 2) for mark in marks],
    }


def _bare(base: Path, shard: Path, rounds: int, steps: int, processes: int) -> float:
    """Mean wall seconds of one contribution, in as many processes at once as the simulation has workers."""
    arguments = [str(base), str(shard), str(rounds), str(steps), str(_SAMPLE)]
    command = [sys.executable, "-m", "confide_simulations.benchmarks.training.simulation", *arguments]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    outputs = [process.communicate()[0] for process in running]
    return sum(float(json_module.loads(text)) for text in outputs) / processes


def _one_step(folder: Path, base: Path) -> float:
    return bare_contribution(base, _shard(folder, 0), 1, 20, 2) / 20


def bare_contribution(base: Path, shard: Path, rounds: int, steps: int, count: int) -> float:
    """Mean wall seconds of one contribution of a trainer by itself, one thread; the first one is not counted."""
    from confide.models.trainable import initial_state
    from confide.proto import fleet_pb2
    from confide_client.data.datasets import LocalData
    from confide_client.training import LocalTrainer

    spec = specification(base, rounds, steps, "none")
    records = [json_module.loads(line) for line in shard.read_text().splitlines()]
    data = LocalData(train=records, evaluation=[])
    with tempfile.TemporaryDirectory() as folder:
        trainer = LocalTrainer(spec, base, node="bare", folder=Path(folder), threads=1)
        model = trainer.schema.flatten(initial_state(spec, base))
        spent = []
        for number in range(count + 1):
            began = time.monotonic()
            trainer.contribute(model, data, fleet_pb2.SlotOpen(slot=number + 1, round=1, attempt=1))
            spent.append(time.monotonic() - began)
    return sum(spent[1:]) / count


def _records(number: int) -> list[dict[str, str]]:
    return [
        {
            "question": f"How thick must wall {i} of house {number} be, and who pays for the scaffold in front of it?",
            "answer": f"Wall {i} must be {i + 3} centimetres thick, and the client of house {number} pays for it all.",
        }
        for i in range(40)
    ]


def _shard(folder: Path, number: int) -> Path:
    path = folder / f"shard-{number}.jsonl"
    path.write_text("".join(json_module.dumps(record) + "\n" for record in _records(number)))
    return path


if __name__ == "__main__":
    print(bare_contribution(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6])))
