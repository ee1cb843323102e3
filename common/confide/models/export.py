"""A run's result as files that others can load: a PEFT adapter, or a whole model folder, each with its manifest.

    write_adapter(folder, tensors, manifest, specification, base_folder)
    AutoPeftModelForCausalLM.from_pretrained(folder)

An adapter's folder is complete but for the base model: weights, tokenizer, model card, and where the base was when it
was exported. `base_name` names it for others (a hub id), where a path of this machine should not be told.

`tensors` are the trainable tensors of a checkpoint (confide.models.trainable); `manifest` is the coordinator's record
of how they came about, and is written beside them as manifest.json together with the hash of every file.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save
from transformers.pytorch_utils import Conv1D

from confide.codec.tensors import TensorSchema
from confide.errors import ModelError
from confide.files import private_folder, sha256_file, write_atomic
from confide.models.adapter_hash import ADAPTER_FILE
from confide.models.architecture import REWARD_HEAD, empty_model, head_names, load_base, load_config, load_tokenizer
from confide.models.arithmetic import precision
from confide.models.gguf_export import write_gguf
from confide.models.model_card import licence_of, model_card
from confide.models.opinions import write_opinions
from confide.models.store import hashed_files
from confide.models.trainable import OPINION, lora_matrices, schema_of, target_names, trains_all, uses_lora
from confide.runs.result_folder import write_manifest
from confide.runs.specification import Specification

Tensors = Mapping[str, torch.Tensor]
_PEFT_TASKS = {
    "sft": "CAUSAL_LM",
    "causal_lm": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "contrastive": "FEATURE_EXTRACTION",
    "dpo": "CAUSAL_LM",
    "reward": "FEATURE_EXTRACTION",
}
TRAINED = "trained.safetensors"
"""Beside an adapter whose matrices are products: the tensors that were trained, whose hash is the signed one."""
_OF_THE_MODEL = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
"""Of a base folder's files those that are no tokenizer's, beside its weights."""


def write_export(
    folder: Path,
    tensors: Tensors,
    manifest: Mapping[str, Any],
    specification: Specification,
    base_folder: Path,
    *,
    base_name: str | None = None,
) -> Path:
    """What the run trained: an adapter folder for LoRA, a model folder for full fine-tuning.

    Of an in-context run manifest.json alone: it trained nothing, and its metrics stand there.
    """
    if specification.method.name == "in_context":
        _check(tensors, specification, base_folder)
        private_folder(folder)
        write_manifest(folder, manifest)
        return folder
    if specification.asks_feedback:
        return write_opinions(folder, tensors[OPINION].double().tolist(), manifest, specification)
    if specification.method.name == "reward":
        return _write_reward(folder, tensors, manifest, specification, base_folder)
    if trains_all(specification):
        return write_merged(folder, tensors, manifest, specification, base_folder)
    return write_adapter(folder, tensors, manifest, specification, base_folder, base_name=base_name)


def _write_reward(
    folder: Path, tensors: Tensors, manifest: Mapping[str, Any], specification: Specification, base_folder: Path
) -> Path:
    """A reward head as confide.models.reward_folder writes it, with the run's lineage; its adapter beside it."""
    from confide.models.reward_folder import write_reward

    if trains_all(specification):
        raise ModelError(
            'a reward model with adapter.kind "full" is a whole model with a head, which nothing reads; train it with '
            '"lora" or "none" to export it'
        )
    _check(tensors, specification, base_folder)
    privacy = specification.privacy
    private_folder(folder)
    adapter = _write_reward_adapter(folder, tensors, specification, base_folder) if uses_lora(specification) else ""
    write_reward(
        folder, tensors[f"{REWARD_HEAD}.weight"].float().numpy(), base_sha256=specification.model.sha256,
        pooling=specification.method.pooling, max_length=specification.method.max_length,
        lineage={"specification": specification.digest, "privacy": privacy.model_dump(mode="json")},
        adapter_sha256=adapter,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def _write_reward_adapter(folder: Path, tensors: Tensors, specification: Specification, base_folder: Path) -> str:
    """The adapter under a reward head, in PEFT's format. Returns its weights' SHA-256, which reward.json names."""
    weights = _lora_weights(specification, base_folder, tensors)
    config = _peft_config(specification, empty_model(specification, base_folder), [], specification.model.name)
    write_atomic(folder / ADAPTER_FILE, save(weights, metadata={"format": "pt"}))
    write_atomic(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True).encode())
    return sha256_file(folder / ADAPTER_FILE)


def _lora_weights(specification: Specification, base_folder: Path, tensors: Tensors) -> dict[str, torch.Tensor]:
    """A and B of every adapted layer, by PEFT's names."""
    weights = {}
    for target, (a, b) in lora_matrices(specification, base_folder, tensors).items():
        weights[f"base_model.model.{target}.lora_A.weight"] = a
        weights[f"base_model.model.{target}.lora_B.weight"] = b
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}


def write_adapter(
    folder: Path,
    tensors: Tensors,
    manifest: Mapping[str, Any],
    specification: Specification,
    base_folder: Path,
    *,
    base_name: str | None = None,
) -> Path:
    """adapter_config.json and adapter_model.safetensors in PEFT's format, tokenizer, README.md, manifest.json.

    base_name: of the base model, for adapter_config.json; default the path of its folder. Returns the folder.

    Whatever the scheme of aggregation, the adapter holds plain A and B: fixed matrices are drawn again from the run's
    seed, and a Fed-SB core R is multiplied into B.
    """
    if not uses_lora(specification):
        raise ModelError("this run trained no adapter; export it as a whole model instead")
    _check(tensors, specification, base_folder)
    model = empty_model(specification, base_folder)
    heads = {name: tensors[name] for name in head_names(specification, model)}
    weights = {
        f"base_model.model.{name}": tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in heads.items()
    } | _lora_weights(specification, base_folder, tensors)
    named = base_name or str(base_folder.resolve())
    config = _peft_config(specification, model, list(heads), named)
    private_folder(folder)
    for name, path in hashed_files(base_folder).items():
        if name not in _OF_THE_MODEL and not name.endswith(".safetensors"):
            shutil.copyfile(path, folder / name)
    # A path is no name for the model card, which is read elsewhere.
    card_name = base_name or specification.model.name
    write_atomic(folder / ADAPTER_FILE, save(weights, metadata={"format": "pt"}))
    if any(name.endswith(".lora_core") for name in tensors):
        write_atomic(folder / TRAINED, save({name: tensors[name].detach().cpu().contiguous() for name in tensors}))
    write_atomic(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True).encode())
    _write_card(folder, specification, manifest, base_folder, card_name, adapter=True)
    write_manifest(folder, {"base_model_sha256": specification.model.sha256, **manifest})
    return folder


def write_merged(
    folder: Path,
    tensors: Tensors,
    manifest: Mapping[str, Any],
    specification: Specification,
    base_folder: Path,
    *,
    gguf: bool = False,
) -> Path:
    """A whole model folder, tokenizer included, in the dtype in which the base is stored.

    Adapters are added to the weights in float32. gguf: with the same model as model.gguf beside it.
    """
    _check(tensors, specification, base_folder)
    model = load_base(specification, base_folder, torch.float32)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name in set(parameters) & set(tensors):
            parameters[name].copy_(tensors[name])
        if uses_lora(specification):
            scale = specification.adapter.alpha / specification.adapter.rank
            for target, (a, b) in lora_matrices(specification, base_folder, tensors).items():
                layer = model.get_submodule(target)
                change = scale * (b.float() @ a.float())
                layer.weight += change.T if isinstance(layer, Conv1D) else change
    # An adapter leaves the base as it was stored; of a model that was trained whole the specification says it.
    stored = load_config(base_folder).dtype if uses_lora(specification) else None
    model.to(stored or precision.DTYPES[specification.model.dtype])
    private_folder(folder)
    model.save_pretrained(folder)
    load_tokenizer(base_folder).save_pretrained(folder)
    if gguf:
        write_gguf(folder, folder / "model.gguf")
    _write_card(folder, specification, manifest, base_folder, specification.model.name, adapter=False)
    write_manifest(folder, manifest)
    return folder


def _check(tensors: Tensors, specification: Specification, base_folder: Path) -> None:
    schema = schema_of(specification, base_folder)
    if TensorSchema.of(tensors) != schema:
        odd = sorted(set(schema.names) ^ set(tensors))[:3] or "their shapes"
        raise ModelError(f"the checkpoint does not belong to this specification and base model; it differs in {odd}")


def _peft_config(specification: Specification, model: Any, heads: list[str], base_name: str) -> dict[str, Any]:
    """PEFT's description of the adapter."""
    adapter = specification.adapter
    targets = target_names(specification, model)
    conv = isinstance(model.get_submodule(targets[0]), Conv1D)
    prefix = f"{model.base_model_prefix}."
    modules = {name.removeprefix(prefix).split(".", 1)[0] for name in heads}
    config: dict[str, Any] = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=conv,
        modules_to_save=sorted(modules) or None,
        task_type=_PEFT_TASKS.get(specification.method.name),
        base_model_name_or_path=base_name,
        inference_mode=True,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _write_card(
    folder: Path,
    specification: Specification,
    manifest: Mapping[str, Any],
    base_folder: Path,
    base_name: str,
    *,
    adapter: bool,
) -> None:
    licence = licence_of(base_folder)
    text = model_card(specification, manifest, base_name=base_name, licence=licence, adapter=adapter)
    write_atomic(folder / "README.md", text.encode())
