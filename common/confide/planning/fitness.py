"""What can be known without data of whether a specification and its base model go together."""

from pathlib import Path

from confide.errors import ModelError
from confide.methods.base import create
from confide.models.architecture import check_family, empty_model, load_config, load_tokenizer
from confide.privacy.families import check_full, family_of
from confide.runs.specification import EXAMPLE, Specification, parse_toml


def check(specification: Specification, base_folder: Path) -> None:
    """The model has the head, the tokenizer what the method needs, and gradients of single records are offered for the
    model's family where privacy needs them.

    Raises ModelError or SpecificationError by name.
    """
    config = load_config(base_folder)
    model = empty_model(specification, base_folder)
    if specification.privacy.unit in ("record", "user"):
        check_full(family_of(model), full=specification.adapter.kind == "full")
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and specification.method.max_length > limit:
        raise ModelError(
            f"method.max_length is {specification.method.max_length}, but this model reads at most {limit} tokens"
        )
    create(specification, load_tokenizer(base_folder))
    check_family(specification, base_folder)


TRIED = ("sft", "causal_lm", "masked_lm", "classification", "contrastive")
"""Methods that a base is tried with when it is added."""


def methods_of(base_folder: Path) -> dict[str, str]:
    """Each of TRIED, and why it does not train this base; "" where it does. The tokenizer is read as well.

    Raises ModelError where the folder makes no model, or no method trains it.
    """
    load_tokenizer(base_folder)
    example = parse_toml(EXAMPLE)
    length = getattr(load_config(base_folder).get_text_config(), "max_position_embeddings", None)
    found: dict[str, str] = {}
    for name in TRIED:
        changes = {"name": name, "max_length": min(example.method.max_length, length or example.method.max_length)}
        if name == "classification":
            changes["labels"] = ("no", "yes")
        method = example.method.model_copy(update=changes)
        try:
            check_family(example.model_copy(update={"method": method}), base_folder)
        except ModelError as error:
            found[name] = str(error)
        else:
            found[name] = ""
    if all(found.values()):
        raise ModelError(f"no method trains this model: {found[TRIED[0]]}")
    return found
