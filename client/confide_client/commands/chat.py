"""`confide chat`: talk to a base model or to an exported adapter in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

_LEAVE = {"/quit", "/exit"}


def chat(
    base: Annotated[
        Path, typer.Option(help="Folder of the base model, or of a whole exported model.", exists=True, file_okay=False)
    ],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of an exported adapter.", exists=True, file_okay=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and end.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always gives the same answer.")] = 0.0,
) -> None:
    """Talk to a model. Nothing leaves this machine. Ctrl-D or /quit ends, /new starts afresh."""
    from confide.models.answering import answer, load_answering
    from confide.text import paragraph

    model, tokenizer = load_answering(base, adapter)
    messages: list[dict[str, str]] = []

    def turn(question: str) -> None:
        messages.append({"role": "user", "content": question})
        pieces = []
        for piece in answer(model, tokenizer, messages, max_tokens=max_tokens, temperature=temperature):
            typer.echo(paragraph(piece), nl=False)
            pieces.append(piece)
        typer.echo()
        messages.append({"role": "assistant", "content": "".join(pieces)})

    if prompt is not None:
        turn(prompt)
        return
    typer.echo(f"{base.name}{f' with {adapter.name}' if adapter else ''}. Ctrl-D or /quit ends, /new starts afresh.")
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
