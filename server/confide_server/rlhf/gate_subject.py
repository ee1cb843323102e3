"""Which run's model an adapter folder holds: what binds the gate's evidence to one release.

Not by what the manifest says of itself: the tensors are read back and hashed as the coordinator hashed them.
"""

import json
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import ModelError
from confide.models.bound import check_bound
from confide.models.store import folder_digest
from confide.runs.specification import parse_canonical

_MANIFEST = "manifest.json"


def released(candidate: Path, baseline: Path | None, base: Path) -> dict[str, str] | None:
    """release_evidence.Released, as it stands in the lineage; None where the candidate is no export of a run.

    Raises ModelError for an export that is not what its manifest says, and for a baseline that is no export beside a
    candidate that is one.
    """
    if not (candidate / _MANIFEST).is_file():
        return None
    manifest = _checked(candidate, base)
    compared = "" if baseline is None else str(_checked(baseline, base)["model_sha256"])
    return {
        "base_sha256": folder_digest(base),
        "model_sha256": str(manifest["model_sha256"]),
        "specification_sha256": str(manifest["specification_sha256"]),
        "baseline_sha256": compared,
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    """As it stands there, unchecked. Raises ModelError where none can be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no manifest that can be read: {error}; export the run again") from error
    return manifest


def _checked(folder: Path, base: Path) -> dict[str, Any]:
    manifest = manifest_of(folder)
    check_bound(folder, manifest, base)
    found = str(manifest.get("specification_sha256"))
    wanted = parse_canonical(canonical.encode(manifest["specification"])).digest
    if found != wanted:
        raise ModelError(f"the manifest in {folder} names the specification {found[:16]} and holds {wanted[:16]}")
    return manifest
