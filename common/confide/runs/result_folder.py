"""The folder that holds a run's result: its manifest names every other file by hash."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.files import sha256_file, write_atomic


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """manifest.json, with the SHA-256 of every other file under "files". Files may be read by everyone: a release."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    document = {**manifest, "files": {path.name: sha256_file(path) for path in files}}
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    write_atomic(folder / "manifest.json", text.encode())
    folder.chmod(0o755)
    for path in [*files, folder / "manifest.json"]:
        path.chmod(0o644)
