"""A recipe's packaged model and records as files, for a federation that people set up by hand."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from confide.errors import StateError

from confide_simulations import assets
from confide_simulations.demo.shards import write_jsonl
from confide_simulations.recipes.catalogue import Recipe
from confide_simulations.recipes.texts import Say
from confide_simulations.simulate.partition import parse_scheme, split

SEED = 7


def write(recipe: Recipe, folder: Path, organizations: Sequence[str], say: Say) -> list[Path]:
    """folder/base-model and folder/NAME.jsonl of the recipe's first stage; returns what was written.

    Raises StateError when the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StateError(f"{folder} is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    stage = recipe.stages[0]
    base = assets.smollm2(say) if stage.base == "smollm2" else assets.minilm(say)
    shutil.copytree(base, folder / "base-model", copy_function=_link_or_copy)
    records = [stage.record(record) for record in recipe.packaged(say)]
    shards = split(records, parse_scheme(recipe.partition), names=organizations, key=recipe.key, seed=SEED)
    written = [folder / "base-model"]
    for name, rows in shards.items():
        written.append(folder / f"{name}.jsonl")
        write_jsonl(written[-1], [records[row] for row in rows])
    return written


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
