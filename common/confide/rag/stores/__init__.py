"""Where passages are kept.

- `base`: what a store does; `lance`: LanceDB in the collection's folder; `postgres`: PostgreSQL with pgvector;
  `qdrant`: a Qdrant server
"""

from pathlib import Path

from confide.errors import StateError
from confide.rag.access import CollectionName
from confide.rag.stores.base import PassageStore

LANCEDB = "lancedb"


def open_store(kind: str, folder: Path, name: CollectionName, dimension: int) -> PassageStore:
    """kind: "lancedb", or a URL: postgresql://, qdrant+http://, qdrant+https://. Raises StateError for another."""
    if kind == LANCEDB:
        from confide.rag.stores.lance import LanceStore

        return LanceStore(folder, dimension)
    if kind.split(":")[0] in {"postgresql", "postgresql+psycopg"}:
        from confide.rag.stores.postgres import PostgresStore

        return PostgresStore(kind, name, dimension)
    if kind.split(":")[0] in {"qdrant+http", "qdrant+https"}:
        from confide.rag.stores.qdrant import QdrantStore

        return QdrantStore(kind, name, dimension)
    raise StateError(
        f"the store {kind.split(':')[0][:40]!r} is not known; use lancedb, "
        "postgresql://USER@HOST/DATABASE or qdrant+https://HOST:PORT"
    )
