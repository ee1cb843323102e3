"""From a specification file and one data file to a simulated run and its report: what `confide simulate` does."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import DataError, SpecificationError
from confide.files import private_folder, write_atomic
from confide.runs.fields import fields_of
from confide.runs.specification import Specification, parse_canonical, parse_toml
from confide_client.data.readers import FORMATS, format_of

from confide_simulations.demo.shards import node_names
from confide_simulations.simulate import partition, results, scoring
from confide_simulations.simulate.engine import Engine
from confide_simulations.simulate.simulation import Job, Simulation, Watch

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked for.

    seed: in place of the specification's; it also draws the held-out records and the partition. held_out: share of the
    records that no node gets. key: field by which records are dealt. evaluation: share of its records on which a node
    evaluates received models. groups: of the roster, each of which opens a sum of its own. scored: at most so many
    models of the run are scored on the held-out records.
    """

    specification: Path
    base: Path | None
    data: Path
    nodes: int
    output: Path
    partition: str = "iid"
    key: str | None = None
    seed: int | None = None
    held_out: float = 0.1
    evaluation: float = 0.1
    groups: int = 1
    scored: int = scoring.MOST
    models: Path | None = None

    def load(self) -> Specification:
        """The specification with the study's seed, reproducible as simulations are. Raises SpecificationError."""
        return load_specification(self.specification, self.seed).model_copy(update={"reproducible": True})


def load_specification(path: Path, seed: int | None) -> Specification:
    """A run specification from TOML (or canonical JSON), with another seed where one is given."""
    try:
        if path.suffix == ".json":
            found = parse_canonical(path.read_bytes(), str(path))
        else:
            found = parse_toml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"cannot read {path}: {error}. Name a TOML file in UTF-8.") from error
    return found if seed is None else found.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Prepared:
    """Records dealt and checked; nothing has run yet."""

    job: Job
    held_out: tuple[Record, ...]
    counts: Mapping[str, int]
    plan: str


def prepare(study: Study) -> Prepared:
    """Read, deal and write the shards, and refuse what cannot work. Raises ConfideError by name, with the remedy."""
    specification = study.load()
    scheme = partition.parse_scheme(study.partition)
    if study.nodes < 1:
        raise SpecificationError(f"--nodes is {study.nodes}; at least 1 is needed")
    if not 0 <= study.held_out < 1:
        raise SpecificationError(f"--held-out is {study.held_out}; it is a share of the records, from 0 to below 1")
    if not 0 <= study.evaluation < 1:
        raise SpecificationError(f"--node-evaluation is {study.evaluation}; it is a share, from 0 to below 1")
    records = read(study.data, specification)
    kept, held = partition.hold_out(len(records), study.held_out, specification.seed)
    names = specification.federation.nodes or node_names(study.nodes)
    if len(names) != study.nodes:
        raise SpecificationError(
            f"federation.nodes names {len(names)} nodes, and --nodes is {study.nodes}; make them equal"
        )
    dealt = partition.split([records[i] for i in kept], scheme, names=names, key=study.key, seed=specification.seed)
    shards = {name: [records[kept[i]] for i in rows] for name, rows in dealt.items()}
    folder = private_folder(study.output / "work" / "shards")
    job = Job(
        specification=specification,
        base=study.base,
        shards={name: _write(folder / f"{name}.jsonl", rows) for name, rows in shards.items()},
        evaluation=study.evaluation,
        groups=study.groups,
    )
    counts = {name: len(rows) for name, rows in shards.items()}
    return Prepared(job, tuple(records[i] for i in held), counts, job.check())


def read(path: Path, specification: Specification) -> list[Record]:
    """All records of a data file, each with the fields of the run's method. Raises DataError with its number."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; give the path of a {', '.join(FORMATS)} file with --data")
    records = list(FORMATS[format_of(path)](path))
    if not records:
        raise DataError(f"{path} holds no records; a simulation needs some for every node")
    for number, record in enumerate(records, start=1):
        try:
            fields_of(specification.method.name, record)
        except DataError as error:
            raise DataError(f"{path} record {number}: {error}") from error
    return records


def _write(path: Path, records: Sequence[Record]) -> Path:
    """JSON lines; untouched when they are there already."""
    data = "".join(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records).encode()
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)
    return path


def run(
    study: Study, prepared: Prepared, engine: Engine, watch: Watch, say: Callable[[str], None] = lambda text: None
) -> results.Report:
    """Run to the end, score, and write the report into the output folder."""
    began = time.monotonic()
    specification = prepared.job.specification
    finished = Simulation(study.output / "work" / "run", prepared.job, models=study.models).run(engine, watch)
    scores: dict[int, dict[str, float]] = {}
    if prepared.held_out and specification.training.local_steps:
        say(f"scoring models on {len(prepared.held_out)} held-out records")
        chosen = {
            number: finished.models[number] for number in scoring.scored_rounds(len(finished.models) - 1, study.scored)
        }
        scores = dict(scoring.score(specification, study.base, prepared.held_out, chosen))
    report = results.Report(
        specification=specification,
        nodes=prepared.counts,
        partition=study.partition + (f" by {study.key}" if study.key else ""),
        held_out=len(prepared.held_out),
        workers=engine.workers,
        seconds=time.monotonic() - began,
        rows=results.rows_of(finished.events, scores),
        manifest=finished.manifest,
    )
    results.write_report(study.output, report, finished.models[-1], study.base)
    return report
