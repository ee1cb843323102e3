"""Style sheet, scripts and vendored libraries: read once, packed once, served under an address that holds their hash.

>>> from starlette.requests import Request
>>> assets = Assets()
>>> assets.address("confide.css").startswith("/static/")
True
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from confide.errors import StateError

FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _Asset:
    digest: str
    kind: str
    plain: bytes
    packed: bytes


class Assets:
    """Every file of the folder whose kind is known."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._assets = {path.name: _read(path) for path in sorted(folder.iterdir()) if path.suffix in _TYPES}

    def address(self, name: str) -> str:
        """Where the file is served. Raises StateError for one that is not there."""
        if name not in self._assets:
            raise StateError(f"there is no {name!r} among {', '.join(self._assets)}; is the installation whole?")
        return f"/static/{self._assets[name].digest}/{name}"

    def serve(self, request: Request, digest: str, name: str) -> Response:
        """The file, packed where the browser takes it so."""
        asset = self._assets.get(name)
        if asset is None or asset.digest != digest:
            return PlainTextResponse("there is no such file", 404)
        headers = {"cache-control": _FOR_EVER, "vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.packed, headers=headers | {"content-encoding": "gzip"}, media_type=asset.kind)
        return Response(asset.plain, headers=headers, media_type=asset.kind)


def _read(path: Path) -> _Asset:
    plain = path.read_bytes()
    digest = hashlib.sha256(plain).hexdigest()[:16]
    return _Asset(digest, _TYPES[path.suffix], plain, gzip.compress(plain, 9, mtime=0))
