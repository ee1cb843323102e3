"""Load a base model and its tokenizer from a pinned folder: local files only, no code from the folder."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from confide.errors import ModelError
from confide.models.arithmetic.widened import widened
from confide.models.pretrained import load_pretrained, pooler_names, quiet
from confide.models.store import only_hashed
from confide.models.trial import EAGER, attention_for
from confide.runs.specification import Specification

_TASKS: dict[str, Any] = {
    "sft": transformers.AutoModelForCausalLM,
    "causal_lm": transformers.AutoModelForCausalLM,
    "in_context": transformers.AutoModelForCausalLM,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "contrastive": transformers.AutoModel,
    "reward": transformers.AutoModel,
    "feedback": transformers.AutoModel,
    "dpo": transformers.AutoModelForCausalLM,
}
REWARD_HEAD = "reward_head"
"""Name of the linear layer (1, D) that method "reward" puts beside a model without a head."""


def load_config(base_folder: Path, specification: Specification | None = None) -> Any:
    """The model's configuration; with a specification, its head is set up for the method's labels."""
    try:
        with quiet(), only_hashed(base_folder) as folder:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{base_folder / 'config.json'} describes no model that is known here: {reason}") from error
    config.name_or_path = str(base_folder)
    if specification is not None and specification.method.name == "classification":
        labels = specification.method.labels
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    return config


def load_tokenizer(base_folder: Path) -> Any:
    """The fast tokenizer in the model's folder, padding on the right. Raises ModelError when it does not fit."""
    try:
        with quiet(), only_hashed(base_folder) as folder:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{base_folder} holds no tokenizer that is known here: {reason}") from error
    tokenizer.name_or_path = str(base_folder)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer in {base_folder} has neither a padding nor an end token; add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    rows = getattr(load_config(base_folder).get_text_config(), "vocab_size", len(tokenizer))
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer in {base_folder} has {len(tokenizer)} tokens, but the model embeds only {rows}; "
            "they do not belong together"
        )
    return tokenizer


def _class_for(specification: Specification, config: Any, base_folder: Path) -> Any:
    task = _TASKS[specification.method.name]
    if type(config) not in task._model_mapping:
        raise ModelError(
            f"a {config.model_type} model ({base_folder}) has no head for method {specification.method.name!r}; "
            "choose another base model or method"
        )
    return task


def empty_model(specification: Specification, base_folder: Path) -> Any:
    """The architecture without weights (meta device): names and shapes in a fraction of a second."""
    config = load_config(base_folder, specification)
    task = _class_for(specification, config, base_folder)
    with quiet(), torch.device("meta"):
        try:
            # Names and shapes do not depend on it, and every family has it.
            return _with_head(specification, task.from_config(config, attn_implementation=EAGER))
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise ModelError(
                f"the configuration in {base_folder} makes no {config.model_type} model ({type(error).__name__}); "
                "choose another base model"
            ) from error


def check_family(specification: Specification, base_folder: Path) -> None:
    """Try the model's family with the run's method. Raises ModelError naming what it cannot do."""
    config = load_config(base_folder, specification)
    with quiet():
        attention_for(specification, config, _class_for(specification, config, base_folder))


def load_base(
    specification: Specification,
    base_folder: Path,
    dtype: torch.dtype,
    *,
    quantized: bool = False,
    frozen: bool = False,
) -> Any:
    """The base model with the folder's weights in `dtype`, or freshly drawn from the run's seed (initial = "random").

    quantized: linear layers in 4 bits on the GPU (QLoRA, Dettmers et al. 2023: NF4, double quantization).
    frozen: nothing writes to the weights, which may then be pages of a file that processes share (widened.py).

    A head that the folder lacks is drawn from the run's seed where the method brings its own (classification);
    for any other method a missing tensor raises ModelError.
    """
    config = load_config(base_folder, specification)
    task = _class_for(specification, config, base_folder)
    with quiet():
        implementation = attention_for(specification, config, task)
    shared = frozen and not quantized and dtype == torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(specification.seed)
        if specification.model.initial == "random":
            with quiet():
                drawn = task.from_config(config, attn_implementation=implementation, dtype=dtype)
            return _with_head(specification, drawn)
        model = load_pretrained(
            task,
            base_folder,
            dtype,
            remedy=f"method {specification.method.name!r} needs it: choose a base model with that head",
            source=widened(base_folder) if shared else None,
            may_lack=lambda found: {*head_names(specification, found), *unused_names(specification, found)},
            config=config,
            attn_implementation=implementation,
            **(_four_bits(dtype) if quantized else {}),
        )
    return _with_head(specification, model)


def _with_head(specification: Specification, model: Any) -> Any:
    """Method "reward" scores a feature with a linear layer that no base folder has; zeros at first."""
    if specification.method.name == "reward":
        width = int(model.config.get_text_config().hidden_size)
        head = nn.Linear(width, 1, bias=False)
        if head.weight.device.type != "meta":
            nn.init.zeros_(head.weight)
        model.add_module(REWARD_HEAD, head)
    return model


def _four_bits(dtype: torch.dtype) -> dict[str, Any]:
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            'adapter.quantize_base is "4bit", which needs an NVIDIA GPU and the bitsandbytes package on every node; '
            'this machine lacks one of them. Install it, or use quantize_base = "none"'
        )
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def head_names(specification: Specification, model: nn.Module) -> tuple[str, ...]:
    """Parameters outside the pretrained body that a method trains in full: its own head, else none."""
    if specification.method.name == "reward":
        return (f"{REWARD_HEAD}.weight",)
    if specification.method.name != "classification":
        return ()
    prefix = f"{model.base_model_prefix}."
    body_pooler = [name for name, _ in model.named_parameters() if ".pooler." in name]
    return tuple([name for name, _ in model.named_parameters() if not name.startswith(prefix)] + body_pooler)


def unused_names(specification: Specification, model: nn.Module) -> tuple[str, ...]:
    """Parameters that take no part in a method's loss: an encoder's pooler, where hidden states are pooled here."""
    if specification.method.name not in ("contrastive", "reward", "feedback"):
        return ()
    return tuple(pooler_names(model))
