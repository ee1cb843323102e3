"""Passages on a Qdrant server (1.10 or later): one alias a collection, for one of the server's own collections.

The alias' name is a hash of organization and collection: nothing that a person chose is part of a request's path.
`remove` copies what stays into a new collection of the server, lets the alias stand for that at once, and drops the old
one; what the server's snapshots and replicas hold is its operator's, and an erasure's receipt says so. The key of a
server that asks for one is taken from the environment (QDRANT_API_KEY), never from the URL.

What a server may refuse is kept to: bodies of at most 32 MB; in strict mode, which Qdrant Cloud turns on, an index on
what is filtered by, and its limits on points a request and requests a minute. Exact search alone is asked for when the
collection is made, since a server's defaults may forbid it. A server that says "too early" is asked again for a minute.

What was tried: every test of `PassageStore` and its own, over HTTP, against Qdrant's storage engine (qdrant-edge-py
0.9.0, in Rust) behind a front of ours which refuses what the source of server 1.19.0 refuses. A Qdrant server itself
never ran, nor a cluster of them.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from confide.errors import StateError
from confide.rag.access import CollectionName
from confide.rag.stores.base import Row, StoreDown, checked_documents, checked_passages, down
from confide.text import line

_MOST_POINTS = 1000
_MOST_BYTES = 8 * 2**20
"""Of a request: a quarter of what a server takes if nobody changed that, and a few seconds of a slow line."""
_NUMBER_BYTES, _POINT_BYTES = 25, 300
"""Of JSON, at most: a float32 as Python writes it, and a point's names."""
_TIMEOUT_S = 60
_PATIENCE_S = 60.0
_OLDEST = (1, 10)

_Stored = tuple[str, str, int, NDArray[np.float32]]


def connected(url: str) -> Any:
    """A client of the server at http(s)://HOST:PORT."""
    import qdrant_client

    key = os.environ.get("QDRANT_API_KEY") or None
    client = qdrant_client.QdrantClient(url=url, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)
    client.http.client.add_middleware(_asked_again)
    return client


def _asked_again(request: Any, send: Callable[[Any], Any]) -> Any:
    """The same once more where the server says that it was too early. All that the store asks for may be done twice."""
    waited_s, pause_s = 0.0, 0.5
    while True:
        response = send(request)
        asked_s = response.headers.get("Retry-After", "")
        # A request that is over the limit by itself is told no time: it would be so for ever.
        if response.status_code != 503 and not (response.status_code == 429 and asked_s.isdigit()):
            return response
        pause_s = float(asked_s) if asked_s.isdigit() else pause_s
        if waited_s + pause_s > _PATIENCE_S:
            return response
        time.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, 2 * pause_s


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
        self._page = self._most_found = _MOST_POINTS
        with self._client() as client:
            _check_version(client.info().version)
            if self._target(client) is None:
                self._begin(client)
            self._look(client)

    @contextlib.contextmanager
    def _client(self, *, changes: bool = False) -> Iterator[Any]:
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        try:
            if self._open_client is None:
                self._open_client = connected(self._url)
            yield self._open_client
        except (ApiException, QdrantException, OSError, ValueError, LookupError, AssertionError) as error:
            raise down("the passages on Qdrant", _reason(error), changes=changes) from error

    def _look(self, client: Any) -> None:
        """What the collection holds, and how much of it the server gives and takes at once."""
        found = client.get_collection(self._alias)
        size = getattr(found.config.params.vectors, "size", "several")
        if size != self._dimension:
            self.close()
            raise StateError(f"the store holds vectors of {size} numbers, the collection's have {self._dimension}")
        if "added" not in (found.payload_schema or {}):
            self._index(client, self._alias)
        strict = getattr(found.config, "strict_mode_config", None)
        names = ("max_query_limit", "upsert_max_batchsize", "read_rate_limit", "write_rate_limit")
        limits = {name: getattr(strict, name, None) or _MOST_POINTS for name in names if strict and strict.enabled}
        self._page = min(points_at_once(self._dimension), *limits.values(), _MOST_POINTS)
        self._most_found = limits.get("max_query_limit", _MOST_POINTS)

    def _target(self, client: Any) -> str | None:
        found = [one.collection_name for one in client.get_aliases().aliases if one.alias_name == self._alias]
        return str(found[0]) if found else None

    def _beside(self, client: Any, own: str | None) -> list[str]:
        names = [str(one.name) for one in client.get_collections().collections]
        return [name for name in names if name.startswith(f"{self._alias}_") and name != own]

    def _begin(self, client: Any) -> None:
        """Make the first collection. Two processes at once make the same one: the server lets one of them."""
        from qdrant_client.http.exceptions import UnexpectedResponse

        first = f"{self._alias}_first"
        if left := self._beside(client, first):
            raise StoreDown(
                f"the server has no alias {self._alias}, but {', '.join(left)}, which it stood for: something else "
                "deleted the alias. Create it again, or delete the collection to begin anew"
            )
        try:
            self._create(client, first)
        except UnexpectedResponse:
            if not client.collection_exists(first):
                raise
        if self._target(client) is None:
            self._point(client, first)

    def _create(self, client: Any, name: str) -> None:
        from qdrant_client import models

        # Vectors have length 1: their products are cosines, and come back as they were given.
        size = models.VectorParams(size=self._dimension, distance=models.Distance.DOT)
        exact = models.StrictModeConfig(search_allow_exact=True)
        client.create_collection(name, vectors_config=size, strict_mode_config=exact)
        self._index(client, name)

    def _index(self, client: Any, name: str) -> None:
        from qdrant_client import models

        client.create_payload_index(name, "added", models.PayloadSchemaType.INTEGER, wait=True)

    def _point(self, client: Any, name: str) -> None:
        """Let the alias stand for it. One action: of two, a server that dies between them has kept the first."""
        from qdrant_client import models

        made = models.CreateAlias(collection_name=name, alias_name=self._alias)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])

    def add(self, rows: Sequence[Row]) -> None:
        """Waits until they are durable; a crash may leave a part, which the collection's next writer takes back."""
        checked_passages([row.passage for row in rows])
        with self._client(changes=True) as client:
            self._put(client, self._alias, ((row.passage, row.document, row.added, row.vector) for row in rows))

    def _put(self, client: Any, target: str, rows: Iterable[_Stored]) -> None:
        waiting = iter(rows)
        while points := [_point_of(row) for row in itertools.islice(waiting, self._page)]:
            done = client.upsert(target, points=points, wait=True)
            if str(done.status) != "completed":
                raise ValueError(f"the server answers {done.status} where it was to wait")

    def search(self, vector: NDArray[np.float32], limit: int, *, since: int = 0) -> list[tuple[str, float]]:
        """Exact: every row is looked at."""
        from qdrant_client import models

        later = models.Filter(must=[models.FieldCondition(key="added", range=models.Range(gte=int(since)))])
        found: dict[str, float] = {}
        with self._client() as client:
            for start in range(0, int(limit), self._most_found):
                wanted = min(int(limit) - start, self._most_found)
                page = client.query_points(
                    self._alias, query=vector.astype(np.float32).tolist(), limit=wanted, offset=start,
                    query_filter=later if since > 0 else None, search_params=models.SearchParams(exact=True),
                    with_payload=["passage"],
                ).points  # fmt: skip
                found.update((str(one.payload["passage"]), float(one.score)) for one in page)
                if len(page) < wanted:
                    break
        return list(found.items())

    def vectors(self, passages: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """By name, page by page."""
        ids = [_point_id(name) for name in checked_passages(passages)]
        found: dict[str, NDArray[np.float32]] = {}
        with self._client() as client:
            for start in range(0, len(ids), self._page):
                page = client.retrieve(self._alias, ids=ids[start : start + self._page], with_vectors=True)
                found.update((str(one.payload["passage"]), np.array(one.vector, np.float32)) for one in page)
        return found

    def everything(self) -> tuple[list[str], list[int], NDArray[np.float32]]:
        """Page by page."""
        with self._client() as client:
            rows = list(self._rows(client))
        matrix = np.stack([row[3] for row in rows]) if rows else np.empty((0, self._dimension), np.float32)
        return [row[0] for row in rows], [row[2] for row in rows], matrix

    def _rows(self, client: Any, *, with_vectors: bool = True) -> Iterator[_Stored]:
        place: Any = None
        while True:
            page, place = client.scroll(self._alias, limit=self._page, offset=place, with_vectors=with_vectors)
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
        with self._client(changes=True) as client:
            old, new = self._target(client), f"{self._alias}_{secrets.token_hex(8)}"
            self._create(client, new)
            self._put(client, new, (row for row in self._rows(client) if row[1] not in gone))
            self._point(client, new)
            if old is not None:
                client.delete_collection(old)

    def tidy(self) -> None:
        """Drop what a removal that was cut off left beside the alias' own. Without an alias nothing is known to be."""
        with self._client(changes=True) as client:
            own = self._target(client)
            for name in self._beside(client, own) if own is not None else ():
                client.delete_collection(name)

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
        """What was left beside the collection, and the collection, with which its alias goes."""
        self.tidy()
        with self._client(changes=True) as client:
            own = self._target(client)
            if own is not None:
                client.delete_collection(own)
        self.close()


def points_at_once(dimension: int) -> int:
    """How many points of this many numbers a request may hold."""
    return max(1, min(_MOST_POINTS, _MOST_BYTES // (dimension * _NUMBER_BYTES + _POINT_BYTES)))


def _point_id(passage: str) -> str:
    return hashlib.sha256(passage.encode()).hexdigest()[:32]


def _point_of(row: _Stored) -> Any:
    from qdrant_client import models

    passage, document, added, vector = row
    said = {"passage": passage, "document": document, "added": int(added)}
    return models.PointStruct(id=_point_id(passage), vector=vector.astype(np.float32).tolist(), payload=said)


def _check_version(version: str) -> None:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and (int(found[1]), int(found[2])) < _OLDEST:
        raise StateError(f"the Qdrant server is of version {line(version, 20)}; it must be 1.10 or later")


def _reason(error: Exception) -> str:
    """The server's own words where it has some, with HTTP's status."""
    status, content = getattr(error, "status_code", None), getattr(error, "content", b"")
    words = content.decode(errors="replace") if status is not None else str(error)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        words = str(json.loads(content)["status"]["error"])
    said = (words.strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    remedy = "; the key is taken from QDRANT_API_KEY" if status in {401, 403} else ""
    return f"{said} ({status}){remedy}" if status is not None else said
