"""Whether an exported adapter is the model that its manifest names: the signed hash is calculated again from its files.

A manifest's list of file hashes stands outside of what was signed, since files are made after the signature; who alters
a file can alter the list. What was signed is the hash of the trained tensors. So they are read back out of the adapter
here, hashed as the coordinator hashed them, and everything else in the adapter is made anew and compared.

    check_bound(folder, manifest, base_folder)  # after confide.sealing.manifest.verify_manifest(manifest, root, folder)

Guarantee: an adapter, or a whole model in float32, that passes computes what the run trained, if the manifest's
signatures hold.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import ModelError, UpdateError
from confide.files import sha256_file
from confide.models.adapter_hash import ADAPTER_FILE
from confide.models.architecture import load_base
from confide.models.export import TRAINED, write_adapter
from confide.models.store import folder_digest
from confide.models.trainable import schema_of, trains_all
from confide.runs.specification import Specification, parse_canonical

_PREFIX = "base_model.model."
_OF_THE_PLACE = frozenset({"base_model_name_or_path", "peft_version", "revision", "auto_mapping"})
"""Fields of adapter_config.json that say where and by what it was written."""


def check_bound(folder: Path, manifest: Mapping[str, Any], base_folder: Path) -> None:
    """Raises ModelError naming what is not as it was signed."""
    specification = parse_canonical(canonical.encode(manifest.get("specification")), "the manifest's specification")
    found = folder_digest(base_folder)
    if specification.model.sha256 != found:
        raise ModelError(f"the run's base model is {specification.model.sha256[:12]}; {base_folder} holds {found[:12]}")
    try:
        tensors = load_file(folder / ADAPTER_FILE)
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except Exception as error:  # safetensors raises an exception of its own, which is no ValueError
        raise ModelError(f"the adapter in {folder} cannot be read: {error}; export it again") from error
    trained = _trained(folder, tensors, specification, base_folder)
    signed = str(manifest.get("model_sha256"))
    if model_digest(_encoded(trained, specification, base_folder)).hex() != signed:
        raise ModelError(
            f"the tensors in {folder} are not the model {signed[:12]} that was signed; export the run again"
        )
    _check_rest(folder, tensors, config, trained, specification, base_folder)


def check_whole_bound(folder: Path, manifest: Mapping[str, Any], base_folder: Path) -> None:
    """The same of a whole model, where every parameter was trained. Raises ModelError naming what is not as it was.

    Its files are those that the manifest lists. Stored in float32 its tensors are also hashed as they were signed;
    fewer bits do not hold the trained numbers, and there the list is all that can be checked.
    """
    specification = parse_canonical(canonical.encode(manifest.get("specification")), "the manifest's specification")
    found = folder_digest(base_folder)
    if specification.model.sha256 != found:
        raise ModelError(f"the run's base model is {specification.model.sha256[:12]}; {base_folder} holds {found[:12]}")
    if not trains_all(specification):
        raise ModelError(f"{folder} is a merged model; name the adapter of the same run, whose tensors were signed")
    listed = manifest.get("files")
    listed = listed if isinstance(listed, dict) else {}
    files = {path.name: path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json"}
    odd = sorted(set(listed) ^ set(files)) or [name for name in files if sha256_file(files[name]) != listed[name]]
    if odd:
        raise ModelError(f"the file {odd[0]!r} in {folder} is not the one that was exported; export the run again")
    if specification.model.dtype != "float32":
        return
    parameters = dict(load_base(specification, folder, torch.float32).named_parameters())
    names = schema_of(specification, base_folder).names
    missing = [name for name in names if name not in parameters]
    if missing:
        raise ModelError(f"the model in {folder} lacks {missing[0]!r}, which the run trained; export the run again")
    trained = {name: parameters[name].detach() for name in names}
    signed = str(manifest.get("model_sha256"))
    if model_digest(_encoded(trained, specification, base_folder)).hex() != signed:
        raise ModelError(
            f"the tensors in {folder} are not the model {signed[:12]} that was signed; export the run again"
        )


def _trained(
    folder: Path, tensors: Mapping[str, torch.Tensor], specification: Specification, base_folder: Path
) -> dict[str, torch.Tensor]:
    """The tensors that the run trained, by the names of its checkpoint."""
    if specification.adapter.aggregation == "fedsb":
        if not (folder / TRAINED).is_file():
            raise ModelError(f"{folder} holds no {TRAINED}, by which its adapter is checked; export the run again")
        trained: dict[str, torch.Tensor] = load_file(folder / TRAINED)
        return trained
    names = schema_of(specification, base_folder).names
    missing = [name for name in names if f"{_PREFIX}{name}.weight" not in tensors and _PREFIX + name not in tensors]
    if missing:
        raise ModelError(f"the adapter in {folder} lacks {missing[0]!r}, which the run trained; export the run again")
    plain = {name: tensors.get(f"{_PREFIX}{name}.weight", tensors.get(_PREFIX + name)) for name in names}
    return {name: tensor for name, tensor in plain.items() if tensor is not None}


def _encoded(trained: Mapping[str, torch.Tensor], specification: Specification, base_folder: Path) -> bytes:
    schema = schema_of(specification, base_folder)
    try:
        return schema.encode(trained)
    except UpdateError as error:
        raise ModelError(f"the adapter has other tensors than the run: {error}; export the run again") from error


def _check_rest(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    trained: Mapping[str, torch.Tensor],
    specification: Specification,
    base_folder: Path,
) -> None:
    """Fixed matrices and the configuration, as they follow from the specification."""
    with tempfile.TemporaryDirectory(prefix="confide-bound-") as name:
        made = write_adapter(Path(name) / "adapter", trained, {}, specification, base_folder)
        expected = load_file(made / ADAPTER_FILE)
        wanted = json.loads((made / "adapter_config.json").read_bytes())
    odd = sorted(set(expected) ^ set(tensors))
    odd = odd or [name for name, tensor in expected.items() if not torch.equal(tensor, tensors[name])]
    if odd:
        raise ModelError(f"the tensor {odd[0]!r} in {folder} does not follow from the signed run; export it again")
    for field in sorted({*config, *wanted} - _OF_THE_PLACE):
        # A newer PEFT has more fields; one that is not set changes nothing.
        if config.get(field) != wanted.get(field) and (config.get(field) or wanted.get(field)):
            raise ModelError(
                f"{field} is {config.get(field)!r} in {folder / 'adapter_config.json'}, and {wanted.get(field)!r} "
                "follows from the signed run; export it again"
            )
