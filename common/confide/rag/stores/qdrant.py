"""Passages on a Qdrant server: one alias a collection, which stands for one of the server's own collections.

The alias' name is a hash of organization and collection: nothing that a person chose is part of a request's path.
`remove` copies what stays into a new collection of the server, lets the alias stand for that at once, and drops the old
one; what the server's snapshots and replicas hold is its operator's, and an erasure's receipt says so. The key of a
server that asks for one is taken from the environment (QDRANT_API_KEY), never from the URL.

What was tried: every test of `PassageStore`, over the client's own in-memory implementation. A real server never ran.
"""

import contextlib
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.rag.access import CollectionName
from confide.rag.stores.base import Row, StoreDown, checked_documents, checked_passages

_PAGE = 1000
_TIMEOUT_S = 30


def connected(url: str) -> Any:
    """A client of the server at http(s)://HOST:PORT."""
    import qdrant_client

    key = os.environ.get("QDRANT_API_KEY")
    return qdrant_client.QdrantClient(url=url, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)


def checked_url(kind: str) -> str:
    """The server's URL. Raises StateError for one with a password."""
    parts = urlsplit(kind)
    if parts.password is not None or parts.query:
        raise StateError("the store's URL holds a password or options; put the key into QDRANT_API_KEY")
    return kind.removeprefix("qdrant+")


class QdrantStore:
    """One alias."""

    def __init__(self, kind: str, name: CollectionName, dimension: int) -> None:
        """Open or create. Raises StoreDown when the server cannot be reached, StateError for other vectors."""
        self._url, self._dimension = checked_url(kind), dimension
        key = hashlib.sha256(f"{name.organization}\0{name.collection}".encode()).hexdigest()[:40]
        self._alias = f"confide_passages_{key}"
        self._open_client: Any = None
        with self._client() as client:
            if self._target(client) is None:
                self._point(client, self._created(client))
            found = client.get_collection(self._alias).config.params.vectors.size
        if found != dimension:
            self.close()
            raise StateError(f"the store holds vectors of {found} numbers, the collection's have {dimension}")

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        import qdrant_client.http.exceptions as failures

        try:
            if self._open_client is None:
                self._open_client = connected(self._url)
            yield self._open_client
        except (failures.ApiException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise StoreDown(f"the passages on Qdrant cannot be used: {reason}. Nothing was changed") from error

    def _target(self, client: Any) -> str | None:
        found = [one.collection_name for one in client.get_aliases().aliases if one.alias_name == self._alias]
        return str(found[0]) if found else None

    def _created(self, client: Any) -> str:
        from qdrant_client import models

        name = f"{self._alias}_{secrets.token_hex(8)}"
        # Vectors have length 1: their products are cosines, and come back as they were given.
        size = models.VectorParams(size=self._dimension, distance=models.Distance.DOT)
        client.create_collection(name, vectors_config=size)
        return name

    def _point(self, client: Any, name: str) -> None:
        """Let the alias stand for it, in one step."""
        from qdrant_client import models

        steps: list[Any] = []
        if self._target(client) is not None:
            steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self._alias)))
        made = models.CreateAlias(collection_name=name, alias_name=self._alias)
        client.update_collection_aliases([*steps, models.CreateAliasOperation(create_alias=made)])

    def add(self, rows: Sequence[Row]) -> None:
        """Waits until they are durable; a crash may leave a part, which the collection's next writer takes back."""
        checked_passages([row.passage for row in rows])
        with self._client() as client:
            self._put(client, self._alias, [(row.passage, row.document, row.added, row.vector) for row in rows])

    def _put(self, client: Any, target: str, rows: Sequence[tuple[str, str, int, NDArray[np.float32]]]) -> None:
        from qdrant_client import models

        points = [
            models.PointStruct(
                id=hashlib.sha256(passage.encode()).hexdigest()[:32],
                vector=vector.astype(np.float32).tolist(),
                payload={"passage": passage, "document": document, "added": int(added)},
            )
            for passage, document, added, vector in rows
        ]
        for start in range(0, len(points), _PAGE):
            client.upsert(target, points=points[start : start + _PAGE], wait=True)

    def search(self, vector: NDArray[np.float32], limit: int, *, since: int = 0) -> list[tuple[str, float]]:
        """Exact: every row is looked at."""
        from qdrant_client import models

        later = models.Filter(must=[models.FieldCondition(key="added", range=models.Range(gte=int(since)))])
        with self._client() as client:
            found = client.query_points(
                self._alias, query=vector.astype(np.float32).tolist(), limit=int(limit), query_filter=later,
                search_params=models.SearchParams(exact=True), with_payload=["passage"],
            )  # fmt: skip
        return [(str(one.payload["passage"]), float(one.score)) for one in found.points]

    def vectors(self, passages: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """By name."""
        ids = [hashlib.sha256(name.encode()).hexdigest()[:32] for name in checked_passages(passages)]
        if not ids:
            return {}
        with self._client() as client:
            found = client.retrieve(self._alias, ids=ids, with_vectors=True)
        return {str(one.payload["passage"]): np.array(one.vector, np.float32) for one in found}

    def everything(self) -> tuple[list[str], list[int], NDArray[np.float32]]:
        """Page by page."""
        with self._client() as client:
            rows = list(self._rows(client))
        matrix = np.stack([row[3] for row in rows]) if rows else np.empty((0, self._dimension), np.float32)
        return [row[0] for row in rows], [row[2] for row in rows], matrix

    def _rows(self, client: Any, *, with_vectors: bool = True) -> Iterator[tuple[str, str, int, NDArray[np.float32]]]:
        place: Any = None
        while True:
            page, place = client.scroll(self._alias, limit=_PAGE, offset=place, with_vectors=with_vectors)
            for one in page:
                said = one.payload
                vector = np.array(one.vector if with_vectors else [], np.float32)
                yield str(said["passage"]), str(said["document"]), int(said["added"]), vector
            if place is None:
                return

    def counts(self) -> Mapping[str, int]:
        """By document."""
        with self._client() as client:
            return dict(Counter(document for _, document, _, _ in self._rows(client, with_vectors=False)))

    def remove(self, documents: AbstractSet[str]) -> None:
        """What stays goes into a new collection of the server; the old one is dropped."""
        gone = set(checked_documents(documents))
        with self._client() as client:
            old, new = self._target(client), self._created(client)
            self._put(client, new, [row for row in self._rows(client) if row[1] not in gone])
            self._point(client, new)
            if old is not None:
                client.delete_collection(old)

    def tidy(self) -> None:
        """Drop what a removal that was cut off left beside the alias' own."""
        with self._client() as client:
            own = self._target(client)
            for one in client.get_collections().collections:
                if one.name.startswith(f"{self._alias}_") and one.name != own:
                    client.delete_collection(one.name)

    def files(self) -> Sequence[Path] | None:
        """They are the server's."""
        return None

    def reload(self) -> None:
        """Every request sees what was written."""

    def close(self) -> None:
        """Close the connection."""
        client, self._open_client = self._open_client, None
        if client is not None:
            client.close()

    def drop(self) -> None:
        """The collection, and what was left beside it."""
        from qdrant_client import models

        with self._client() as client:
            if self._target(client) is not None:
                gone = models.DeleteAlias(alias_name=self._alias)
                client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=gone)])
        self.tidy()
        self.close()
