"""Base models on this machine, each pinned by one hash over its files.

A run names its base model by that hash. Only what a model needs is hashed and kept: configuration, tokenizer and
safetensors weights. Python code and pickled weights are never taken in, nor is anything read at loading that the hash
does not cover (`only_hashed`).

>>> import tempfile; root = Path(tempfile.mkdtemp())
>>> source = root / "tiny"; source.mkdir()
>>> _ = (source / "config.json").write_text("{}")
>>> _ = (source / "model.safetensors").write_bytes(bytes([2] + [0] * 7) + b"{}")
>>> store = ModelStore(root / "models")
>>> store.path(store.add(str(source), "tiny")).joinpath("config.json").read_text()
'{}'
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from confide import canonical
from confide.errors import ModelError
from confide.files import cache_folder, private_folder, sha256_file, write_atomic
from confide.models.weights import check_whole
from confide.runs.specification import Specification

_KEPT = frozenset(
    {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredModel:
    """One line of `confide model list`."""

    sha256: str
    name: str
    source: str
    bytes: int


def model_files(folder: Path) -> dict[str, Path]:
    """The files that make up a model, by name relative to its folder.

    Raises ModelError when the folder holds no model, or its weights exist only in a format that can carry code.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; name one that holds config.json and safetensors weights")
    kept = hashed_files(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds a PEFT adapter (adapter_config.json) beside the model, which its hash would not name and "
            "transformers would load on top. Move adapter_* files away, or merge the adapter into the model"
        )
    if "config.json" not in kept:
        raise ModelError(f"{folder} has no config.json; it is not a model in the transformers format")
    if not any(name.endswith(".safetensors") for name in kept):
        pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith(_PICKLED))
        if pickled:
            raise ModelError(
                f"{folder} has its weights only as {pickled[0]}, a format that can run code when it is opened. "
                "Save it again with model.save_pretrained(folder, safe_serialization=True) where you trust it."
            )
        raise ModelError(f"{folder} has no .safetensors weights; add them, or name another folder")
    return kept


def hashed_files(folder: Path) -> dict[str, Path]:
    """Of whatever is in a folder, the files that a model's hash covers.

    Raises ModelError for a link to nothing, and for one out of the folder: a folder that somebody sent could name any
    file of this machine so. A model hub's cache, whose snapshots link to the blobs beside them, is read.
    """
    kept = {}
    for path in sorted(folder.iterdir()):
        if path.name in _KEPT or path.name.endswith(".safetensors"):
            if not path.is_file():
                raise ModelError(f"{path} is no file, or a link to nothing; copy the file itself to this place")
            if path.is_symlink() and not _stays(path):
                raise ModelError(
                    f"{path} is a link out of its folder, to {path.resolve()}; copy the file itself to this place"
                )
            kept[path.name] = path
    return kept


def _stays(link: Path) -> bool:
    folder = link.parent.resolve()
    inside = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    return any(link.resolve().is_relative_to(place) for place in inside)


@contextlib.contextmanager
def only_hashed(folder: Path) -> Iterator[Path]:
    """A folder to load from that shows the hashed files of `folder` and nothing else.

    Guarantee: what is loaded follows from the model's hash. Libraries read more than is hashed where they find it
    (adapters, code, templates of older forms, vocabularies by class); here they find nothing of it.
    """
    kept = hashed_files(folder) if folder.is_dir() else {}
    if not folder.is_dir() or len(kept) == sum(1 for _ in folder.iterdir()):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="confide-model-") as name:
        for file_name, path in kept.items():
            (Path(name) / file_name).symlink_to(path.resolve())
        yield Path(name)


def folder_digest(path: Path) -> str:
    """SHA-256 over the sorted (name, SHA-256) pairs of the model's files, hex. Other files do not count."""
    return _digest({name: sha256_file(file) for name, file in model_files(path).items()})


def _digest(hashes: dict[str, str]) -> str:
    return canonical.digest(["confide/v1/model-folder", [[name, hashes[name]] for name in sorted(hashes)]])


def require_base(specification: Specification, folder: Path | None) -> Path:
    """The base model's folder, given and not needless. Raises ModelError."""
    if folder is None:
        raise ModelError(f"method {specification.method.name!r} needs a base model; name its folder (--model-folder)")
    return folder


def float32_copy(sha256: str) -> Path:
    """Where this user's float32 copy of a model lies, if it was needed (widened.py)."""
    return cache_folder() / "float32" / sha256


class ModelStore:
    """A folder of base models: `<sha256>/` with the files, `<sha256>.json` with name, source and size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, source: str, name: str) -> str:
        """Copy a folder, or download a hub id, into the store and return its hash. Adding it again changes nothing.

        Raises ModelError for what is neither; a file here is never asked for at a hub.
        """
        folder = Path(source).expanduser()
        if folder.exists() and not folder.is_dir():
            raise ModelError(
                f"{source} is a file; give the folder that holds the model: config.json, weights as *.safetensors, and "
                "the tokenizer's files"
            )
        if not folder.is_dir():
            folder = _download(source)
        files = model_files(folder)
        check_whole(files)
        _check_templates(folder, files)
        private_folder(self.folder)
        staging = Path(tempfile.mkdtemp(dir=self.folder, prefix=".adding-"))
        try:
            for file_name, path in files.items():
                shutil.copyfile(path, staging / file_name)
            digest = folder_digest(staging)
            target = self.folder / digest
            if not target.exists():
                staging.rename(target)
        except OSError as error:
            raise ModelError(f"cannot copy {source} to {self.folder}: {error.strerror}. Free space there.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        size = sum(path.stat().st_size for path in target.iterdir())
        entry = {"name": name, "source": source, "bytes": size}
        write_atomic(self.folder / f"{digest}.json", json.dumps(entry, indent=1).encode())
        return digest

    def path(self, sha256: str, *, verify: bool = False) -> Path:
        """The folder of a model. `verify` hashes every file again. Raises ModelError when missing or altered."""
        folder = self.folder / sha256
        if not _SHA256.fullmatch(sha256) or not (folder / "config.json").is_file():
            # What else is here is not told: a node sends this text to the coordinator.
            raise ModelError(
                f"base model {sha256[:12]} is not on this machine; add it with `confide model add`, or choose one of "
                "`confide model list`"
            )
        if verify and folder_digest(folder) != sha256:
            raise ModelError(
                f"the files of base model {sha256[:12]} in {folder} were altered; "
                f"remove it with `confide model remove {sha256[:12]}` and add it again from its source"
            )
        return folder

    def base_of(self, specification: Specification) -> Path:
        """The folder of a run's base model; of a run that has none, this store's, in which nothing is looked for."""
        return self.path(specification.model.sha256) if specification.trains_model else self.folder

    def list(self) -> list[StoredModel]:
        """All models, by name."""
        models = []
        for entry in self.folder.glob("*.json"):
            if _SHA256.fullmatch(entry.stem) and (self.folder / entry.stem).is_dir():
                fields = json.loads(entry.read_bytes())
                models.append(StoredModel(entry.stem, fields["name"], fields["source"], fields["bytes"]))
        return sorted(models, key=lambda model: (model.name, model.sha256))

    def find(self, reference: str) -> StoredModel:
        """A model by name or by 6 or more first characters of its hash. Raises ModelError unless exactly one fits."""
        found = [
            model
            for model in self.list()
            if model.name == reference or (len(reference) >= 6 and model.sha256.startswith(reference))
        ]
        if len(found) != 1:
            what = "no model" if not found else f"{len(found)} models"
            raise ModelError(f"{what} here is called {reference!r}; see `confide model list` and give more of the hash")
        return found[0]

    def remove(self, sha256: str) -> None:
        """Delete a model's files and its entry, and this user's float32 copy of it."""
        shutil.rmtree(self.path(sha256))
        (self.folder / f"{sha256}.json").unlink(missing_ok=True)
        copy = float32_copy(sha256)
        shutil.rmtree(copy, ignore_errors=True)
        copy.with_suffix(".lock").unlink(missing_ok=True)


def _check_templates(folder: Path, files: dict[str, Path]) -> None:
    """Raise ModelError where chat templates have names only: nobody says by which one a run is to train."""
    named = sorted(path.stem for path in (folder / "additional_chat_templates").glob("*.jinja"))
    settings = json.loads(files["tokenizer_config.json"].read_bytes()) if "tokenizer_config.json" in files else {}
    if named and "chat_template.jinja" not in files and not settings.get("chat_template"):
        raise ModelError(
            f"{folder} has chat templates called {', '.join(named)}, and none by default; copy the one to use to "
            "chat_template.jinja in that folder"
        )


def _download(source: str) -> Path:
    """A hub id's files in the hub's cache. Patterns keep code and pickled weights from being fetched at all."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise ModelError(f"{source!r} is neither a folder on this machine nor a hub id such as organization/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[*sorted(_KEPT), "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds; all mean the same to who typed the command
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{source!r} is not a folder here, and could not be fetched from a model hub: {reason}. "
            "Copy the model's folder to this machine and name the folder."
        ) from error
