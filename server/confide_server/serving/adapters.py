"""Adapters that this endpoint keeps: a copy of each, in a folder named by what decides its answers.

Guarantee: what is loaded under a hash has that hash, and its manifest was verified under the consortium's root, or the
operator said in so many words that it need not be.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from confide.errors import ModelError
from confide.files import private_folder
from confide.models.adapter_hash import content_hash
from confide.models.store import folder_digest


@dataclass(frozen=True)
class Kept:
    """An adapter in the store."""

    sha256: str
    base_sha256: str
    run_id: str
    """"" without a verified manifest."""


class AdapterStore:
    """`<folder>/<sha256>/` each."""

    def __init__(self, folder: Path, base_folder: Path) -> None:
        """base_folder: of the model that all of them are for."""
        self._folder = folder
        self._base_folder = base_folder
        self.base_sha256 = folder_digest(base_folder)

    def path(self, sha256: str) -> Path:
        """Where an adapter lies. Raises ModelError for one that is not here."""
        folder = self._folder / sha256
        if len(sha256) != 64 or not folder.is_dir():
            raise ModelError(f"adapter {sha256[:12]} is not kept here; point an alias at its folder again")
        return folder

    def keep(self, source: Path, root: bytes | None) -> Kept:
        """Copy an export in, after checking it; again changes nothing.

        root: the consortium's public key; None: its signatures are waived. Raises ModelError or what verify_manifest
        raises.
        """
        kept = self._check(source, root)
        target = self._folder / kept.sha256
        private_folder(self._folder)
        if target.exists():
            self.verify(kept.sha256, root)
            return kept
        staging = Path(tempfile.mkdtemp(dir=self._folder, prefix=".keeping-"))
        try:
            for path in sorted(source.iterdir()):
                if path.is_file():
                    shutil.copyfile(path, staging / path.name)
            if self._check(staging, root) != kept:
                raise ModelError(f"{source} changed while it was copied; try again")
            staging.rename(target)
        except OSError as error:
            raise ModelError(f"cannot copy {source} to {self._folder}: {error.strerror}. Free space there.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return kept

    def verify(self, sha256: str, root: bytes | None) -> Path:
        """The folder of an adapter, everything checked again. Raises as `keep`."""
        folder = self.path(sha256)
        found = self._check(folder, root).sha256
        if found != sha256:
            raise ModelError(
                f"the files of adapter {sha256[:12]} in {folder} were altered (now {found[:12]}); remove that folder "
                "and point the alias at the export again"
            )
        return folder

    def _check(self, folder: Path, root: bytes | None) -> Kept:
        """What a folder holds, if it is an adapter of this base and, with a root, the one that was signed."""
        sha256, manifest = content_hash(folder), _manifest(folder)
        run_id, named = "", manifest.get("base_model_sha256", self.base_sha256)
        if root is not None:
            run_id = self._signed(folder, manifest, root)
        if named != self.base_sha256:
            raise ModelError(
                f"the adapter in {folder} was trained on the model {str(named)[:12]}; this server's base is "
                f"{self.base_sha256[:12]}. Serve it with --base of that model"
            )
        return Kept(sha256, self.base_sha256, run_id)

    def _signed(self, folder: Path, manifest: dict[str, object], root: bytes) -> str:
        """The run's id, if all that can be checked holds."""
        from confide.models.bound import check_bound
        from confide.sealing.manifest import verify_manifest

        if not manifest:
            raise ModelError(
                f"{folder} holds no manifest.json that says where the adapter comes from; export it again, or serve it "
                "with --unsigned if you trust the folder"
            )
        run_id = verify_manifest(manifest, root, folder).run_id
        check_bound(folder, manifest, self._base_folder)
        return run_id


def _manifest(folder: Path) -> dict[str, object]:
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; export the adapter again") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is no manifest; export the adapter again")
    return document
