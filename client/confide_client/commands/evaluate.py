"""`confide evaluate`: tasks of lm-evaluation-harness on an exported model."""

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    base: Annotated[
        Path, typer.Option(help="Folder of the base model, or of a whole exported model.", exists=True, file_okay=False)
    ],
    tasks: Annotated[list[str], typer.Option(help="A task of the harness, or your own task file (.yaml); repeatable.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of an exported adapter.", exists=True, file_okay=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of a task at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures here.", dir_okay=False)] = None,
) -> None:
    """Measure a model on evaluation tasks, on this machine: nothing is fetched and nothing leaves."""
    from confide_client.evaluation import harness

    harness.require()
    harness.check_files(tasks)
    from confide.files import write_atomic
    from confide.models.answering import load_answering
    from confide.models.store import folder_digest

    model, tokenizer = load_answering(base, adapter)
    # The adapter's layers stay in the model that PEFT wraps; the harness wants a plain one.
    plain = model if adapter is None else model.get_base_model()
    figures = harness.run_tasks(plain, tokenizer, tasks, limit=limit, batch_size=batch_size)
    for task, values in figures.items():
        for metric, value in values.items():
            typer.echo(f"{task}  {metric}  {value:.4f}")
    if output is not None:
        document = {
            "base_sha256": folder_digest(base),
            "adapter": None if adapter is None else adapter.name,
            "limit": limit,
            "tasks": figures,
        }
        write_atomic(output, json.dumps(document, indent=2).encode() + b"\n", mode=0o644)
