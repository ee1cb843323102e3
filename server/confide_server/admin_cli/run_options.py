"""Options that several of the run commands have, and how they name a run."""

from pathlib import Path
from typing import Annotated

import typer
from confide.errors import TransportError
from confide.identity.roster import utc
from confide.identity.submission import MAX_VALID_S
from confide.transport.admin import AdminClient
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


def resolve(client: AdminClient, beginning: str) -> str:
    """The run id that begins so; "" is the newest run. Raises TransportError for none, and for more than one."""
    page = client.list_runs(run_id_prefix=beginning, limit=2)
    found = [run.run_id for run in page.runs]
    if not found and not beginning:
        raise TransportError("the coordinator has no run yet; start one with `confide run submit`")
    if not found:
        for gone in client.list_runs(run_id_prefix=beginning, statuses=["deleted"], limit=1).runs:
            raise TransportError(f"run {gone.run_id} was {gone.detail} on {utc(gone.deleted_at)}; nothing else is kept")
        raise TransportError(f"the coordinator has no run {beginning!r}; `confide run list` shows those it has")
    if beginning and len(found) > 1:
        raise TransportError(f"{beginning!r} is the beginning of {page.total} run ids; give more of it")
    return found[0]
