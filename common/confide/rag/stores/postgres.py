"""Passages on a PostgreSQL server with the pgvector extension: one table a collection.

The table's name is a hash of organization and collection: nothing that a person chose is part of a statement. `remove`
deletes and rewrites the table (VACUUM FULL); the server's write-ahead log, replicas and backups are its operator's, and
an erasure's receipt says that they were not looked into.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.rag.access import CollectionName
from confide.rag.stores.base import Row, checked_documents, checked_passages, down

_LIVELY = {
    "connect_timeout": 10,
    # A server that went without a word is noticed after a minute, not after the kernel's quarter of an hour.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""What libpq takes, unless the URL says otherwise."""
_MAKING = int.from_bytes(hashlib.sha256(b"confide passages").digest()[:8], "big", signed=True)
"""The advisory lock of whoever makes something: two at once fail, with IF NOT EXISTS too."""


def checked_url(url: str) -> str:
    """A URL without a password, which would be stored in the clear. Raises StateError."""
    parts = urlsplit(url)
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise StateError("the store's URL holds a password; put it into ~/.pgpass or PGPASSWORD and leave it out here")
    return url


class PostgresStore:
    """One table, over one connection that is made anew when it broke."""

    def __init__(self, url: str, name: CollectionName, dimension: int) -> None:
        """Open or create the table. Raises StoreDown when the server cannot be reached or lacks pgvector."""
        from psycopg import sql

        self._url, self._dimension = checked_url(url), dimension
        key = hashlib.sha256(f"{name.organization}\0{name.collection}".encode()).hexdigest()[:40]
        self._sql, self._table = sql, sql.Identifier(f"confide_passages_{key}")
        self._open_connection: Any = None
        with self._connection() as connection:
            self._make(
                connection,
                self._with_table(
                    "CREATE TABLE IF NOT EXISTS {} (passage text PRIMARY KEY, document text NOT NULL, "
                    "added bigint NOT NULL, embedding vector({}) NOT NULL)",
                    sql.Literal(dimension),
                ),
            )
            found = connection.execute(
                "SELECT atttypmod FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'embedding'",
                (self._table.as_string(connection),),
            ).fetchone()[0]
        if found != dimension:
            self.close()
            raise StateError(f"the table holds vectors of {found} numbers, the collection's have {dimension}")

    def _with_table(self, statement: str, *more: Any) -> Any:
        return self._sql.SQL(statement).format(self._table, *more)

    @staticmethod
    def _make(connection: Any, statement: Any) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
            connection.execute(statement)

    @contextlib.contextmanager
    def _connection(self, *, changes: bool = False) -> Iterator[Any]:
        import psycopg

        try:
            if self._open_connection is None or not _answers(self._open_connection):
                self._connect()
            yield self._open_connection
        except psycopg.Error as error:
            with contextlib.suppress(psycopg.Error):
                self.close()
            raise down("the passages on PostgreSQL", error, changes=changes) from error

    def _connect(self) -> None:
        import psycopg
        from pgvector.psycopg import register_vector
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        self.close()
        url = self._url.replace("postgresql+psycopg://", "postgresql://", 1)
        unsaid = {name: value for name, value in _LIVELY.items() if name not in conninfo_to_dict(url)}
        self._open_connection = psycopg.connect(make_conninfo(url, **unsaid), autocommit=True)
        self._make(self._open_connection, "CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(self._open_connection)

    def add(self, rows: Sequence[Row]) -> None:
        """All of them, or none."""
        checked_passages([row.passage for row in rows])
        with self._connection(changes=True) as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(
                self._with_table("INSERT INTO {} VALUES (%s, %s, %s, %s)"),
                [(row.passage, row.document, row.added, row.vector.astype(np.float32)) for row in rows],
            )

    def search(self, vector: NDArray[np.float32], limit: int, *, since: int = 0) -> list[tuple[str, float]]:
        """By looking at every row: exact."""
        with self._connection() as connection:
            found = connection.execute(
                self._with_table(
                    "SELECT passage, 1 - (embedding <=> %s) FROM {} WHERE added >= %s "
                    "ORDER BY embedding <=> %s LIMIT %s"
                ),
                (vector.astype(np.float32), int(since), vector.astype(np.float32), int(limit)),
            ).fetchall()
        return [(name, float(score)) for name, score in found]

    def vectors(self, passages: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """By name."""
        with self._connection() as connection:
            found = connection.execute(
                self._with_table("SELECT passage, embedding FROM {} WHERE passage = ANY(%s)"),
                (checked_passages(passages),),
            ).fetchall()
        return {name: _array(vector) for name, vector in found}

    def everything(self) -> tuple[list[str], list[int], NDArray[np.float32]]:
        """By reading the table."""
        with self._connection() as connection:
            found = connection.execute(self._with_table("SELECT passage, added, embedding FROM {}")).fetchall()
        matrix = np.stack([_array(row[2]) for row in found]) if found else np.empty((0, self._dimension), np.float32)
        return [row[0] for row in found], [row[1] for row in found], matrix

    def counts(self) -> Mapping[str, int]:
        """By document."""
        with self._connection() as connection:
            return dict(
                connection.execute(self._with_table("SELECT document, count(*) FROM {} GROUP BY document")).fetchall()
            )

    def remove(self, documents: AbstractSet[str]) -> None:
        """Delete, and rewrite the table's file."""
        names = checked_documents(documents)
        with self._connection(changes=True) as connection:
            connection.execute(self._with_table("DELETE FROM {} WHERE document = ANY(%s)"), (names,))
            connection.execute(self._with_table("VACUUM FULL {}"))

    def tidy(self) -> None:
        """Nothing: a statement is whole or was not."""

    def files(self) -> Sequence[Path] | None:
        """They are the server's."""
        return None

    def reload(self) -> None:
        """Every statement sees what was committed."""

    def close(self) -> None:
        """Close the connection."""
        connection, self._open_connection = self._open_connection, None
        if connection is not None:
            connection.close()

    def drop(self) -> None:
        """The table."""
        with self._connection(changes=True) as connection:
            connection.execute(self._with_table("DROP TABLE IF EXISTS {}"))
        self.close()


def _answers(connection: Any) -> bool:
    """Whether the server still knows the connection: it may have been started anew since the last call."""
    import psycopg

    try:
        connection.execute("")
    except psycopg.Error:
        return False
    return True


def _array(vector: Any) -> NDArray[np.float32]:
    found = vector.to_numpy() if hasattr(vector, "to_numpy") else np.asarray(vector)
    array: NDArray[np.float32] = found.astype(np.float32)
    return array
