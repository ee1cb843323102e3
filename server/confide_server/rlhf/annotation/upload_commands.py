"""`confide rlhf share`, `upload` and `fetch`: answers to the coordinator, judgements to it, and all of them back."""

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from confide import canonical
from confide.errors import ConfideError, RetryableError, TransportError
from confide.files import write_atomic

if TYPE_CHECKING:
    from confide.transport.admin import AdminClient

    from confide_server.rlhf.annotation.preferences import Comparison

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

    from confide_server.rlhf.annotation.preferences import Candidate, check_candidates, read_lines

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

    What broke off is sent again and counted once; what was undone since is taken back there too; a pair that the
    coordinator has from elsewhere is refused by name.
    """
    from confide.identity.member import load_member
    from confide.transport.admin import AdminClient

    from confide_server.rlhf.annotation.preferences import Comparison, read_lines, standing

    made = read_lines(ratings, Comparison)
    stands = {_hash(document): document for document in map(_document, standing(made))}
    noted, begun = ratings.with_suffix(".uploaded"), ratings.with_suffix(".uploading")
    there, new = set(noted.read_text("utf-8").split()) if noted.exists() else set[str](), 0
    with AdminClient.of_member(load_member(member), coordinator) as client:
        while True:
            if not begun.exists():
                if not (part := _missing(made, stands, there)):
                    break
                write_atomic(begun, b"\n".join([secrets.token_hex(16).encode(), *part]))
            # The very same request until it is answered: one that had grown meanwhile would be another, in which what
            # the coordinator kept before the connection broke counts as judged twice.
            key, *part = begun.read_bytes().split(b"\n")
            _hand_over(client, part, key.decode(), begun)
            sent = [Comparison.model_validate_json(document) for document in part]
            there -= {_hash(_document(one.model_copy(update={"undone": False}))) for one in sent if one.undone}
            there |= {_hash(_document(one)) for one in sent if not one.undone}
            new += sum(not one.undone for one in sent)
            write_atomic(noted, "\n".join(sorted(there)).encode())
            begun.unlink()
    typer.echo(f"{len(there)} judgements are there, {new} of them new")


def _missing(made: Sequence["Comparison"], stands: Mapping[str, bytes], there: set[str]) -> list[bytes]:
    """Of what the coordinator is to have the next part: what it has and was undone since, then what it has not."""
    gone = {
        _hash(_document(one)): one for one in made if not one.undone and _hash(_document(one)) in there - set(stands)
    }
    undone = [_document(one.model_copy(update={"undone": True})) for one in gone.values()]
    return [*undone, *(document for name, document in stands.items() if name not in there)][:_AT_ONCE]


def _hand_over(client: "AdminClient", part: Sequence[bytes], key: str, begun: Path) -> None:
    """What the coordinator refuses is not begun any more; what broke off is."""
    try:
        client.put_ratings(part, key=key)
    except (TransportError, RetryableError):
        raise
    except ConfideError:
        begun.unlink()
        raise


def _document(one: "Comparison") -> bytes:
    return canonical.encode(one.model_dump(mode="json"))


def _hash(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()


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
