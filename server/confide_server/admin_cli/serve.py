"""`confide serve`: an OpenAI-compatible endpoint over a trained model.

confide serve keys add --name alice --model support
confide serve alias set support adapter --base models/smollm2 --root KEY
confide serve --base models/smollm2
"""

import json
import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from confide.errors import StateError
from confide.secrecy import private_files, private_process
from confide.text import line, log_to_stderr, markup, table
from rich.console import Console

if TYPE_CHECKING:
    from confide_server.state.serving_tables import ServingAlias

app = typer.Typer(
    invoke_without_command=True,
    help="Serve a trained model over an OpenAI-compatible endpoint: keys, budgets, adapters by alias.",
)
keys_app = typer.Typer(no_args_is_help=True, help="API keys: what each may reach, how fast, how much.")
alias_app = typer.Typer(no_args_is_help=True, help="Aliases: which adapter answers under which name.")
app.add_typer(keys_app, name="keys")
app.add_typer(alias_app, name="alias")

State = Annotated[Path, typer.Option("--state", envvar="CONFIDE_SERVING", help="The endpoint's state folder.")]
DatabaseUrl = Annotated[str, typer.Option("--database", help="SQLAlchemy URL; default: serving.db in the state.")]
Base = Annotated[Path, typer.Option(help="Folder of the base model, or of a whole exported model.", file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
_STATE = Path("~/.confide/serving")


@app.callback()
def serve(
    context: typer.Context,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base model, or of a whole exported model.", file_okay=False)
    ] = None,
    state: State = _STATE,
    name: Annotated[str, typer.Option(help="The base model's own name here; default: its folder's.")] = "",
    bind: Annotated[str, typer.Option(help="Address to listen on; beyond this machine it takes TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    host: Annotated[list[str] | None, typer.Option(help="A name under which it is asked; may be repeated.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate with its chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="No TLS beyond this machine: a proxy in front has it.")
    ] = False,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Everybody on this machine may ask; for trying it out.")
    ] = False,
    embedder: Annotated[
        Path | None, typer.Option(help="Folder of a sentence encoder, for /v1/embeddings.", file_okay=False)
    ] = None,
    embedder_name: Annotated[str, typer.Option(help="Its name here.")] = "embedder",
    library: Annotated[
        Path | None, typer.Option(help="Documents to answer from (`confide rag add`).", file_okay=False)
    ] = None,
    library_embedder: Annotated[
        Path | None, typer.Option(help="The model folder with which they were embedded.", file_okay=False)
    ] = None,
    library_reranker: Annotated[
        Path | None, typer.Option(help="The cross-encoder with which they were calibrated, if any.", file_okay=False)
    ] = None,
    library_model: Annotated[
        str, typer.Option(help="The alias that chooses what is quoted; default: the embedder. For models above 1B.")
    ] = "",
    library_prose: Annotated[
        str | None,
        typer.Option(
            help="The alias that also says in its own words what is quoted: apart, and unverified; '' for none. "
            "Default: that of --library-model, from 1B on."
        ),
    ] = None,
    upstream: Annotated[str, typer.Option(help="URL of a vLLM server that computes, instead of this process.")] = "",
    upstream_key_file: Annotated[Path | None, typer.Option(help="File with the upstream's key.")] = None,
    keep_text: Annotated[
        bool, typer.Option("--keep-text", help="Keep questions and answers in the database. Off: only who and when.")
    ] = False,
    database: DatabaseUrl = "",
    rows: Annotated[int, typer.Option(min=1, help="Answers that are written together.")] = 16,
    cache_tokens: Annotated[int, typer.Option(min=64, help="Tokens of keys and values held in memory.")] = 32768,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; one more gets 429.")] = 256,
    body_bytes: Annotated[int, typer.Option(min=1024, help="Largest request.")] = 1 << 20,
    seconds: Annotated[float, typer.Option(min=1, help="Longest answer.")] = 600.0,
    verbose: Annotated[bool, typer.Option(help="Log more.")] = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; `keys` and `alias` may be used while it runs."""
    if context.invoked_subcommand is not None:
        private_files()
        return
    if base is None:
        raise StateError("--base is missing: the folder of the model to serve (`confide serve --help`)")
    _check_installed(upstream=bool(upstream))
    private_process()
    log_to_stderr(logging.INFO if verbose else logging.WARNING, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    import asyncio

    from confide_server.serving.endpoint.app import Limits
    from confide_server.serving.process import Serving, Settings

    settings = Settings(
        state=state.expanduser(),
        base=base,
        name=name,
        upstream=upstream,
        upstream_key_file=upstream_key_file,
        embedder=embedder,
        embedder_name=embedder_name,
        library=library,
        library_embedder=library_embedder,
        library_reranker=library_reranker,
        library_model=library_model,
        library_prose=library_prose,
        bind=bind,
        port=port,
        hosts=tuple(host or ()),
        certificate=certificate,
        key=key,
        plain=plain_http,
        keys=not without_keys,
        keep_text=keep_text,
        database=database,
        rows=rows,
        cache_tokens=cache_tokens,
        waiting=waiting,
        limits=Limits(body_bytes=body_bytes, seconds=seconds),
    )
    serving = Serving(settings)
    scheme = "http" if certificate is None else "https"

    def ready(taken: int) -> None:
        served = ", ".join(target.alias for target in serving.catalogue.targets())
        typer.echo(f"ready: {scheme}://{bind}:{taken}/v1 serves {served}")

    asyncio.run(serving.run(ready))


def _check_installed(*, upstream: bool) -> None:
    needed = ["prometheus_client", "llguidance", *(["httpx"] if upstream else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise StateError(f"{missing[0]} is not installed; install what serving needs: pip install 'confide[serving]'")


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Option(help="Whose key it is, for people.")],
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; may be repeated. Default: all.")] = None,
    collection: Annotated[
        list[str] | None, typer.Option(help="A collection of documents it may ask; may be repeated. Default: none.")
    ] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="It may read /metrics.")] = False,
    days: Annotated[float, typer.Option(min=0.001, help="Good for so many days.")] = 365.0,
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option(min=0, help="Read and written; 0: no limit.")] = 0,
    at_once: Annotated[int, typer.Option(min=0, help="Requests under way; 0: no limit.")] = 64,
    budget_tokens: Annotated[int, typer.Option(min=0, help="In all, or in each period; 0: no limit.")] = 0,
    budget_days: Annotated[float, typer.Option(min=0, help="Length of a period; 0: the budget is for ever.")] = 0.0,
    state: State = _STATE,
    database: DatabaseUrl = "",
) -> None:
    """Make a key and print it, for the only time."""
    from confide_server.serving.process import open_database
    from confide_server.state.serving_keys import KeyTerms
    from confide_server.state.serving_keys import add_key as make

    terms = KeyTerms(
        name=name,
        models=tuple(model or ("*",)),
        collections=tuple(collection or ()),
        metrics=metrics,
        days=days,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        at_once=at_once,
        budget_tokens=budget_tokens,
        budget_days=budget_days,
    )
    opened = open_database(state.expanduser(), database)
    typer.echo(make(opened, terms))
    opened.close()


@keys_app.command("list")
def show_keys(state: State = _STATE, database: DatabaseUrl = "", as_json: AsJson = False) -> None:
    """Show the keys, what each may do, and what it has spent."""
    from confide_server.serving.process import open_database
    from confide_server.state.serving_keys import list_keys

    opened = open_database(state.expanduser(), database)
    rows = list_keys(opened)
    opened.close()
    if as_json:
        hidden = {"digest", "_sa_instance_state"}
        for row in rows:
            typer.echo(json.dumps({key: value for key, value in vars(row).items() if key not in hidden}))
        return
    shown = table("key", "name", "models", "collections", "until", "spent", "budget", keys={"key": 8})
    for row in rows:
        until = "revoked" if row.revoked_at else time.strftime("%Y-%m-%d", time.localtime(row.expires_at))
        budget = str(row.budget_tokens or "none")
        cells = (row.name, " ".join(row.models), " ".join(row.collections), until, str(row.spent_tokens), budget)
        shown.add_row(row.key_id, *map(markup, cells))
    Console().print(shown)


@keys_app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="The 8 characters behind `confide-`.")],
    state: State = _STATE,
    database: DatabaseUrl = "",
) -> None:
    """Refuse a key from its next request on."""
    from confide_server.serving.process import open_database
    from confide_server.state.serving_keys import revoke_key

    opened = open_database(state.expanduser(), database)
    revoke_key(opened, key_id)
    opened.close()
    typer.echo(f"key {key_id} is revoked")


@app.command("log")
def show_requests(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 50,
    key_id: Annotated[str | None, typer.Option(help="Of this key only.")] = None,
    forget_days: Annotated[
        float | None, typer.Option(min=0, help="Delete what is older than so many days, texts included.")
    ] = None,
    state: State = _STATE,
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Show who asked which model when, and what it took."""
    from confide_server.serving.process import open_database
    from confide_server.state import serving_requests

    opened = open_database(state.expanduser(), database)
    if forget_days is not None:
        typer.echo(f"{serving_requests.forget_before(opened, forget_days)} requests are forgotten")
    rows = serving_requests.newest(opened, limit, key_id)
    opened.close()
    if as_json:
        for row in rows:
            typer.echo(json.dumps({key: value for key, value in vars(row).items() if key != "_sa_instance_state"}))
        return
    ids = {"key": 8, "adapter": 12}
    shown = table("began", "key", "route", "model", "adapter", "read", "written", "outcome", keys=ids)
    for row in rows:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.began_at))
        counts = (str(row.prompt_tokens), str(row.completion_tokens), row.outcome)
        shown.add_row(began, row.key_id, row.route, markup(row.model), row.adapter_sha256[:12] or "base", *counts)
    Console().print(shown)


@alias_app.command("set")
def set_alias(
    alias: Annotated[str, typer.Argument(help="The name under which it is asked.")],
    adapter: Annotated[Path, typer.Argument(help="Folder that `confide run export` wrote.", file_okay=False)],
    base: Base,
    root: Annotated[str, typer.Option(help="The consortium root's public key, as you learned it elsewhere.")] = "",
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take it without a verified manifest: you trust the folder.")
    ] = False,
    state: State = _STATE,
    database: DatabaseUrl = "",
) -> None:
    """Keep a copy of an adapter, checked, and point an alias at it. A running endpoint follows within a second."""
    from confide_server.serving.adapters import AdapterStore
    from confide_server.serving.process import open_database
    from confide_server.state import serving_aliases

    if bool(root) == unsigned:
        raise StateError("say --root KEY to have the adapter's manifest verified, or --unsigned to waive that")
    kept = AdapterStore(state.expanduser() / "adapters", base).keep(adapter, _root_key(root))
    standing = serving_aliases.Standing(alias, kept.sha256, kept.base_sha256, root.strip().lower(), kept.run_id)
    opened = open_database(state.expanduser(), database)
    serving_aliases.point(opened, standing)
    opened.close()
    said = f"run {kept.run_id}" if kept.run_id else "UNSIGNED"
    typer.echo(f"{alias} stands for adapter {kept.sha256} ({line(said)})")


def _root_key(root: str) -> bytes | None:
    if not root:
        return None
    try:
        key = bytes.fromhex(root.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise StateError("the root's key is 64 characters of hex; copy it from where you learned it")
    return key


@alias_app.command("list")
def show_aliases(
    alias: Annotated[str, typer.Argument(help="Its history; default: what every alias stands for.")] = "",
    state: State = _STATE,
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Show what aliases stand for."""
    from confide_server.serving.process import open_database
    from confide_server.state import serving_aliases
    from confide_server.state.serving_tables import ServingAlias

    opened = open_database(state.expanduser(), database)
    found = serving_aliases.history(opened, alias) if alias else serving_aliases.current(opened)[1]
    opened.close()
    fields = ["alias", "adapter_sha256", "base_sha256", "root", "run_id", *(("set_at", "removed") if alias else ())]
    if as_json:
        for one in found:
            typer.echo(json.dumps({name: getattr(one, name) for name in fields}))
        return
    ids = {"adapter": 12, "base": 12, "run": 12}
    shown = table("alias", "adapter", "base", "signed by root", "run", *(["since"] if alias else []), keys=ids)
    for one in found:
        signed = one.root[:12] or "UNSIGNED"
        cells = [markup(one.alias), one.adapter_sha256[:12], one.base_sha256[:12], signed, markup(one.run_id[:12])]
        shown.add_row(*cells, *([_since(one)] if isinstance(one, ServingAlias) else []))
    Console().print(shown)


def _since(row: "ServingAlias") -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.set_at))
    return f"{at} removed" if row.removed else at


@alias_app.command("rollback")
def roll_back(alias: str, state: State = _STATE, database: DatabaseUrl = "") -> None:
    """Point an alias at what it stood for before."""
    from confide_server.serving.process import open_database
    from confide_server.state import serving_aliases

    opened = open_database(state.expanduser(), database)
    standing = serving_aliases.roll_back(opened, alias)
    opened.close()
    typer.echo(f"{alias} stands for adapter {standing.adapter_sha256} again")


@alias_app.command("remove")
def remove(alias: str, state: State = _STATE, database: DatabaseUrl = "") -> None:
    """Serve nothing under an alias any more."""
    from confide_server.serving.process import open_database
    from confide_server.state import serving_aliases

    opened = open_database(state.expanduser(), database)
    serving_aliases.remove(opened, alias)
    opened.close()
    typer.echo(f"{alias} is not served any more")
