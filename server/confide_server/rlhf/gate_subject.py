"""Which model a folder holds, as releases name it: what binds the gate's evidence to one release.

Four kinds of folders are known, and none by what it says of itself alone:

- an adapter of `confide run export`: its tensors are hashed again as the coordinator hashed them;
- a whole model of `confide run export` (adapter.kind "full"): hashed again where it is stored in float32; where it is
  stored in fewer bits, in which the trained numbers are not any more, its files are those that the manifest lists;
- an adapter of `confide rlhf train`: by the hash under which it is served, which aligned.json beside it names;
- a model of `confide rlhf merge`: likewise, after it was added up again from the base and the adapter in it.
"""

import json
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import ModelError
from confide.files import sha256_file
from confide.models.adapter_hash import ADAPTER_FILE
from confide.models.bound import check_bound, check_whole_bound
from confide.models.store import folder_digest
from confide.runs.specification import parse_canonical

from confide_server.rlhf.merging import aligned_in, merged_in
from confide_server.state.release_subject import FILE_NAME

_MANIFEST = "manifest.json"
_ADAPTER = "adapter_config.json"


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model by itself, no adapter."""
    return not (folder / _ADAPTER).is_file() and (folder / "config.json").is_file()


def released(candidate: Path, baseline: Path | None, base: Path) -> dict[str, str] | None:
    """release_evidence.Released, as it stands in the lineage; None where nothing can be released from the folder.

    Raises ModelError for a folder that is not what its manifest or document says, and for a baseline that no release
    can name beside a candidate that one can.
    """
    found = _named(candidate, base)
    if found is None:
        return None
    compared = None if baseline is None else _named(baseline, base)
    if baseline is not None and compared is None:
        raise ModelError(
            f"{baseline} is neither a folder of `confide run export` nor a model of `confide rlhf train` or `merge`, "
            "so that no release can stand for it; give the one that the name stands for"
        )
    base_sha256 = folder_digest(base)
    return {
        "base_sha256": base_sha256,
        "model_sha256": found[0],
        "specification_sha256": found[1],
        "baseline_sha256": "" if compared is None else compared[0],
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    """As it stands there, unchecked. Raises ModelError where none can be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no manifest that can be read: {error}; export the run again") from error
    return manifest


def _named(folder: Path, base: Path) -> tuple[str, str] | None:
    """(model, specification) by their hashes; None for a folder that says nothing of how its model came about."""
    if (folder / _MANIFEST).is_file():
        manifest = _checked(folder, base)
        return str(manifest["model_sha256"]), str(manifest["specification_sha256"])
    if is_whole(folder):
        model = merged_in(folder, base) if (folder / FILE_NAME).is_file() else None
    else:
        model = aligned_in(folder.parent, base, folder) if (folder.parent / FILE_NAME).is_file() else None
    return None if model is None else (model.model_sha256, model.specification_sha256)


def _checked(folder: Path, base: Path) -> dict[str, Any]:
    manifest = manifest_of(folder)
    if is_whole(folder):
        check_whole_bound(folder, manifest, base)
    else:
        check_bound(folder, manifest, base)
    found = str(manifest.get("specification_sha256"))
    wanted = parse_canonical(canonical.encode(manifest["specification"])).digest
    if found != wanted:
        raise ModelError(f"the manifest in {folder} names the specification {found[:16]} and holds {wanted[:16]}")
    return manifest


def digest_of(folder: Path | None) -> str:
    """SHA-256 of an adapter's weights, or of a whole model's folder; empty for none."""
    if folder is None:
        return ""
    return folder_digest(folder) if is_whole(folder) else sha256_file(folder / ADAPTER_FILE)
