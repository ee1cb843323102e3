"""`confide node start FOLDER`, and a note of every request that leaves the process, in FOLDER/left.jsonl.

Both roads out of a node are watched below the node's own code: HTTP requests as httpx sends them, gRPC calls as the
channel gets them. A line: {"road", "to", "headers", "body"}; body is hex.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx


def record(folder: Path) -> None:
    """Begin to note."""
    lock, send, secure = threading.Lock(), httpx.Client.send, grpc.secure_channel

    def note(road: str, to: str, headers: list[str], body: bytes) -> None:
        line = json.dumps({"road": road, "to": to, "headers": headers, "body": body.hex()})
        with lock, (folder / "left.jsonl").open("a") as file:
            file.write(line + "\n")

    def noted_send(self: httpx.Client, request: httpx.Request, **rest: Any) -> httpx.Response:
        note("http", request.url.path, sorted(request.headers), request.read())
        return send(self, request, **rest)

    class Noting(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
        def intercept_unary_unary(self, go_on: Callable[..., Any], details: Any, request: Any) -> Any:
            headers = sorted(name for name, _ in details.metadata or ())
            note("grpc", details.method, headers, request.SerializeToString())
            return go_on(details, request)

        intercept_unary_stream = intercept_unary_unary

    httpx.Client.send = noted_send  # type: ignore[method-assign]
    grpc.secure_channel = lambda *given, **named: grpc.intercept_channel(secure(*given, **named), Noting())


if __name__ == "__main__":
    state = Path(sys.argv[1])
    record(state)
    from confide.cli import main

    sys.argv = ["confide", "node", "start", str(state)]
    main()
