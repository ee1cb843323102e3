"""`confide rlhf annotate` and `adjudicate`: people's judgements, in the terminal, on files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from confide.errors import DataError
from confide.text import line

if TYPE_CHECKING:
    from confide_server.rlhf.annotation.annotating import Session


def register(app: typer.Typer) -> None:
    """Add them to `confide rlhf`."""
    for command in (annotate, adjudicate):
        app.command()(command)


def annotate(
    file: Annotated[Path, typer.Argument(help="candidates.jsonl.", exists=True, dir_okay=False)],
    annotator: Annotated[str, typer.Option(help="Your name, in small letters.")],
    out: Annotated[Path | None, typer.Option(help="Default: ratings-NAME.jsonl beside the candidates.")] = None,
    rubric: Annotated[str, typer.Option(help="Version of the instructions.")] = "1",
) -> None:
    """Judge pairs of answers, blind: 1 or 2 the better, t tie, b both bad, s skip, u undo, q stop. Resumes."""
    from pydantic import TypeAdapter, ValidationError

    from confide_server.rlhf.annotation.annotating import Session
    from confide_server.rlhf.annotation.preferences import Candidate, Person, check_candidates, read_lines

    try:
        TypeAdapter(Person).validate_python(annotator)
    except ValidationError as error:
        raise DataError(
            f"the annotator's name is {line(annotator)!r}; use small letters, digits, '.', '_' and '-'"
        ) from error
    known = read_lines(file, Candidate)
    check_candidates(known)
    session = Session(known, annotator, out or file.with_name(f"ratings-{annotator}.jsonl"), rubric=rubric)
    _sit(session)


def adjudicate(
    file: Annotated[Path, typer.Argument(help="candidates.jsonl.", exists=True, dir_okay=False)],
    ratings: Annotated[list[Path], typer.Argument(help="The annotators' ratings-*.jsonl.", exists=True)],
    annotator: Annotated[str, typer.Option(help="Your name; you were none of the annotators.")],
    unanimous: Annotated[
        bool, typer.Option(help="Also pairs on which not all agree; default: without majority.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default: adjudicated-NAME.jsonl beside the candidates.")] = None,
) -> None:
    """Decide the pairs that annotators left open, as blind as they were; `snapshot --adjudicated` takes the file."""
    from confide_server.rlhf.annotation.annotating import Session
    from confide_server.rlhf.annotation.preferences import Candidate, Comparison, check_candidates, read_lines, standing
    from confide_server.rlhf.annotation.snapshots import decide

    check_candidates(known := read_lines(file, Candidate))
    judged = standing([one for path in ratings for one in read_lines(path, Comparison)])
    if annotator in {one.annotator for one in judged}:
        raise DataError(f"ADJUDICATOR_JUDGED: {line(annotator)} is one of the annotators; let somebody else decide")
    _, left = decide(judged, "unanimous" if unanimous else "majority")
    typer.echo(f"{len(left)} pairs were left open")
    _sit(Session(known, annotator, out or file.with_name(f"adjudicated-{annotator}.jsonl"), only=left))


def _sit(session: "Session") -> None:
    """Ask until all is judged, or somebody stops."""
    from confide_server.rlhf.annotation.annotating import KEYS

    while (task := session.next()) is not None:
        typer.echo(f"\n[{session.done + 1} of {session.total}] {line(task.prompt)}")
        typer.echo(f"  1: {line(task.first.text)}\n  2: {line(task.second.text)}")
        key = ""
        while key not in {*KEYS, "u", "q"}:
            typer.echo("1 2 t b s u q: ", nl=False)
            read = sys.stdin.readline()
            key = "q" if read == "" else read.strip().lower()
        if key == "q":
            break
        if key == "u":
            session.undo()
        else:
            session.judge(task, KEYS[key])
    typer.echo(f"{session.done} of {session.total} pairs judged")
