"""Runs a recipe: every run with every seed, one simulation after the other; the same command again goes on.

outcomes = run(recipe, folder, engine, say=print)

A finished run is known by all that its outcome follows from. Fields that specifications got since, with a default that
means what was done before, make it no other run.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from confide.errors import SpecificationError, StateError
from confide.files import private_folder, write_atomic
from confide.models.store import folder_digest
from confide.runs.specification import Specification, parse_document
from confide_client.runs.loading import local_schema

from confide_simulations.results.material import Made, make
from confide_simulations.results.recipe import Recipe, Run
from confide_simulations.simulate import study
from confide_simulations.simulate.engine import Engine

Say = Callable[[str], None]
SCORED = 5
"""Models of a run that are scored on held-out records, first and last included."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run with one seed."""

    run: str
    seed: int
    final: Mapping[str, float]
    """Metrics after the last round; of `arm = "alone"` the mean over the nodes' models."""
    curve: Sequence[tuple[int, float]]
    """(round, held-out loss) of the models that were scored."""
    upload_bytes: int
    """Of all nodes and rounds."""
    seconds: float
    tuning: Sequence[tuple[float, float]] = ()
    """(learning rate, held-out loss under the tuning seed), where the rate was chosen so."""


def run(
    recipe: Recipe, folder: Path, engine: Engine, say: Say, chosen: Callable[[str], bool] = lambda name: True
) -> list[Outcome]:
    """Everything that is chosen and not there yet, and whatever of the rest is there."""
    made = make(recipe.material, private_folder(folder / "material"), say)
    with made.data.open("rb") as file:
        data_digest = hashlib.file_digest(file, "sha256").hexdigest()
    runner = Runner(recipe, made, folder_digest(made.base), data_digest, folder, engine, say)
    return [outcome for one in recipe.run for outcome in runner.outcomes(one, begins=chosen(one.name))]


@dataclass(frozen=True)
class Runner:
    """What all runs of a recipe share. digest: of the base model's folder; data_digest: of the records."""

    recipe: Recipe
    made: Made
    digest: str
    data_digest: str
    folder: Path
    engine: Engine
    say: Say

    def outcomes(self, one: Run, *, begins: bool) -> Iterator[Outcome]:
        """Of every seed; what is not there yet is simulated if this run `begins`, else left out."""
        place = self.folder / "runs" / one.name
        tuning: list[tuple[float, float]] = []
        for rate in one.rates:
            trial = self._outcome(one.at(rate, self.tuning_seed), self.tuning_seed, place / f"rate-{rate:g}", begins)
            if trial is None:
                return
            tuning.append((rate, trial.final["held_out_eval_loss"]))
        settled = one.at(lowest(tuning)) if tuning else one
        for seed in self.recipe.seeds_of(settled):
            found = self._outcome(settled, seed, place / f"seed-{seed}", begins)
            if found is not None:
                yield replace(found, tuning=tuning)

    @property
    def tuning_seed(self) -> int:
        return self.recipe.tuning_seed or 0

    def _outcome(self, one: Run, seed: int, place: Path, begins: bool) -> Outcome | None:
        specification = self.recipe.build(one, self.digest, seed)
        kept = place / "outcome.json"
        key = self.key(one, specification)
        found = _read(kept, key)
        if found is None and begins:
            self.say(f"{one.name}, {place.name}")
            models = self.folder / "runs" / "models"
            found = _simulate(self.recipe, one, specification, self.made, place, models, self.engine)
            write_atomic(kept, json.dumps({"key": key, "outcome": asdict(found)}).encode())
        return found

    def key(self, one: Run, specification: Specification) -> dict[str, Any]:
        """All that an outcome follows from."""
        return {
            "specification": specification.model_dump(mode="json"),
            "data": self.data_digest,
            "run": one.model_dump(mode="json", include={"nodes", "partition", "arm", "synchronous_nodes"}),
            "recipe": self.recipe.model_dump(mode="json", include={"key", "held_out", "evaluation"}),
        }


def lowest(tuning: Sequence[tuple[float, float]]) -> float:
    """The learning rate with the lowest loss, of (learning rate, loss)."""
    return min(tuning, key=lambda pair: pair[1])[0]


def _read(path: Path, key: Mapping[str, Any]) -> Outcome | None:
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_bytes())
        kept, outcome = document["key"], Outcome(**document["outcome"])
        # Runs of before nodes had secret draws were reproducible without saying so.
        stored = {"reproducible": True, **kept["specification"]}
        kept["specification"] = parse_document(stored, str(path)).model_dump(mode="json")
    except (ValueError, TypeError, KeyError, SpecificationError) as error:
        raise StateError(f"{path} cannot be read: {error}. Remove that folder, or choose another --output") from error
    if kept != key:
        raise StateError(f"{path.parent} holds a run of another recipe; choose another --output, or remove that folder")
    return outcome


def _simulate(
    recipe: Recipe, one: Run, specification: Specification, made: Made, folder: Path, models: Path, engine: Engine
) -> Outcome:
    path = private_folder(folder) / "specification.json"
    write_atomic(path, specification.canonical_bytes())
    asked = study.Study(
        specification=path,
        base=made.base,
        data=made.data,
        nodes=one.nodes,
        output=folder,
        partition=one.partition,
        key=recipe.key,
        held_out=recipe.held_out,
        evaluation=recipe.evaluation,
        scored=SCORED,
        models=models,
    )
    prepared = study.prepare(asked)
    reports = [study.run(*pair, engine, lambda kind, data: None) for pair in _arms(one, asked, prepared)]
    rows = [report.rows for report in reports]
    names = {name for name, value in rows[0][-1].items() if isinstance(value, float)}
    scored = [row["round"] for row in rows[0] if "held_out_eval_loss" in row]
    sent = sum(row.get("upload_bytes", 0) for part in rows for row in part)
    if one.synchronous_nodes:
        steps = specification.federation.rounds * specification.training.local_steps
        sent = one.synchronous_nodes * steps * 4 * local_schema(specification, made.base).size
    return Outcome(
        run=one.name,
        seed=specification.seed,
        final={name: _mean(part[-1][name] for part in rows) for name in sorted(names)},
        curve=[(number, _mean(part[number]["held_out_eval_loss"] for part in rows)) for number in scored],
        upload_bytes=sent,
        seconds=sum(row.get("seconds", 0.0) for part in rows for row in part),
    )


def _arms(one: Run, asked: study.Study, prepared: study.Prepared) -> Iterator[tuple[study.Study, study.Prepared]]:
    """The federation, or each node by itself on its own shard; all are scored on the same held-out records."""
    if one.arm == "federated":
        yield asked, prepared
        return
    for name, shard in prepared.job.shards.items():
        alone = replace(prepared.job, shards={name: shard})
        yield (
            replace(asked, output=asked.output / "alone" / name, nodes=1),
            replace(prepared, job=alone, counts={name: prepared.counts[name]}),
        )


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
