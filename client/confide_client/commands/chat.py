"""`confide chat`: talk to a base model, to an exported adapter, or to a served endpoint in the terminal."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import ModelError, StateError

_LEAVE = {"/quit", "/exit"}
_Messages = list[dict[str, str]]
_Answer = Callable[[_Messages], Iterator[str]]


def chat(
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the base model, or of a whole exported model.", exists=True, file_okay=False),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of an exported adapter.", exists=True, file_okay=False)
    ] = None,
    url: Annotated[str, typer.Option(help="Ask a served endpoint (http://host:port/v1) instead of a model here.")] = "",
    key_file: Annotated[Path | None, typer.Option(help="File with the endpoint's key.", dir_okay=False)] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Certificates to trust (PEM), for an endpoint with its own.", dir_okay=False)
    ] = None,
    model: Annotated[str, typer.Option(help="The endpoint's model; default: the first that the key may use.")] = "",
    collection: Annotated[
        list[str] | None,
        typer.Option(help="Answer from this collection of the endpoint, with citations; may be repeated."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and end.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always gives the same answer.")] = 0.0,
) -> None:
    """Talk to a model here, of which nothing leaves this machine, or to a served one (--url).

    Ctrl-D or /quit ends, /new starts afresh.
    """
    if bool(url) == (base is not None):
        raise ModelError("name a model here (--base FOLDER), or an endpoint (--url http://host:port/v1)")
    if base is not None:
        if collection or key_file is not None or model:
            raise ModelError("--collection, --key-file and --model are for an endpoint; give --url too")
        name, ask = _local(base, adapter, max_tokens, temperature)
    else:
        if adapter is not None:
            raise ModelError("an endpoint serves its own adapters; leave --adapter out, and choose one with --model")
        name, ask = _remote(url, key_file, ca, model, collection or [], max_tokens, temperature)
    _talk(name, ask, prompt)


def _local(base: Path, adapter: Path | None, max_tokens: int, temperature: float) -> tuple[str, _Answer]:
    from confide.models.answering import answer, load_answering

    loaded, tokenizer = load_answering(base, adapter)

    def ask(messages: _Messages) -> Iterator[str]:
        return answer(loaded, tokenizer, messages, max_tokens=max_tokens, temperature=temperature)

    return f"{base.name}{f' with {adapter.name}' if adapter else ''}", ask


def _remote(
    url: str,
    key_file: Path | None,
    ca: Path | None,
    model: str,
    collections: list[str],
    max_tokens: int,
    temperature: float,
) -> tuple[str, _Answer]:
    from confide.text import line

    from confide_client.endpoint import Endpoint

    try:
        key = "" if key_file is None else key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"the key {key_file} cannot be read: {error}") from error
    endpoint = Endpoint(url, key, ca)
    chosen = model or next(iter(endpoint.models()), "")
    if not chosen:
        raise ModelError("the endpoint serves no model to this key; ask its operator")

    def ask(messages: _Messages) -> Iterator[str]:
        options = {"max_tokens": max_tokens, "temperature": temperature, "collections": collections}
        yield from endpoint.answer(chosen, messages, **options)  # type: ignore[arg-type]  # by name
        for number, cited in enumerate(endpoint.citations, 1):
            typer.echo(f"\n[{number}] {cited.title} {cited.url}", nl=False)
        if endpoint.prose:
            typer.echo(f"\nUnverified, in the model's own words: {line(endpoint.prose, 2000)}", nl=False)

    return f"{chosen} at {url}", ask


def _talk(name: str, ask: _Answer, prompt: str | None) -> None:
    from confide.text import paragraph

    messages: _Messages = []

    def turn(question: str) -> None:
        messages.append({"role": "user", "content": question})
        pieces = []
        for piece in ask(messages):
            typer.echo(paragraph(piece), nl=False)
            pieces.append(piece)
        typer.echo()
        messages.append({"role": "assistant", "content": "".join(pieces)})

    if prompt is not None:
        turn(prompt)
        return
    typer.echo(f"{name}. Ctrl-D or /quit ends, /new starts afresh.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            typer.echo()
            return
        if question in _LEAVE:
            return
        if question == "/new":
            messages.clear()
        elif question:
            turn(question)
