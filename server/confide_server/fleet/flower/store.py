"""Flower's object store with big contents in files, so that memory does not grow with the number of nodes.

The index stays in memory and dies with the process: whatever was in flight is sent again. The files are kept out of
any database (a write-ahead log would keep payloads after they were deleted) and are removed at start.
"""

from pathlib import Path

from confide.files import private_folder
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry

IN_MEMORY_BYTES = 64 * 1024


class _Entries(dict[str, ObjectEntry]):
    """Flower's index; an entry that goes takes its file along."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __delitem__(self, object_id: str) -> None:
        super().__delitem__(object_id)
        (self.folder / object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        for object_id in list(self):
            del self[object_id]


class FileObjectStore(InMemoryObjectStore):
    """An object's content stands in memory up to 64 KiB, and in a file of its name above."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = private_folder(folder)
        for left_over in self._folder.iterdir():
            left_over.unlink()
        self.store = _Entries(self._folder)

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """As Flower's, for the whole tree at once.

        Flower takes its lock for each object: a part that two messages share could go with the first of them between
        being found here and being counted for the second.
        """
        with self.lock_store:
            return super().preregister(run_id, object_tree)

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep a preregistered object's content; Flower checks that it hashes to its name."""
        super().put(object_id, object_content)
        if len(object_content) <= IN_MEMORY_BYTES:
            return
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or not entry.content:
                return
            try:
                (self._folder / object_id).write_bytes(object_content)
            except OSError:
                entry.content, entry.is_available = b"", False
                (self._folder / object_id).unlink(missing_ok=True)
                raise
            entry.content = b""

    def get(self, object_id: str) -> bytes | None:
        """The content; b"" while it has not arrived, None when unknown."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or entry.content or not entry.is_available:
                return None if entry is None else entry.content
            return (self._folder / object_id).read_bytes()

    def get_small(self, object_id: str) -> bytes | None:
        """The content where it stands in memory; None for what is in a file, has not arrived, or is unknown."""
        with self.lock_store:
            entry = self.store.get(object_id)
            return entry.content or None if entry is not None else None
