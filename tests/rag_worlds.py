"""A library with a few small documents and an embedder of random weights, which sees words and little else."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from confide.rag.access import Caller
from confide.rag.embedder import Embedder
from confide.rag.ingest import Report
from confide.rag.library import Library, settings_for

from tests.tiny_models import tiny_bert

FEES = """# Fees

A visit costs forty crowns. Children pay nothing at all.

# Opening hours

The clinic opens at eight in the morning. It closes at six in the evening.
"""
WALLS = "The wall must be twelve centimetres thick. A lime mortar is right for an old brick wall."


@functools.cache
def embedder() -> Embedder:
    """One for all tests of a process."""
    return Embedder(tiny_bert(Path(tempfile.mkdtemp(prefix="confide-embedder-")) / "tiny", head=False))


class World:
    """A library in a folder, and files to put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = Library(folder / "library")
        self.said: list[str] = []

    def file(self, name: str, content: str | bytes) -> Path:
        """A file of this content."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def add(
        self,
        files: Sequence[Path],
        *,
        organization: str = "clinic",
        collection: str = "leaflets",
        again: bool = False,
        **settings: object,
    ) -> Report:
        """Add files, with passages short enough for the tiny embedder."""
        chosen = settings_for(embedder(), **{"most_tokens": 60, **settings})
        caller = Caller.operator(organization)
        return self.library.add(caller, collection, files, embedder(), chosen, self.said.append, again=again)

    def folder_of(self, organization: str = "clinic", collection: str = "leaflets") -> Path:
        """Where a collection is on disk."""
        return self.library.root / "organizations" / organization / collection


def world_with_fees(folder: Path) -> World:
    """The clinic's leaflets hold one document."""
    world = World(folder)
    report = world.add([world.file("fees.md", FEES)])
    assert not report.failed
    return world
