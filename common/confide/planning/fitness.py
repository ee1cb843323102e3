"""What can be known without data of whether a specification and its base model go together."""

from pathlib import Path

from confide.errors import ModelError
from confide.methods.base import create
from confide.models.architecture import check_family, empty_model, load_config, load_tokenizer
from confide.privacy.families import check_full, family_of
from confide.runs.specification import Specification


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
