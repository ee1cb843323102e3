"""An aligned adapter added to its base: one model without an adapter, released past the same gate as the adapter is.

    confide rlhf merge run --base MODEL            # run: of `confide rlhf train`; the model is in run/merged

Of the base only the adapted matrices change; every other tensor and every other file is the base's, byte for byte. The
folder carries the adapter and its document, so that whoever has the base can check that it is their sum.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from confide.errors import ModelError, StateError
from confide.files import private_folder, sha256_file, write_atomic
from confide.models.adapter_hash import ADAPTER_FILE, content_hash
from confide.models.store import folder_digest, model_files
from confide.models.weights import check_whole
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from confide_server.state.release_subject import FILE_NAME, AlignedModel, read_aligned

ADAPTER = "adapter"
"""Folder of the adapter: in the run's folder, and in the merged model's."""
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_UNLIKE = (
    "use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "arrow_config", "velora_config", "monteclora_config", "kasa_config", "megatron_config",
)  # fmt: skip
"""Settings of PEFT under which an adapter is more than a product of two matrices beside each layer."""
_ROUNDINGS = 8
"""Of the stored type, within which a matrix is the sum: machines add up products in different orders."""


@dataclass(frozen=True)
class _Change:
    """What is added to one matrix: scale * B @ A, turned where the base keeps it turned."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    turned: bool

    def added(self) -> torch.Tensor:
        """float32, in the base's shape."""
        return self._shaped(self.b @ self.a)

    def most(self) -> torch.Tensor:
        """As if no product cancelled another: what rounding is measured by."""
        return self._shaped(self.b.abs() @ self.a.abs())

    def _shaped(self, product: torch.Tensor) -> torch.Tensor:
        return self.scale * (product.T if self.turned else product)


def merge(run: Path, base: Path, out: Path) -> AlignedModel:
    """Write the merged model of a folder of `confide rlhf train`; gives the document that a release of it names.

    Raises ModelError when run, adapter and base do not belong together, StateError when `out` is there.
    """
    if out.exists():
        raise StateError(f"{out} is there already; name another folder, or move it away")
    aligned = aligned_in(run, base, run / ADAPTER)
    changes = _changes(run / ADAPTER)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=".merging-"))
    try:
        for name, path in _weights_and_rest(base, changes):
            if path is None:
                shutil.copyfile(base / name, staging / name)
            else:
                save_file(_summed(load_file(path), changes), staging / name, metadata=_metadata(path))
        shutil.copytree(run / ADAPTER, staging / ADAPTER)
        merged = aligned.model_copy(update={"merged_sha256": folder_digest(staging)})
        write_atomic(staging / FILE_NAME, merged.to_bytes())
        private_folder(staging)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return merged


def aligned_in(folder: Path, base: Path, adapter: Path) -> AlignedModel:
    """The folder's document, if it is of this adapter and base. Raises ModelError."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise ModelError(f"{folder} holds no {FILE_NAME}; name the folder that `confide rlhf train --out` wrote")
    model, found, there = read_aligned(path.read_bytes()), content_hash(adapter), folder_digest(base)
    if model.adapter_sha256 != found:
        raise ModelError(f"{path} is of the adapter {model.adapter_sha256[:16]}, and {adapter} holds {found[:16]}")
    if model.base_sha256 != there:
        raise ModelError(f"the adapter in {adapter} is of the base {model.base_sha256[:16]}; {base} holds {there[:16]}")
    return model


def merged_in(folder: Path, base: Path) -> AlignedModel:
    """The document of a merged model's folder.

    Guarantee: the folder is base plus the adapter that the document names, up to rounding, and nothing else.

    Raises ModelError naming what is not.
    """
    model = aligned_in(folder, base, folder / ADAPTER)
    found = folder_digest(folder)
    if model.merged_sha256 != found:
        named = model.merged_sha256[:16] or "no merged model"
        raise ModelError(f"{folder / FILE_NAME} is of {named}, and {folder} holds {found[:16]}; merge the run again")
    changes = _changes(folder / ADAPTER)
    if set(model_files(folder)) != set(model_files(base)):
        odd = sorted(set(model_files(folder)) ^ set(model_files(base)))[0]
        raise ModelError(f"the file {odd!r} is not both in {folder} and in its base; merge the run again")
    for name, path in _weights_and_rest(base, changes):
        same = sha256_file(folder / name) == sha256_file(base / name) if path is None else (
            _is_sum(load_file(folder / name), load_file(path), changes)
        )  # fmt: skip
        if not same:
            raise ModelError(
                f"the file {name!r} in {folder} does not follow from base and adapter; merge the run again"
            )
    return model


def _changes(adapter: Path) -> dict[str, _Change]:
    """By the name of the matrix in the base's files. Raises ModelError for an adapter of another kind."""
    try:
        config: Mapping[str, Any] = json.loads((adapter / "adapter_config.json").read_bytes())
        tensors = load_file(adapter / ADAPTER_FILE)
    except Exception as error:  # safetensors raises an exception of its own, which is no ValueError
        raise ModelError(f"the adapter in {adapter} cannot be read: {error}; train again") from error
    odd = [name for name in _UNLIKE if config.get(name)]
    if config.get("peft_type") != "LORA" or odd:
        raise ModelError(
            f"the adapter in {adapter} is no plain LoRA ({odd[0] if odd else config.get('peft_type')}); release the "
            "adapter itself"
        )
    scale, turned = float(config["lora_alpha"]) / int(config["r"]), bool(config.get("fan_in_fan_out"))
    layers = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    if len(tensors) != 2 * len(layers) or not all(layer + _B in tensors for layer in layers):
        raise ModelError(f"the adapter in {adapter} holds more than A and B of its layers; release the adapter itself")
    return {
        f"{layer.removeprefix(_PREFIX)}.weight": _Change(
            tensors[layer + _A].float(), tensors[layer + _B].float(), scale, turned
        )
        for layer in layers
    }


def _weights_and_rest(base: Path, changes: Mapping[str, _Change]) -> Iterator[tuple[str, Path | None]]:
    """(name, where it is) of each of the base's files with a matrix that changes; None in place of others' paths."""
    files = model_files(base)
    check_whole(files)
    held = {}
    for name, path in files.items():
        if name.endswith(".safetensors"):
            with safe_open(path, "pt") as opened:
                held[name] = set(opened.keys()) & set(changes)
    missing = sorted(set(changes).difference(*held.values()))
    if missing:
        raise ModelError(f"the base in {base} keeps no matrix {missing[0]!r} to add to; release the adapter itself")
    for name, path in files.items():
        yield name, path if held.get(name) else None


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return dict(opened.metadata() or {"format": "pt"})


def _summed(tensors: dict[str, torch.Tensor], changes: Mapping[str, _Change]) -> dict[str, torch.Tensor]:
    """The adapted matrices changed, in the type in which they are stored; sums in float32."""
    for name in tensors.keys() & changes.keys():
        tensors[name] = (_number(name, tensors[name]) + changes[name].added()).to(tensors[name].dtype).contiguous()
    return tensors


def _is_sum(
    found: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], changes: Mapping[str, _Change]
) -> bool:
    if found.keys() != base.keys():
        return False
    return all(
        tensor.dtype == base[name].dtype
        and tensor.shape == base[name].shape
        and (_near(tensor, base[name], changes[name]) if name in changes else torch.equal(tensor, base[name]))
        for name, tensor in found.items()
    )


def _near(found: torch.Tensor, base: torch.Tensor, change: _Change) -> bool:
    allowed = _ROUNDINGS * torch.finfo(base.dtype).eps * (base.float().abs() + change.most())
    return bool(((found.float() - (base.float() + change.added())).abs() <= allowed).all())


def _number(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelError(
            f"the base keeps {name!r} in {tensor.dtype}, to which nothing can be added; release the adapter"
        )
    return tensor.float()
