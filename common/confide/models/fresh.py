"""A model folder to begin pre-training from: a configuration, a tokenizer, and weights that a run draws anew.

    make_folder(Path("base"), config=Path("tiny-llama.json"), tokenizer=Path("tokenizer"))

The weights in it are drawn from a fixed seed, so that the same inputs make the same folder, and one hash on every
node. A run with model.initial = "pretrained" begins with them; with "random" its own seed draws others.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from confide.errors import ModelError
from confide.files import private_folder, write_atomic
from confide.models.architecture import load_config, load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_NUMBERS = ("pad_token_id", "eos_token_id", "bos_token_id")


def make_folder(folder: Path, *, config: Path, tokenizer: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer's files; returns the folder.

    config: JSON in transformers' format with model_type; vocab_size and token numbers are set from the tokenizer.
    Raises ModelError naming what is missing or does not fit; then nothing is left behind.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty; choose another folder")
    missing = [name for name in TOKENIZER_FILES if not (tokenizer / name).is_file()]
    if missing:
        raise ModelError(f"{tokenizer} has no {missing[0]}; name a folder that `confide run export` wrote")
    document = _read(config)
    private_folder(folder)
    try:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
        _write_model(folder, document)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the configuration {path} cannot be read: {error}") from error
    if not isinstance(document, dict) or "model_type" not in document:
        raise ModelError(f'{path} is no model configuration: a JSON object with model_type, for example "llama"')
    return document


def _write_model(folder: Path, document: dict[str, Any]) -> None:
    write_atomic(folder / "config.json", json.dumps({**document, "vocab_size": 2**20}).encode())
    tokens = load_tokenizer(folder)
    document = {**document, "vocab_size": len(tokens), **{name: getattr(tokens, name) for name in _NUMBERS}}
    write_atomic(folder / "config.json", json.dumps(document, indent=2, sort_keys=True).encode())
    config = load_config(folder)
    task = next((t for t in _tasks() if type(config) in t._model_mapping), None)
    if task is None:
        raise ModelError(f"a {config.model_type} model has no head for causal or masked language modelling")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = task.from_config(config)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ModelError(f"the configuration makes no model: {str(error).splitlines()[0]}") from error
    model.save_pretrained(folder)


def _tasks() -> tuple[Any, ...]:
    # Both kinds of head exist for some encoders; their pre-training is the masked one.
    return (transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM)
