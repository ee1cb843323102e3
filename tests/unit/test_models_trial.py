"""A family is accepted by a trial: its loss is that of eager attention, and what it cannot do is named at plan time."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from confide.errors import ModelError
from confide.methods.base import create
from confide.models.architecture import load_tokenizer
from confide.models.trainable import build
from confide.models.trial import EAGER
from confide.planning.fitness import check

from tests import families
from tests.training_specs import specification

CHEAP = ("llama", "gemma2", "opt", "deberta-v2")
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.full) for name in families.FAMILIES]
)
def test_the_table_of_families_is_what_is_found(name: str, tmp_path: Path) -> None:
    assert families.row_of(name, families.make(tmp_path, name)).line(name) in PAGE.read_text().splitlines()


def test_the_table_has_every_family_that_is_tried() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[1:]] == list(families.FAMILIES)
    assert len(families.FAMILIES) >= 35


def test_a_family_with_a_soft_cap_trains_by_eager_attention(tmp_path: Path) -> None:
    """Oracle: transformers' own eager model, whose scores are capped; torch's attention has no cap."""
    folder = families.make(tmp_path, "gemma2")
    spec = specification(adapter={"kind": "full"})
    model: Any = build(spec, folder).eval()
    assert model.config._attn_implementation == EAGER
    method = create(spec, load_tokenizer(folder))
    batch = method.collate(method.prepare([{"prompt": "Who pays?", "completion": "The client pays."}]), seed=0)
    eager = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = eager(**batch.inputs).logits
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="sum")
        assert float(method.loss(model, batch)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "opt",
            {"method": {"name": "causal_lm"}},
            "'causal_lm' here: packed documents would see",
        ),
        ("albert", {"method": {"name": "masked_lm"}, "training": {"gradient_checkpointing": True}}, "does not support"),
    ],
)
def test_what_a_family_cannot_do_is_named(name: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    spec = specification(adapter={"kind": "full"}, **changes)
    with pytest.raises(ModelError, match=said):
        check(spec, families.make(tmp_path, name))
