"""`confide bench aggregation`: the demo's task under each aggregation of LoRA, by loss on questions nobody trains on.

Every scheme takes the learning rate that does best on the nodes' own evaluation questions, with a seed that is not
among those reported; the held-out questions decide nothing. A seed draws the nodes' splits, the first matrices and the
batches, the same for all schemes. Updates are neither sealed nor clipped. With --work the command can be cut off.

    loss = Task(base, shards, held_out, rounds=3).run(ARMS[1], 6e-3, seed=1).nll
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confide import canonical
from confide.errors import TrainingError
from confide.models.seeds import derive
from confide.models.store import folder_digest
from confide.runs.specification import Specification

from confide_simulations.benchmarks.aggregation.federation import NODES, InTurn, Record, demo_specification
from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.demo.shards import read_records, split_by_category

DEMO_RATE = 3e-3
TUNING_SEED = 0
_FACTOR = 2.0
_EVALUATION = 0.1
Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One line of the table. rate: where the search for a learning rate begins; tuned: whether there is one."""

    name: str
    scheme: str
    rate: float
    tuned: bool = True


ARMS = (
    Arm("average", "average", DEMO_RATE),
    Arm("ffa", "ffa", 6e-3),
    Arm("rolora", "rolora", 6e-3),
    Arm("fedsvd", "fedsvd", 6e-3),
    Arm("fedsb", "fedsb", 2.4e-2),
    Arm("average, the demo's rate", "average", DEMO_RATE, tuned=False),
)


@dataclass(frozen=True)
class Outcome:
    """nll: on held-out questions, nats a token. error, update_norm: the largest of all rounds."""

    nll: float
    error: float
    update_norm: float


@dataclass(frozen=True)
class Task:
    """base: a model folder. shards: each node's records. held_out: nobody's. work: where finished runs are kept."""

    base: Path
    shards: Mapping[str, Sequence[Record]]
    held_out: Sequence[Record]
    rounds: int
    work: Path | None = None

    def specification(self, arm: Arm, rate: float, seed: int) -> Specification:
        """The demo's, but for aggregation, learning rate and seed."""
        spec = demo_specification(self.base, rounds=self.rounds, aggregation=arm.scheme, seed=seed)
        return spec.model_copy(update={"training": spec.training.model_copy(update={"learning_rate": rate})})

    def run(self, arm: Arm, rate: float, seed: int) -> Outcome:
        """Train from the first round to the last and score the final model. Raises TrainingError when it diverges."""
        return Outcome(**self._kept("run", self.specification(arm, rate, seed), self._run))

    def validation_loss(self, arm: Arm, rate: float) -> float:
        """Of the final model on the nodes' own evaluation questions, under TUNING_SEED; infinite when it diverges."""
        found = self._kept("tuning", self.specification(arm, rate, TUNING_SEED), self._validate)["loss"]
        return float("inf") if found is None else float(found)

    def _run(self, spec: Specification) -> Row:
        from confide_simulations.benchmarks.aggregation.error import error_in

        train, _ = self._split(spec.seed)
        with tempfile.TemporaryDirectory(prefix="confide-bench-") as folder:
            federation = InTurn(spec, self.base, train, Path(folder))
            model, error, norm = federation.first_model, 0.0, 0.0
            for done in federation.rounds():
                model = done.model
                error = max(error, error_in(federation, self.base, done))
                norm = max(norm, done.update_norm)
            return asdict(Outcome(federation.loss(model, self.held_out), error, norm))

    def _validate(self, spec: Specification) -> Row:
        train, apart = self._split(spec.seed)
        with tempfile.TemporaryDirectory(prefix="confide-bench-") as folder:
            federation = InTurn(spec, self.base, train, Path(folder))
            try:
                *_, last = federation.rounds()
            except TrainingError:
                return {"loss": None}
            return {"loss": federation.loss(last.model, apart)}

    def _kept(self, kind: str, spec: Specification, make: Callable[[Specification], Row]) -> Row:
        """What was found before for the same specification, model and questions, or is found now."""
        if self.work is None:
            return make(spec)
        records = {name: [dict(record) for record in shard] for name, shard in self.shards.items()}
        parts = [spec.digest, folder_digest(self.base), records, [dict(record) for record in self.held_out]]
        path = self.work / f"{kind}-{spec.adapter.aggregation}-{canonical.digest(parts)[:16]}.json"
        if not path.exists():
            write_result(path, make(spec))
        found: Row = json.loads(path.read_bytes())
        return found

    def first_loss(self) -> float:
        """Of the model that no scheme has changed yet, on held-out questions."""
        with tempfile.TemporaryDirectory(prefix="confide-bench-") as folder:
            spec = self.specification(ARMS[0], DEMO_RATE, TUNING_SEED)
            federation = InTurn(spec, self.base, self.shards, Path(folder))
            return federation.loss(federation.first_model, self.held_out)

    def _split(self, seed: int) -> tuple[dict[str, list[Record]], list[Record]]:
        """What each node trains on, and the nodes' evaluation questions together."""
        train: dict[str, list[Record]] = {}
        apart: list[Record] = []
        for name, records in self.shards.items():
            order = np.random.default_rng(derive(seed, "evaluation", name)).permutation(len(records))
            kept = max(1, round(_EVALUATION * len(records)))
            apart += [records[index] for index in order[:kept]]
            train[name] = [records[index] for index in sorted(order[kept:])]
        return train, apart


def climb(first: float, loss_at: Callable[[float], float]) -> dict[float, float]:
    """Loss by learning rate: from `first` by steps of _FACTOR in the direction that lowers it, until it rises.

    >>> climb(1.0, lambda rate: abs(rate - 4.0))
    {1.0: 3.0, 2.0: 2.0, 4.0: 0.0, 8.0: 4.0}
    """
    found = {first: loss_at(first)}
    for factor in (_FACTOR, 1 / _FACTOR):
        rate = first * factor
        while True:
            found[rate] = loss_at(rate)
            if found[rate] >= found[rate / factor]:
                break
            rate *= factor
        if min(found, key=lambda one: found[one]) != first:
            break
    return found


def rows_of(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Row]:
    """Mean, standard deviation and every seed's value, and differences from plain averaging of the same seed."""
    plain = [one.nll for one in outcomes[ARMS[0].name]]
    rows = {}
    for name, found in outcomes.items():
        losses = [one.nll for one in found]
        rows[name] = {
            "nll": _spread(losses),
            "beside_average": _spread([mine - theirs for mine, theirs in zip(losses, plain, strict=True)]),
            "error": max(one.error for one in found),
            "update_norm": max(one.update_norm for one in found),
        }
    return rows


def _spread(values: Sequence[float]) -> Row:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "values": list(values)}


def aggregation(
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.", dir_okay=False)
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Keep finished runs here and go on with them.", file_okay=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 1, 2, ... that are reported; 0 chooses the rates.", min=1)] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=2)] = 3,
    model: Annotated[Path | None, typer.Option(help="A model folder instead of SmolLM2.", file_okay=False)] = None,
    data: Annotated[Path | None, typer.Option(help="Questions instead of the construction FAQ.")] = None,
    held_out: Annotated[int, typer.Option(help="Questions that nobody trains on.", min=1)] = 40,
) -> None:
    """Compare what LoRA learns under each aggregation, each at its own learning rate; about 40 CPU-minutes."""
    from confide_simulations import assets
    from confide_simulations.benchmarks.aggregation.error import communicated_bytes

    base = model or assets.smollm2(typer.echo)
    records = read_records(data) if data else assets.construction_faq(typer.echo)
    split = split_by_category(records, nodes=NODES, held_out=held_out)
    task = Task(base, split.shards, split.held_out, rounds, work)
    tuning: dict[str, dict[float, float]] = {}
    for arm in ARMS:
        tuning[arm.name] = climb(arm.rate, partial(task.validation_loss, arm)) if arm.tuned else {}
        typer.echo(f"{arm.name}: validation loss by learning rate {_readable(tuning[arm.name])}")
    rates = {arm.name: min(tuning[arm.name], key=tuning[arm.name].__getitem__, default=arm.rate) for arm in ARMS}
    # At the demo's own rate only where tuning chose another one.
    arms = [arm for arm in ARMS if arm.tuned or rates[arm.name] != rates[ARMS[0].name]]
    result: Row = {"nll_first_model": task.first_loss()}
    outcomes: dict[str, list[Outcome]] = {arm.name: [] for arm in arms}
    for seed in range(1, seeds + 1):
        for arm in arms:
            outcomes[arm.name].append(task.run(arm, rates[arm.name], seed))
            typer.echo(f"seed {seed}, {arm.name}: {outcomes[arm.name][-1]}")
        schemes = rows_of(outcomes)
        for arm in arms:
            spec = task.specification(arm, rates[arm.name], seed)
            schemes[arm.name] |= {
                "learning_rate": rates[arm.name],
                "validation": {f"{rate:g}": loss for rate, loss in tuning[arm.name].items() if np.isfinite(loss)},
                "bytes": communicated_bytes(spec, base),
            }
        config = {"rounds": rounds, "nodes": NODES, "model": base.name, "seeds": seed, "tuning_seed": TUNING_SEED}
        result |= {"schemes": schemes, "meta": meta(seed=1, config=config)}
        if output is not None:
            write_result(output, result)
    _print(result)


def _readable(losses: Mapping[float, float]) -> str:
    return ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in sorted(losses.items())) or "not tuned"


def _print(result: Row) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    titles = ("rate", "held-out NLL", "sd", "beside average", "sd", "error", "bytes", "sealed")
    table = Table("aggregation", *(Column(title, justify="right") for title in titles))
    for name, row in result["schemes"].items():
        cells = [f"{row['learning_rate']:g}"]
        for kind in ("nll", "beside_average"):
            deviation = row[kind]["sd"]
            cells += [f"{row[kind]['mean']:.4f}", "-" if deviation is None else f"{deviation:.4f}"]
        sizes = [f"{row['bytes'][kind]:,}" for kind in ("none", "sealed")]
        table.add_row(name, *cells, f"{row['error']:.1e}", *sizes)
    console = Console()
    console.print(table)
    console.print(f"the first model: {result['nll_first_model']:.4f}", highlight=False)
