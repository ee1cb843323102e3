"""`confide run watch`: a run from its first event to its end, over lost connections and restarts of the coordinator."""

import json
import time
from collections.abc import Callable, Iterator

import typer
from confide.proto import admin_pb2 as pb
from confide.transport.admin import ENDS, AdminClient, event_data
from confide.transport.control import ConnectionLost
from rich.live import Live

from confide_server.admin_cli.run_options import console
from confide_server.admin_cli.run_view import RunView, plain

EXIT_FAILED, EXIT_STOPPED, EXIT_LOST = 1, 3, 4
GIVE_UP_S = 120.0
"""So long a coordinator that was there may be away: it is being restarted."""
RETRY_S = 2.0


def watch_run(client: AdminClient, run_id: str, *, as_json: bool) -> None:
    """Show it; raises typer.Exit with the status that says how it ended."""
    view = RunView(run_id)
    live = console.is_terminal and not as_json
    with Live(view.screen(), console=console, auto_refresh=False) if live else _Nothing() as screen:
        for event in followed(client, run_id):
            data = event_data(event)
            line = view.feed(event.kind, data)
            if as_json:
                shown = {"sequence": event.sequence, "time": event.time, "kind": event.kind, "data": data}
                typer.echo(json.dumps(shown))
            elif isinstance(screen, Live):
                screen.update(view.screen(), refresh=True)
            elif line:
                console.print(plain(line), soft_wrap=True)
    if not as_json and not live:
        console.print(view.table())
    if view.status == "failed":
        raise typer.Exit(EXIT_FAILED)
    if view.status == "stopped":
        raise typer.Exit(EXIT_STOPPED)


def followed(
    client: AdminClient,
    run_id: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[pb.Event]:
    """Every event of the run once, until it has ended, however often the connection is lost in between.

    Raises typer.Exit(EXIT_LOST) when the coordinator stays away for GIVE_UP_S after it was there.
    """
    after, lost_at = 0, 0.0
    while True:
        try:
            for event in client.stream_events(run_id, after=after):
                if lost_at:
                    typer.secho("! the coordinator is back", err=True)
                    lost_at = 0.0
                if event.kind == "alive":
                    continue
                if event.kind != "progress":
                    after = event.number
                yield event
                if event.kind in ENDS:
                    return
        except ConnectionLost as error:
            if not after:
                raise  # it was never there
            if not lost_at:
                lost_at = clock()
                typer.secho(f"! {error} Trying again for {GIVE_UP_S:.0f} s.", err=True)
            if clock() - lost_at >= GIVE_UP_S:
                typer.secho("! the run may go on, and was not watched to its end", err=True)
                raise typer.Exit(EXIT_LOST) from error
            sleep(RETRY_S)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
