"""`confide rlhf share`, `upload` and `fetch`: answers to the coordinator, judgements to it, and all of them back."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from confide import canonical
from confide.files import write_atomic

_AT_ONCE = 500
Member = Annotated[Path, typer.Option("--member", help="Your folder.", exists=True, file_okay=False)]
Coordinator = Annotated[str, typer.Option(help="host:port; default: as the consortium says.")]


def register(app: typer.Typer) -> None:
    """Add them to `confide rlhf`."""
    for command in (share, upload, fetch):
        app.command()(command)


def share(
    candidates: Annotated[Path, typer.Argument(help="candidates.jsonl.", exists=True, dir_okay=False)],
    name: Annotated[str, typer.Option(help="Of the prompt set.")],
    source: Annotated[str, typer.Option(help="Where its prompts come from.")],
    member: Member,
    licence: Annotated[str, typer.Option(help="Of the prompts.")] = "",
    coordinator: Coordinator = "",
) -> None:
    """Hand answers to the coordinator, so that judgements of them can be uploaded; again changes nothing."""
    from confide.identity.member import load_member
    from confide.transport.admin import AdminClient

    from confide_server.rlhf.preferences import Candidate, check_candidates, read_lines

    known = check_candidates(read_lines(candidates, Candidate))
    documents = [canonical.encode(one.model_dump(mode="json")) for one in known.values()]
    with AdminClient.of_member(load_member(member), coordinator) as client:
        kept = sum(
            client.put_candidates(name, part, source=source, licence=licence, key=_key(part)).kept
            for part in _parts(documents)
        )
    typer.echo(f"{len(documents)} candidates are there, {kept} of them new")


def upload(
    ratings: Annotated[Path, typer.Argument(help="Your ratings-NAME.jsonl.", exists=True, dir_okay=False)],
    member: Member,
    coordinator: Coordinator = "",
) -> None:
    """Hand your judgements, made offline, to the coordinator. What it has from here is noted beside the file.

    What broke off is sent again and counted once; a pair that the coordinator has from elsewhere is refused by name.
    """
    from confide.identity.member import load_member
    from confide.transport.admin import AdminClient

    from confide_server.rlhf.preferences import Comparison, read_lines, standing

    noted = ratings.with_suffix(".uploaded")
    sent = set(noted.read_text("utf-8").split()) if noted.exists() else set()
    made = standing(read_lines(ratings, Comparison))
    documents = [canonical.encode(one.model_dump(mode="json")) for one in made]
    new = [document for document in documents if hashlib.sha256(document).hexdigest() not in sent]
    with AdminClient.of_member(load_member(member), coordinator) as client:
        for part in _parts(new):
            client.put_ratings(part, key=_key(part))
            sent |= {hashlib.sha256(document).hexdigest() for document in part}
            write_atomic(noted, "\n".join(sorted(sent)).encode())
    typer.echo(f"{len(documents)} judgements are there, {len(new)} of them new")


def fetch(
    to: Annotated[Path, typer.Argument(help="A .jsonl file, for `confide rlhf snapshot`.", dir_okay=False)],
    member: Member,
    coordinator: Coordinator = "",
) -> None:
    """Write all judgements that stand at the coordinator."""
    from confide.identity.member import load_member
    from confide.transport.admin import AdminClient

    found: list[bytes] = []
    with AdminClient.of_member(load_member(member), coordinator) as client:
        page = client.list_ratings()
        found += page.ratings
        while page.more:
            page = client.list_ratings(after=page.last)
            found += page.ratings
    write_atomic(to, b"".join(document + b"\n" for document in found))
    typer.echo(f"{len(found)} judgements in {to}")


def _parts(documents: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(documents), _AT_ONCE):
        yield documents[start : start + _AT_ONCE]


def _key(part: Sequence[bytes]) -> str:
    """The same documents are the same request, whichever attempt it is."""
    return hashlib.sha256(canonical.encode([document.hex() for document in part])).hexdigest()
