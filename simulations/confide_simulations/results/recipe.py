"""What a reproduced result consists of: result.toml, parsed and checked before anything is made.

    [specification]                      # an ordinary run specification; model.sha256 is filled in
    [material]                           # records, model: keyword arguments of material.py
    [plot]                               # how outcome.py shows it
    [[run]]
    name = "h30-n4-4bit"
    nodes = 4
    set = { "training.local_steps" = 30, "federation.rounds" = 10 }

Every run is simulated with every seed. `arm = "alone"` trains one model for each node on its own shard and reports
their mean.
"""

import copy
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from confide.errors import SpecificationError
from confide.runs.specification import Specification, parse_document
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
Number = Annotated[int, Field(ge=1)]


class Material(BaseModel):
    """Which records and which model."""

    model_config = _STRICT
    records: Literal["documents", "passages", "speeches", "present"]
    count: Number
    """At most so many records, drawn once for all seeds."""
    width: Number = 64
    layers: Number = 4
    warm_steps: Annotated[int, Field(ge=0)] = 0
    """Above 0: the start is trained on the genres that are nobody's, in so many steps."""


class Plot(BaseModel):
    """One figure. bars: one bar a run, grouped; scatter: loss against bytes sent."""

    model_config = _STRICT
    kind: Literal["bars", "scatter"]
    metric: str
    label: str


class Run(BaseModel):
    """One setting, simulated with every seed."""

    model_config = _STRICT
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    nodes: Number
    partition: str = "iid"
    arm: Literal["federated", "alone"] = "federated"
    group: str = ""
    """Runs of one group have one colour in the plot."""
    label: str = ""
    synchronous_nodes: Annotated[int, Field(ge=0)] = 0
    """Above 0: the one node stands for so many that send a float32 gradient every step; their bytes are counted."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """In place of the result's."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Learning rates to choose from: the one with the lowest held-out loss under the recipe's tuning_seed."""
    set: dict[str, Any] = {}

    def at(self, rate: float, *seeds: int) -> "Run":
        """The run with one learning rate, and with other seeds where some are named."""
        changed = {"set": {**self.set, "training.learning_rate": rate}, "rates": (), "seeds": seeds or self.seeds}
        return self.model_copy(update=changed)


class Recipe(BaseModel):
    """All of a result.toml."""

    model_config = _STRICT
    title: str
    key: str | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)]
    evaluation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a node's records that it evaluates received models on."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...]
    tuning_seed: Annotated[int, Field(ge=0)] | None = None
    """For choosing learning rates; not one of `seeds`."""
    material: Material
    plot: Plot
    specification: dict[str, Any]
    run: tuple[Run, ...]

    def seeds_of(self, run: Run) -> tuple[int, ...]:
        """The run's own seeds where it names some."""
        return run.seeds or self.seeds

    def build(self, run: Run, model_sha256: str, seed: int) -> Specification:
        """The specification of one run. Raises SpecificationError naming the field."""
        document = copy.deepcopy(self.specification)
        for place, value in {**run.set, "model.sha256": model_sha256}.items():
            *sections, field = place.split(".")
            inner = document
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[field] = value
        document = {"reproducible": True, **document}
        return parse_document({**document, "version": 1, "name": run.name, "seed": seed}, f"run {run.name!r}")


def names() -> list[str]:
    """The results that are there."""
    return sorted(item.name for item in _folder().iterdir() if (item / "result.toml").is_file())


def folder_of(name: str) -> Path:
    """A result's folder. Raises SpecificationError for an unknown one."""
    if name not in names():
        raise SpecificationError(f"there is no result {name!r}; there are: {', '.join(names())}")
    return _folder() / name


def load(name: str) -> Recipe:
    """Parse a result's recipe. Raises SpecificationError."""
    return parse((folder_of(name) / "result.toml").read_text("utf-8"), f"{name}/result.toml")


def parse(text: str, source: str) -> Recipe:
    """Parse a result.toml. Raises SpecificationError naming what is wrong."""
    import json

    try:
        document: Mapping[str, Any] = tomllib.loads(text)
        recipe = Recipe.model_validate_json(json.dumps(document))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise SpecificationError(f"{source} is not a valid result: {error}") from error
    twice = sorted({run.name for run in recipe.run if [other.name for other in recipe.run].count(run.name) > 1})
    if twice:
        raise SpecificationError(f"{source}: two runs are called {twice[0]!r}")
    for run in recipe.run:
        recipe.build(run, "0" * 64, 0)
        if run.rates and (recipe.tuning_seed is None or recipe.tuning_seed in recipe.seeds_of(run)):
            raise SpecificationError(
                f"{source}: run {run.name!r} has rates to choose from, and tuning_seed is {recipe.tuning_seed}; set it "
                "to a seed that is not reported"
            )
    return recipe


def _folder() -> Path:
    return Path(str(files("confide_simulations.results")))
