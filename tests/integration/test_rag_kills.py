"""kill -9 while documents are added and erased, in real processes: nothing is half there, the next command goes on."""

import subprocess
import sys
import time
from pathlib import Path

from confide.children import bound
from confide.rag.access import Caller
from confide.rag.catalogue import State
from confide.rag.library import Library

from tests.rag_worlds import World, embedder

OPERATOR = Caller.operator("clinic")
DOCUMENTS = 24
# One document a group, so that a kill falls between any two steps of any of them.
WORKER = """
import sys
from pathlib import Path
from confide.rag import ingest
from confide.rag.access import Caller
from confide.rag.embedder import Embedder
from confide.rag.library import Library, settings_for
ingest._GROUP_DOCUMENTS = 1
what, root, files, model = sys.argv[1], *map(Path, sys.argv[2:])
library, operator, embedder = Library(root), Caller.operator("clinic"), Embedder(model)
embedder.embed(["load"])
print("ready", flush=True)
if what == "add":
    chosen = settings_for(embedder, most_tokens=60)
    library.add(operator, "leaflets", sorted(files.iterdir()), embedder, chosen, print)
else:
    for document in library.documents(operator, "leaflets"):
        if document.state != "erased":
            library.erase(operator, "leaflets", document.id, print)
print("done", flush=True)
"""


def worker(what: str, world: World) -> "subprocess.Popen[str]":
    arguments = [what, str(world.library.root), str(world.folder / "files"), str(embedder().folder)]
    child = subprocess.Popen(
        bound([sys.executable, "-c", WORKER, *arguments]), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def killed(what: str, world: World, after_s: float) -> None:
    child = worker(what, world)
    time.sleep(after_s)
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def check_whole(world: World) -> int:
    """Every document that is found is found whole; gives how many are live."""
    library = Library(world.library.root)
    live = {one.id: one for one in library.documents(OPERATOR, "leaflets") if one.state is State.LIVE}
    found: dict[str, int] = {}
    for one in library.search(OPERATOR, "leaflets", "fee", embedder(), limit=200).found:
        found[one.passage.document.id] = found.get(one.passage.document.id, 0) + 1
    assert found == {key: one.passages for key, one in live.items()}
    return len(live)


def finished(what: str, world: World) -> str:
    child = worker(what, world)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0 and output.endswith("done\n"), output
    return output


def test_kills_while_adding_and_erasing(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(DOCUMENTS):
        world.file(f"{number:02}.txt", f"The fee of room {number} is {number + 100} crowns.")
    counts = [0]
    for after_s in (0.3, 0.9):
        killed("add", world, after_s)
        if (world.folder_of() / "catalogue.json").exists():
            counts.append(check_whole(world))
    assert counts == sorted(counts)
    finished("add", world)
    assert check_whole(world) == DOCUMENTS
    killed("erase", world, 0.7)
    left = check_whole(world)
    assert left <= DOCUMENTS
    finished("erase", world)
    assert check_whole(world) == 0
    receipts = list((world.folder_of() / "receipts").glob("*.json"))
    assert len(receipts) == DOCUMENTS
    everything = b"".join(path.read_bytes() for path in world.library.root.rglob("*") if path.is_file())
    assert b"The fee of room" not in everything
