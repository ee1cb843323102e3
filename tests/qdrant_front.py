"""Qdrant's engine behind an HTTP front of ours, in a process of its own. It is not a Qdrant server.

No registry has the server; PyPI's qdrant-edge-py is its storage engine (Rust) for use within a program. The front below
speaks the part of the REST API that Confide's store uses, and refuses what the server refuses, as its source (1.19.0)
has it: names, bodies, dimensions, the key, and strict mode. Each collection is a shard of the engine on disk.

    python tests/qdrant_front.py FOLDER PACKAGE SETTINGS     # prints the port

`POST /faults` is ours: what the following requests are to suffer, up to the server's death by SIGKILL in the middle.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

VERSION = "1.19.0"
_FORBIDDEN_IN_NAMES = re.compile(r'[<>:"/\\|?*\0\x1f]')
_ACKNOWLEDGED_IS_DONE_AFTER_S = 0.3


class Refused(Exception):
    """status: HTTP's. Its text stands in the answer as the server's does."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers or {}


@dataclass
class Fault:
    """What requests whose "METHOD /path" matches suffer. after: let this many pass first. times: then as many suffer.

    status: the answer in place of another. kill: "before" or "after" the deed, or "within" it: the first action on an
    alias is kept and the next is not. hold_s: keep it waiting.
    """

    matches: str
    after: int = 0
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    kill: str = ""
    hold_s: float = 0.0


def limited(value: int | None, limit: int | None, name: str) -> None:
    if value is not None and limit is not None and value > limit:
        raise strict(f'Limit exceeded {value} > {limit} for "{name}"', f'Reduce the "{name}" parameter to {limit}.')


def affordable(cost: int, limit: int | None, kind: str) -> None:
    """The limits a minute, as far as one request alone is over them: such a one is told no time to come back."""
    if limit is not None and cost > limit:
        raise Refused(429, f"Rate limiting exceeded: {kind} rate limit exceeded, {cost} tokens of {limit} needed")


def strict(error: str, remedy: str) -> Refused:
    return Refused(400, f"Bad request: {error}. Help: {remedy}")


def point_id(given: Any) -> Any:
    with contextlib.suppress(ValueError):
        return given if isinstance(given, int) and 0 <= given < 2**64 else str(uuid.UUID(str(given)))
    raise Refused(400, f"Format error in JSON body: value {given} is not a valid point ID")


class Served:
    """One collection: a shard in a folder, and what it was made with."""

    def __init__(self, folder: Path, made: dict[str, Any] | None, engine: Any) -> None:
        self.folder, self.engine = folder, engine
        settings = folder / "made.json"
        if made is None:
            self.made = json.loads(settings.read_bytes())
            self.shard = engine.EdgeShard.load(str(folder / "shard"))
            return
        self.made = made
        (folder / "shard").mkdir(parents=True)
        distance = getattr(engine.Distance, made["vectors"]["distance"].capitalize())
        vectors = engine.EdgeVectorParams(size=made["vectors"]["size"], distance=distance)
        self.shard = engine.EdgeShard.create(str(folder / "shard"), engine.EdgeConfig(vectors=vectors))
        written(settings, made)

    @property
    def strict(self) -> dict[str, Any]:
        found = self.made.get("strict_mode_config") or {}
        return found if found.get("enabled") else {}

    def info(self) -> dict[str, Any]:
        found = self.shard.info()
        schema = {
            name: {"data_type": str(one.data_type).rpartition(".")[2].lower(), "points": one.points}
            for name, one in found.payload_schema.items()
        }
        params = {"vectors": self.made["vectors"], "shard_number": 1, "on_disk_payload": True}
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000}
        optimizers = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
        config = {"params": params, "hnsw_config": hnsw, "optimizer_config": {**optimizers, "flush_interval_sec": 5}}
        config["strict_mode_config"] = self.made.get("strict_mode_config") or {"enabled": False}
        counted = {"points_count": found.points_count, "segments_count": found.segments_count}
        return {"status": "green", "optimizer_status": "ok", **counted, "config": config, "payload_schema": schema}

    def upsert(self, body: dict[str, Any]) -> Any:
        points = body["points"]
        limited(len(points), self.strict.get("upsert_max_batchsize"), "upsert limit")
        affordable(len(points), self.strict.get("write_rate_limit"), "Write")
        size = self.made["vectors"]["size"]
        for one in points:
            if len(one["vector"]) != size:
                got = len(one["vector"])
                raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {size}, got {got}")
        engine = self.engine
        made = [engine.Point(point_id(one["id"]), one["vector"], one.get("payload")) for one in points]
        return engine.UpdateOperation.upsert_points(made)

    def indexed(self, body: dict[str, Any]) -> Any:
        limit = self.strict.get("max_payload_index_count")
        if limit is not None and len(self.shard.info().payload_schema) >= limit:
            raise strict(f"Collection already has the maximum number of payload indices ({limit})", "Delete one.")
        schema = getattr(self.engine.PayloadSchemaType, body["field_schema"].capitalize())
        return self.engine.UpdateOperation.create_field_index(body["field_name"], schema)

    def _filter(self, given: dict[str, Any] | None) -> Any:
        if given is None:
            return None
        engine, conditions = self.engine, []
        for one in given["must"]:
            known = self.shard.info().payload_schema
            if self.strict.get("unindexed_filtering_retrieve") is False and one["key"] not in known:
                named = (
                    f'Index required but not found for "{one["key"]}" of one of the following types: [float, integer]'
                )
                raise strict(named, "Create an index for this key or use a different filter.")
            bounds = {name: value for name, value in one["range"].items() if value is not None}
            conditions.append(engine.FieldCondition(key=one["key"], range=engine.RangeFloat(**bounds)))
        return engine.Filter(must=conditions)

    def query(self, body: dict[str, Any]) -> Any:
        exact, limit = bool((body.get("params") or {}).get("exact")), body.get("limit", 10)
        at_least_one(limit)
        limited(limit, self.strict.get("max_query_limit"), "limit")
        conditions = self._filter(body.get("filter"))
        if exact and self.strict.get("search_allow_exact") is False:
            raise strict("Exact search disabled!", "Set exact=false.")
        engine = self.engine
        found = self.shard.query(
            engine.QueryRequest(
                limit=limit, offset=body.get("offset") or 0, query=engine.Query.Nearest(body["query"]["nearest"]),
                filter=conditions, params=engine.SearchParams(exact=exact),
                with_payload=body.get("with_payload", False), with_vector=body.get("with_vector", False),
            )
        )  # fmt: skip
        named = [{"id": str(one.id), "version": one.version, "score": one.score} for one in found]
        return {"points": [{**one, "payload": hit.payload} for one, hit in zip(named, found, strict=True)]}

    def scroll(self, body: dict[str, Any]) -> Any:
        limit, offset = body.get("limit", 10), body.get("offset")
        at_least_one(limit)
        limited(limit, self.strict.get("max_query_limit"), "limit")
        asked = self.engine.ScrollRequest(
            offset=None if offset is None else point_id(offset), limit=limit, filter=self._filter(body.get("filter")),
            with_payload=body.get("with_payload", True), with_vector=body.get("with_vector", False),
        )  # fmt: skip
        found, following = self.shard.scroll(asked)
        return {"points": records(found), "next_page_offset": None if following is None else str(following)}

    def retrieve(self, body: dict[str, Any]) -> Any:
        ids = [point_id(one) for one in body["ids"]]
        affordable(len(ids), self.strict.get("read_rate_limit"), "Read")
        shown = body.get("with_payload", True), body.get("with_vector", False)
        return records(self.shard.retrieve(ids, with_payload=shown[0], with_vector=shown[1]))


def records(found: Any) -> list[dict[str, Any]]:
    # The server leaves out a vector that was not asked for.
    kept = [{"id": str(one.id), "payload": one.payload, "vector": one.vector} for one in found]
    return [{name: value for name, value in one.items() if value is not None} for one in kept]


def at_least_one(limit: int) -> None:
    if limit < 1:
        raise Refused(
            422, f"Validation error in JSON body: [internal.limit: value {limit} invalid, must be 1 or larger]"
        )


def written(path: Path, what: Any) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(what, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class Server:
    """All collections and aliases.

    settings: api_key, max_request_size_mb, strict_mode, max_collections, version, port, record.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], engine: Any) -> None:
        self.folder, self.settings, self.engine = folder, settings, engine
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.doomed = False
        self.seen: list[dict[str, Any]] = []
        (folder / "collections").mkdir(parents=True, exist_ok=True)
        self.aliases_file = folder / "aliases.json"
        self.aliases = json.loads(self.aliases_file.read_bytes()) if self.aliases_file.exists() else {}
        self.collections = {
            path.name: Served(path, None, engine)
            for path in sorted((folder / "collections").iterdir())
            if (path / "made.json").exists()
        }

    def named(self, name: str) -> Served:
        real = self.aliases.get(name, name)
        if real not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[real]

    def create(self, name: str, body: dict[str, Any]) -> bool:
        if _FORBIDDEN_IN_NAMES.search(name) or not 1 <= len(name) <= 255:
            raise Refused(422, f"Validation error in path parameters: [collection_name: {name!r}]")
        if name in self.collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        if len(self.collections) >= self.settings.get("max_collections", 10_000):
            raise Refused(400, f"Bad request: Can't create collection with name {name}. Max collections limit reached")
        if name in self.aliases:
            said = f"Can't create collection with name {name}. Alias with the same name already exists"
            raise Refused(400, f"Wrong input: {said}")
        given = {key: value for key, value in (body.get("strict_mode_config") or {}).items() if value is not None}
        default = self.settings.get("strict_mode")
        made = {"vectors": {key: value for key, value in body["vectors"].items() if value is not None}}
        if default or given:
            made["strict_mode_config"] = {**(default or {}), **given}
        self.collections[name] = Served(self.folder / "collections" / name, made, self.engine)
        return True

    def delete(self, name: str) -> bool:
        self.aliases = {alias: real for alias, real in self.aliases.items() if real != name}
        written(self.aliases_file, self.aliases)
        gone = self.collections.pop(name, None)
        if gone is not None:
            (gone.folder / "made.json").unlink()
            gone.shard.close()
            shutil.rmtree(gone.folder)
        return gone is not None

    def alias(self, body: dict[str, Any]) -> bool:
        for action in body["actions"]:
            # As the server does: each is saved by itself, and one that fails leaves those before it done.
            if "create_alias" in action:
                made = action["create_alias"]
                if made["collection_name"] not in self.collections:
                    raise Refused(404, f"Not found: Collection `{made['collection_name']}` doesn't exist!")
                if made["alias_name"] in self.collections:
                    raise Refused(409, f"Wrong input: Collection `{made['alias_name']}` already exists!")
                self.aliases[made["alias_name"]] = made["collection_name"]
            else:
                self.aliases.pop(action["delete_alias"]["alias_name"], None)
            written(self.aliases_file, self.aliases)
            if self.doomed:
                os.kill(os.getpid(), signal.SIGKILL)
        return True

    def updated(self, served: Served, operation: Any, asked: Mapping[str, list[str]]) -> dict[str, Any]:
        if asked.get("wait") == ["true"]:
            served.shard.update(operation)
            return {"operation_id": 0, "status": "completed"}
        threading.Timer(_ACKNOWLEDGED_IS_DONE_AFTER_S, served.shard.update, [operation]).start()
        return {"operation_id": 0, "status": "acknowledged"}

    def answer(self, method: str, path: str, asked: Mapping[str, list[str]], body: Any) -> Any:
        match method, [unquote(part) for part in path.strip("/").split("/") if part]:
            case "GET", ["collections"]:
                return {"collections": [{"name": name} for name in sorted(self.collections)]}
            case "GET", ["aliases"]:
                pairs = sorted(self.aliases.items())
                return {"aliases": [{"alias_name": alias, "collection_name": real} for alias, real in pairs]}
            case "POST", ["collections", "aliases"]:
                return self.alias(body)
            case "GET", ["collections", name, "exists"]:
                return {"exists": name in self.collections or name in self.aliases}
            case "GET", ["collections", name]:
                return self.named(name).info()
            case "PUT", ["collections", name]:
                return self.create(name, body)
            case "DELETE", ["collections", name]:
                return self.delete(name)
            case "PUT", ["collections", name, "index"]:
                served = self.named(name)
                return self.updated(served, served.indexed(body), asked)
            case "PUT", ["collections", name, "points"]:
                served = self.named(name)
                return self.updated(served, served.upsert(body), asked)
            case "POST", ["collections", name, "points"]:
                return self.named(name).retrieve(body)
            case "POST", ["collections", name, "points", "scroll"]:
                return self.named(name).scroll(body)
            case "POST", ["collections", name, "points", "query"]:
                return self.named(name).query(body)
        raise Refused(404, "")

    def suffers(self, request: str) -> Fault | None:
        for fault in self.faults:
            if re.fullmatch(fault.matches, request):
                if fault.after > 0:
                    fault.after -= 1
                elif fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        limit = self.served.settings.get("max_request_size_mb", 32) * 1024 * 1024
        raw = self.rfile.read(length)
        try:
            if parts.path == "/":
                version = self.served.settings.get("version", VERSION)
                return self._send(200, {"title": "qdrant - vector search engine", "version": version})
            if parts.path == "/faults":
                self.served.faults = [Fault(**one) for one in json.loads(raw)]
                return self._send(200, {})
            if parts.path == "/seen":
                return self._send(200, self.served.seen)
            key = self.served.settings.get("api_key")
            if key is not None and self.headers.get("api-key") != key:
                given = self.headers.get("api-key") is not None
                text = "Invalid API key or JWT" if given else "Must provide an API key or an Authorization bearer token"
                return self._send(401, text)
            if length > limit:
                raise Refused(400, f"JSON payload ({length} bytes) is larger than allowed (limit: {limit} bytes).")
            body = json.loads(raw) if raw else None
            if self.served.settings.get("record"):
                self.served.seen.append({"method": self.command, "path": self.path, "body": body})
            result = self._done(self.served.suffers(f"{self.command} {parts.path}"), parts, body)
        except Refused as error:
            status = {"status": {"error": str(error)}, "time": 0.0}
            return self._send(error.status, status if str(error) else "", error.headers)
        return self._send(200, {"result": result, "status": "ok", "time": 0.0})

    do_PUT = do_POST = do_DELETE = do_GET

    def _done(self, fault: Fault | None, parts: Any, body: Any) -> Any:
        if fault is not None:
            if fault.kill == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.hold_s:
                select.select([], [], [], fault.hold_s)
            if fault.status:
                raise Refused(fault.status, "told to fail", fault.headers)
        with self.served.lock:
            self.served.doomed = fault is not None and fault.kill == "within"
            try:
                result = self.served.answer(self.command, parts.path, parse_qs(parts.query), body)
            except (KeyError, TypeError, ValueError) as error:
                raise Refused(400, f"Format error in JSON body: {error}") from error
        if fault is not None and fault.kill == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def _send(self, status: int, what: Any, headers: Mapping[str, str] | None = None) -> None:
        data = what.encode() if isinstance(what, str) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain" if isinstance(what, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    folder, package, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    sys.path.insert(0, package)
    import qdrant_edge

    Handler.served = Server(folder, settings, qdrant_edge)
    listening = ThreadingHTTPServer(("127.0.0.1", settings.get("port", 0)), Handler)
    print(listening.server_port, flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    main()
