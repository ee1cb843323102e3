"""Options that several of the run commands have, and how they name a run."""

from pathlib import Path
from typing import Annotated

import typer
from confide.errors import TransportError
from confide.identity.submission import MAX_VALID_S
from confide.transport.control import ControlClient
from rich.console import Console

console = Console()

Admin = Annotated[Path, typer.Option("--admin", envvar="CONFIDE_ADMIN", help="The administrator's folder.")]
Coordinator = Annotated[
    str, typer.Option("--coordinator", envvar="CONFIDE_COORDINATOR", help="host:port; default: from the admission.")
]
ModelFolder = Annotated[
    Path | None, typer.Option("--model-folder", help="The base model's folder; none for a tokenizer.")
]
Run = Annotated[str, typer.Argument(help="Run id or its beginning; default: the newest run.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
ValidDays = Annotated[
    float, typer.Option(min=0.01, max=MAX_VALID_S / 86400, help="Organizations may accept the run for so long.")
]


def resolve(client: ControlClient, beginning: str) -> str:
    """The run id that begins so; "" is the newest run. Raises TransportError for none, and for more than one."""
    runs = [run.run_id for run in client.runs()]
    found = [run_id for run_id in runs if run_id.startswith(beginning)]
    if not runs:
        raise TransportError("the coordinator has no run yet; start one with `confide run submit`")
    if not found:
        raise TransportError(f"the coordinator has no run {beginning!r}; `confide run list` shows those it has")
    if beginning and len(found) > 1:
        raise TransportError(f"{beginning!r} is the beginning of {len(found)} run ids; give more of it")
    return found[0]
