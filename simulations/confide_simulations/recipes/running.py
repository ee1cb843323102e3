"""From a recipe and a file of records to simulated runs, one a stage, and what they changed on held-out records.

    options = Options(recipe=find("support-chatbot"), output=Path("out"), data=Path("my-questions.jsonl"))
    results = run(options, console)

Everything lies in the output folder: `data.jsonl` (packaged records, in the format that the user's own file has), and
for each stage its specification as it ran, its records, and the simulation's own results and model. The same command
again goes on where it was.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from confide.errors import DataError, SpecificationError, StateError
from confide.files import private_folder, write_atomic
from confide.models.architecture import load_config
from confide.models.store import folder_digest
from confide.runs.specification import Specification
from confide_client.data.readers import FORMATS, format_of
from confide_client.state import read_json
from rich.console import Console

from confide_simulations import assets
from confide_simulations.recipes.catalogue import Recipe, Record, Stage
from confide_simulations.simulate import study
from confide_simulations.simulate.engine import Engine, Resources
from confide_simulations.simulate.progress import RunProgress
from confide_simulations.simulate.results import Report
from confide_simulations.simulate.study import load_specification

_MOST_LABELS = 64
_OWN_PROMPT = "Passage: {input}\nCategory: {output}"
"""In place of a prompt that asks after what the packaged records are of."""
_PACKAGED = {"smollm2": assets.smollm2, "minilm": assets.minilm}
_LAYERS = {"smollm2": 30, "minilm": 6}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for; None and "" mean the recipe's own. model: a folder in place of a stage's packaged model."""

    recipe: Recipe
    output: Path
    data: Path | None = None
    stage: str = ""
    model: Path | None = None
    nodes: int = 4
    sealing: str = "sealed"
    rounds: int | None = None
    seed: int | None = None
    workers: int | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that are run. Raises SpecificationError when one model is to stand for two kinds of model."""
        chosen = (self.recipe.stage(self.stage),) if self.stage else self.recipe.stages
        if self.model is not None and len({stage.base for stage in chosen}) > 1:
            names = ", ".join(f"{stage.name} ({stage.base})" for stage in chosen)
            raise SpecificationError(
                f"recipe {self.recipe.name} has stages on different models: {names}; say with --stage for which one "
                "--model is"
            )
        return chosen


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    stage: Stage
    specification: Specification
    report: Report
    folder: Path


def run(options: Options, console: Console, engine: Engine | None = None) -> list[StageResult]:
    """Run every stage to its end. Raises ConfideError by name, before anything is trained where that can be known.

    engine: one for at least options.nodes that is started already; default one for the time being.
    """
    stages = options.stages
    private_folder(options.output)
    records = _records(options, console)
    _claim(options, records)
    planned = []
    for stage in stages:
        folder = private_folder(options.output / stage.name)
        asked = _study(options, stage, records, folder, console)
        planned.append((stage, folder, asked, study.prepare(asked)))
    results = []
    with _on(engine, options) as workers:
        for stage, folder, asked, prepared in planned:
            specification = prepared.job.specification
            console.print(f"{stage.name}: {stage.about}", highlight=False)
            with RunProgress(console, rounds=specification.federation.rounds, nodes=options.nodes) as progress:
                report = study.run(asked, prepared, workers, progress.event, console.print)
            results.append(StageResult(stage, specification, report, folder))
    return results


def _on(engine: Engine | None, options: Options) -> contextlib.AbstractContextManager[Engine]:
    if engine is not None:
        return contextlib.nullcontext(engine)
    return Engine(Resources(workers=options.workers), nodes=options.nodes)


def _records(options: Options, console: Console) -> list[Record]:
    """The user's records or the packaged ones, which are written down as an example of the format."""
    recipe = options.recipe
    if options.data is None:
        return list(recipe.packaged(console.print))
    records = read(options.data, recipe)
    console.print(f"{len(records)} records of {options.data}", highlight=False, markup=False)
    return records


def _claim(options: Options, records: Sequence[Record]) -> None:
    """Remember what this output is for, before anything of it is overwritten. Raises StateError for another use."""
    asked = {
        "recipe": options.recipe.name,
        "--data": hashlib.sha256(json.dumps([dict(r) for r in records], default=str).encode()).hexdigest(),
        "--nodes": options.nodes,
        "--sealing": options.sealing,
        "--rounds": options.rounds,
        "--seed": options.seed,
    }
    path = options.output / "asked.json"
    before = read_json(path) or asked
    differ = [name for name in asked if before.get(name) != asked[name]]
    if differ:
        said = "; ".join(
            f"{name} has other records" if name == "--data" else f"{name} was {before.get(name)}, now {asked[name]}"
            for name in differ
        )
        raise StateError(
            f"{options.output} holds a recipe that began differently ({said}; None is the recipe's own). Give what it "
            "began with, and it goes on; for another run choose another --output, or remove that folder"
        )
    write_atomic(path, json.dumps(asked, indent=2).encode() + b"\n")
    if options.data is None:
        _write(options.output / "data.jsonl", records)


def read(path: Path, recipe: Recipe) -> list[Record]:
    """All records of the user's file. Raises DataError with the number of one that lacks a field."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; give the path of a {', '.join(FORMATS)} file with --data")
    records = list(FORMATS[format_of(path)](path))
    for number, record in enumerate(records, start=1):
        for field in recipe.fields:
            if not isinstance(record.get(field), str) or not record[field].strip():
                raise DataError(
                    f"{path} record {number} has no text in field {field!r}; recipe {recipe.name} reads records with "
                    f"{', '.join(recipe.fields)}, and deals them to nodes by {recipe.key!r} where they have it"
                )
    if not records:
        raise DataError(f"{path} holds no records; a recipe needs some for every node")
    return records


def _write(path: Path, records: Sequence[Record]) -> Path:
    lines = (json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records)
    write_atomic(path, "".join(lines).encode())
    return path


def _study(options: Options, stage: Stage, records: Sequence[Record], folder: Path, console: Console) -> study.Study:
    recipe = options.recipe
    base = options.model or _PACKAGED[stage.base](console.print)
    specification = folder / "specification.toml"
    text = specification_text(options, stage, records, base).encode()
    if specification.exists() and specification.read_bytes() != text:
        raise StateError(
            f"stage {stage.name} in {options.output} began with another --model, or with another release's "
            "specification. Give what it began with, choose another --output, or remove that folder"
        )
    write_atomic(specification, text)
    keyed = _dealt_by_key(recipe, records, options.nodes)
    if not keyed:
        console.print(f"records are dealt at random: {recipe.key!r} does not tell {options.nodes} nodes apart")
    return study.Study(
        specification=specification,
        base=base,
        data=_write(folder / "records.jsonl", [stage.record(record) for record in records]),
        nodes=options.nodes,
        output=folder,
        partition=recipe.partition if keyed else "iid",
        key=recipe.key if keyed else None,
        held_out=stage.held_out,
    )


def _dealt_by_key(recipe: Recipe, records: Sequence[Record], nodes: int) -> bool:
    """Whether every record has the recipe's field, with values enough to go round."""
    values = {record.get(recipe.key) for record in records}
    return None not in values and (len(values) >= nodes or recipe.partition != "by-key")


def specification_text(options: Options, stage: Stage, records: Sequence[Record], base: Path) -> str:
    """The stage's TOML with the model at hand, and what the command line and the user's file say otherwise."""
    found = load_specification(options.recipe.toml(stage), options.seed)
    document = found.model_dump(mode="json", exclude_none=True)
    document["model"]["sha256"] = folder_digest(base)
    document["sealing"]["kind"] = options.sealing
    if options.rounds is not None:
        document["federation"]["rounds"] = options.rounds
    if options.model is not None:
        document["model"]["name"] = "own-model"
        config = load_config(base).get_text_config()
        document["adapter"]["first_layer"] = found.adapter.first_layer * config.num_hidden_layers // _LAYERS[stage.base]
        most = getattr(config, "max_position_embeddings", found.method.max_length)
        document["method"]["max_length"] = min(found.method.max_length, most)
    if options.data is not None and found.method.labels:
        document["method"]["labels"] = labels_of(records)
    if options.data is not None and found.method.prompt:
        document["method"]["prompt"] = _OWN_PROMPT
    return tomli_w.dumps(document)


def labels_of(records: Sequence[Record]) -> list[str]:
    """The label set of a file. An administrator writes it into the specification, since nodes never tell theirs."""
    labels = sorted({str(record["label"]) for record in records})
    if not 2 <= len(labels) <= _MOST_LABELS:
        raise DataError(
            f"field 'label' of the file has {len(labels)} different values; a classifier takes 2 to {_MOST_LABELS}"
        )
    return labels
