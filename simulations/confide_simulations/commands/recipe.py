"""`confide recipe`: worked examples that run on packaged text, and on the user's own file by one more path."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Worked examples: list them, read one, run it on packaged text or on your own file.",
)

Name = Annotated[str, typer.Argument(help="a recipe; `confide recipe list` names them")]


@app.command("list")
def list_() -> None:
    """All recipes and their stages."""
    from confide_simulations.recipes.catalogue import RECIPES

    table = Table("recipe", "what for", "stages", "a record of your file")
    for recipe in RECIPES:
        table.add_row(
            recipe.name,
            recipe.about,
            "\n".join(stage.name for stage in recipe.stages),
            ", ".join(recipe.fields) + f"\n(perhaps {recipe.key})" * (recipe.key not in recipe.fields),
        )
    Console().print(table)


@app.command()
def show(name: Name) -> None:
    """A recipe's format, what its packaged data stands in for, and its run specifications (TOML)."""
    from confide_simulations.recipes.catalogue import find

    recipe = find(name)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{recipe.name}: {recipe.about}")
    console.print(f"your file: jsonl, csv or parquet with {', '.join(recipe.fields)}; dealt by {recipe.key}")
    console.print(f"packaged data: {recipe.stand_in}")
    for stage in recipe.stages:
        console.print(f"\n# ---- {stage.name}: {stage.about} ({recipe.toml(stage)})\n")
        console.print(recipe.toml(stage).read_text("utf-8"))


@app.command()
def files(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="new folder: base-model, and a file for each organization")],
    organization: Annotated[list[str] | None, typer.Option(help="an organization's name; once for each")] = None,
) -> None:
    """Write a recipe's packaged model and its records, dealt to organizations: what a federation by hand needs."""
    from confide_simulations.recipes.catalogue import find
    from confide_simulations.recipes.files import write

    names = organization or ["hospital-a", "bank-b", "law-firm-c"]
    for path in write(find(name), folder, names, Console().print):
        typer.echo(path)


@app.command()
def run(
    name: Name,
    data: Annotated[
        Path | None, typer.Option(help="your own file in the recipe's format", exists=True, dir_okay=False)
    ] = None,
    nodes: Annotated[int, typer.Option(help="virtual nodes", min=1, max=1000)] = 4,
    stage: Annotated[str, typer.Option(help="only this one")] = "",
    model: Annotated[
        Path | None, typer.Option(help="a model folder in place of the packaged model", exists=True, file_okay=False)
    ] = None,
    sealing: Annotated[Literal["sealed", "none"], typer.Option(help="none: for comparison only")] = "sealed",
    rounds: Annotated[int | None, typer.Option(help="in place of the recipe's", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="in place of the recipe's", min=0)] = None,
    output: Annotated[
        Path | None, typer.Option(help="results; the same again goes on with it", file_okay=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="most worker processes", min=1)] = None,
) -> None:
    """Deal the records to virtual nodes, run every stage sealed, and score it before and after."""
    from confide_simulations.recipes.catalogue import find

    recipe = find(name)
    from confide_simulations.recipes import outcome, running

    options = running.Options(
        recipe=recipe,
        output=output or Path(f"{name}-output"),
        data=data,
        stage=stage,
        model=model,
        nodes=nodes,
        sealing=sealing,
        rounds=rounds,
        seed=seed,
        workers=workers,
    )
    console = Console()
    if data is None:
        console.print(f"packaged data: {recipe.stand_in}", highlight=False, markup=False)
    results = running.run(options, console)
    outcome.write(options, results)
    console.print(outcome.table(options, results))
    console.print(
        f"results: {options.output}/recipe.json, recipe.png, data.jsonl; models: <stage>/model", highlight=False
    )
