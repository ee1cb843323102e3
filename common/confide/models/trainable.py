"""What of a base model is trained: LoRA matrices on some layers, or all of it. What is trained is always float32.

The trainable tensors are what travels. Their names are the module's path plus `lora_A`, `lora_B` or `lora_core`,
whatever library holds them, and plain parameter names in full fine-tuning.

    model = build(specification, folder, "cpu")
    load_trainable(model, initial_state(specification, folder))
    for name, parameter in trainable_tensors(model).items(): ...
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import nn
from transformers.pytorch_utils import Conv1D

from confide.codec.tensors import TensorSchema
from confide.errors import ModelError, SpecificationError
from confide.models import aggregation, seeds
from confide.models.architecture import empty_model, head_names, load_base, unused_names
from confide.models.arithmetic import precision
from confide.runs.feedback import FeedbackSection
from confide.runs.specification import Specification

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")

OPINION = "~opinion"
"""Name of a feedback run's numbers among its tensors: behind all others, whatever they are called."""


def build(specification: Specification, base_folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The model that one node trains. Its adapters start at zero effect; `load_trainable` sets their values.

    With LoRA the base is frozen in what this machine computes in (precision.py) and the adapters are float32; in full
    fine-tuning all is float32.
    """
    check(specification)
    lora = uses_lora(specification)
    quantized = lora and specification.adapter.quantize_base == "4bit"
    if trains_all(specification):
        model = load_base(specification, base_folder, torch.float32)
    else:
        dtype = precision.base_dtype(specification, device)
        model = load_base(specification, base_folder, dtype, quantized=quantized, frozen=True)
    if not trains_all(specification):
        model.requires_grad_(False)
    if lora:
        _inject(specification, model)
        cast_adapter_dtype(model, "default")
        fixed = aggregation.fixed_matrices(specification, _lora_shapes(model))
        with torch.no_grad():
            for name, parameter in _named(model).items():
                if name in fixed:
                    parameter.copy_(fixed[name])
    _release_head(specification, model)
    model.config.use_cache = False
    placed: nn.Module = model if quantized else model.to(device)
    return placed


def check(specification: Specification) -> None:
    """Combinations that mean nothing. Raises SpecificationError."""
    if specification.model.initial == "random" and uses_lora(specification):
        raise SpecificationError(
            'model.initial is "random" with adapter.kind "lora": an adapter on random weights learns nothing; '
            'use adapter.kind = "full"'
        )
    if specification.adapter.quantize_base == "4bit" and not uses_lora(specification):
        raise SpecificationError(
            'adapter.quantize_base is "4bit", but only an adapter can be trained on a quantized base; '
            'use adapter.kind = "lora"'
        )


def trains_all(specification: Specification) -> bool:
    """Whether every parameter of the base is trained."""
    return specification.adapter.kind == "full" and specification.method.name != "in_context"


def uses_lora(specification: Specification) -> bool:
    """Whether the base gets LoRA adapters."""
    return specification.adapter.kind == "lora" and specification.method.name != "in_context"


def trainable_tensors(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The live parameters that are trained, by stable name. Call it on a freshly built model."""
    return {name: parameter for name, parameter in _named(model).items() if parameter.requires_grad}


def load_trainable(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the trainable parameters. Raises ModelError unless names and shapes are exactly the model's."""
    parameters = trainable_tensors(model)
    if set(parameters) != set(tensors):
        odd = sorted(set(parameters) ^ set(tensors))[:4]
        raise ModelError(f"the tensors are not this model's trainable ones; they differ for example in {odd}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ModelError(f"{name!r} has shape {tuple(tensors[name].shape)}; expected {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])


def schema_of(specification: Specification, base_folder: Path) -> TensorSchema:
    """Names and shapes of what travels, without loading weights."""
    if specification.asks_feedback:
        candidate = (
            trainable_tensors(_empty(as_trained(specification), base_folder)) if specification.judges_pairs else {}
        )
        return TensorSchema.of({**candidate, **_opinion(specification)})
    return TensorSchema.of(trainable_tensors(_empty(specification, base_folder)))


def _opinion(specification: Specification) -> dict[str, torch.Tensor]:
    """Of a feedback run: the numbers that are asked for, before anybody has answered."""
    return {OPINION: torch.zeros(specification.feedback.numbers)}


def as_trained(specification: Specification) -> Specification:
    """Of a feedback run that judges a candidate by comparisons: the run of method "dpo" whose tensors those are."""
    method = specification.method.model_copy(update={"name": "dpo"})
    return specification.model_copy(update={"method": method, "feedback": FeedbackSection()})


def initial_state(specification: Specification, base_folder: Path) -> dict[str, torch.Tensor]:
    """The first trainable tensors (float32, CPU), a function of the specification and the base alone.

    LoRA: A uniform in +-1/sqrt(in) (PEFT's default) or orthonormal (fedsvd), B and cores zero; heads uniform.
    Full: the base's weights; or, from scratch, the architecture's own initialization under the run's seed.
    """
    check(specification)
    if specification.judges_pairs:
        return {**initial_state(as_trained(specification), base_folder), **_opinion(specification)}
    if specification.asks_feedback:
        return _opinion(specification)
    if trains_all(specification):
        model = load_base(specification, base_folder, torch.float32)
        _release_head(specification, model)
        state = {name: tensor.detach().clone() for name, tensor in trainable_tensors(model).items()}
    else:
        model = _empty(specification, base_folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in trainable_tensors(model).items()}
        state = aggregation.initial_matrices(specification, {n: s for n, s in shapes.items() if ".lora_" in n})
        state |= {name: torch.zeros(shape) for name, shape in shapes.items() if name not in state}
    for name in head_names(specification, model):
        shape = tuple(state[name].shape)
        bound = shape[-1] ** -0.5
        # A linear score of frozen features is convex in its head: zero is no worse a start, and has no noise in it.
        is_matrix = len(shape) > 1 and specification.method.name != "reward"
        state[name] = seeds.uniform(specification.seed, name, shape, bound) if is_matrix else torch.zeros(shape)
    return state


def lora_matrices(
    specification: Specification, base_folder: Path, tensors: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A (rank, in), B (out, rank)) of every adapted layer, under any scheme of aggregation.

    Matrices that did not travel are drawn again from the run's seed; a Fed-SB core R is multiplied into B.
    """
    shapes = _lora_shapes(_empty(specification, base_folder))
    matrices = {**aggregation.fixed_matrices(specification, shapes), **tensors}
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for target in sorted({name.rsplit(".", 1)[0] for name in shapes}):
        b = matrices[f"{target}.lora_B"].float()
        core = matrices.get(f"{target}.lora_core")
        pairs[target] = (matrices[f"{target}.lora_A"].float(), b if core is None else b @ core.float())
    return pairs


def _empty(specification: Specification, base_folder: Path) -> Any:
    check(specification)
    model = empty_model(specification, base_folder)
    model.requires_grad_(trains_all(specification))
    if uses_lora(specification):
        _inject(specification, model)
    _release_head(specification, model)
    return model


def _release_head(specification: Specification, model: nn.Module) -> None:
    """A new head is trained in full, in float32, whatever is done with the body; what no loss reaches is not."""
    heads, unused = head_names(specification, model), unused_names(specification, model)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
        if name in heads:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def target_names(specification: Specification, model: nn.Module) -> list[str]:
    """Full names of the linear layers that get an adapter. Raises ModelError when none match or they are too narrow."""
    adapter = specification.adapter
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    targets = []
    for name in linear:
        layer = _LAYER.search(name)
        if name.rsplit(".", 1)[-1] in adapter.target_modules and layer and int(layer[1]) >= adapter.first_layer:
            targets.append(name)
    last_parts = {name.rsplit(".", 1)[-1] for name in targets}
    unmatched = [name for name in adapter.target_modules if name not in last_parts]
    if unmatched:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear if _LAYER.search(name)})
        depth = max((int(m[1]) for m in map(_LAYER.search, linear) if m), default=-1) + 1
        raise ModelError(
            f"adapter.target_modules names {unmatched[0]!r}, which no linear layer from layer {adapter.first_layer} on "
            f"is called; this model has {depth} layers with {', '.join(known)}"
        )
    for name in targets:
        layer_of: Any = linear[name]
        # The weight of a quantized layer is packed: ask a Linear for its widths instead.
        widths = (
            layer_of.weight.shape if isinstance(layer_of, Conv1D) else (layer_of.in_features, layer_of.out_features)
        )
        smallest = min(widths)
        if adapter.rank > smallest:
            raise ModelError(
                f"adapter.rank is {adapter.rank}, but {name!r} is only {smallest} wide; choose at most {smallest}"
            )
    return targets


def _inject(specification: Specification, model: nn.Module) -> None:
    adapter = specification.adapter
    targets = target_names(specification, model)
    conv = {isinstance(model.get_submodule(name), Conv1D) for name in targets}
    if len(conv) > 1:
        raise ModelError("adapter.target_modules mixes Conv1D and Linear layers; name layers of one kind")
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=conv == {True},
        init_lora_weights=True,
    )
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=next(model.parameters()).is_meta)
    trained = aggregation.trained_matrices(adapter.aggregation)
    for name in targets:
        layer: Any = model.get_submodule(name)
        if adapter.aggregation == "fedsb":
            device = layer.lora_A["default"].weight.device
            core = nn.Linear(adapter.rank, adapter.rank, bias=False, device=device, dtype=torch.float32)
            if core.weight.device.type != "meta":
                nn.init.zeros_(core.weight)
            layer.lora_B["default"] = nn.Sequential(core, layer.lora_B["default"])
    for stable, parameter in _named(model).items():
        if ".lora_" in stable:
            parameter.requires_grad_(stable.rsplit(".", 1)[-1] in trained)


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {_stable(name): parameter for name, parameter in model.named_parameters()}


def _stable(name: str) -> str:
    name = name.replace(".lora_B.default.0.weight", ".lora_core").replace(".lora_B.default.1.weight", ".lora_B")
    name = name.replace(".base_layer.", ".")
    return re.sub(r"\.lora_([AB])\.default\.weight$", r".lora_\1", name)


def _lora_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in _named(model).items() if ".lora_" in name}
