"""Recipes before they run: their specifications, the packaged text's format, the user's own file, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from confide.errors import DataError, SpecificationError
from confide.models.store import folder_digest
from confide.planning.fitness import check
from confide.runs.fields import fields_of
from confide.runs.specification import parse_toml
from confide_simulations.recipes import python_code, running, texts
from confide_simulations.recipes.catalogue import RECIPES, Recipe, Stage, find
from confide_simulations.simulate.partition import parse_scheme

from tests.tiny_models import tiny_bert, tiny_llama

STAGES = [(recipe, stage) for recipe in RECIPES for stage in recipe.stages]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "smollm2": tiny_llama(tmp_path_factory.mktemp("llama")),
        "minilm": tiny_bert(tmp_path_factory.mktemp("bert"), head=False),
    }


def row(recipe: Recipe, **fields: str) -> dict[str, str]:
    return {**dict.fromkeys(recipe.fields, "some text"), recipe.key: "a", **fields}


@pytest.mark.parametrize(("recipe", "stage"), STAGES, ids=[f"{r.name}-{s.name}" for r, s in STAGES])
def test_every_stage_is_a_valid_sealed_run(
    recipe: Recipe, stage: Stage, bases: dict[str, Path], tmp_path: Path
) -> None:
    written = parse_toml(recipe.toml(stage).read_text(), str(recipe.toml(stage)))
    assert written.sealing.kind == "sealed" and written.privacy.unit == "none"
    parse_scheme(recipe.partition)
    options = running.Options(recipe=recipe, output=tmp_path, stage=stage.name, model=bases[stage.base], rounds=1)
    text = running.specification_text(options, stage, [], bases[stage.base])
    adapted = parse_toml(text)
    assert adapted.model.sha256 == folder_digest(bases[stage.base]) and adapted.federation.rounds == 1
    if adapted.method.name != "in_context":
        assert adapted.adapter.first_layer in (0, 1)
    check(adapted, bases[stage.base])
    converted = stage.record(row(recipe))
    fields_of(adapted.method.name, converted)
    assert converted[recipe.key] is not None


def test_stages_on_one_packaged_model_name_the_same_hash() -> None:
    for base in ("smollm2", "minilm"):
        hashes = {parse_toml(r.toml(s).read_text()).model.sha256 for r, s in STAGES if s.base == base}
        assert len(hashes) == 1


def test_the_labels_of_ones_own_file_become_the_label_set(bases: dict[str, Path], tmp_path: Path) -> None:
    recipe = find("financial-sentiment")
    options = running.Options(recipe=recipe, output=tmp_path, model=bases["minilm"], data=tmp_path / "mine.jsonl")
    records = [row(recipe, label=label) for label in ("sell", "buy", "hold", "buy")]
    adapted = parse_toml(running.specification_text(options, recipe.stages[0], records, bases["minilm"]))
    assert adapted.method.labels == ("buy", "hold", "sell")
    with pytest.raises(DataError, match="has 1 different values"):
        running.labels_of(records[:1])


def test_a_prompt_for_ones_own_file_does_not_speak_of_the_packaged_text(bases: dict[str, Path], tmp_path: Path) -> None:
    recipe = find("legal-reading")
    records = [row(recipe, label=label) for label in ("lease", "will")]
    for stage in recipe.stages[:2]:
        packaged = running.Options(recipe=recipe, output=tmp_path)
        own = running.Options(recipe=recipe, output=tmp_path, data=tmp_path / "mine.jsonl")
        prompts = [
            parse_toml(running.specification_text(options, stage, records, bases["smollm2"])).method.prompt
            for options in (packaged, own)
        ]
        assert prompts == ["Passage: {input}\nKind of licence: {output}", "Passage: {input}\nCategory: {output}"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"question": "a"}], "record 1 has no text in field 'answer'"),
        (
            [{"question": "a", "answer": "b"}, {"question": "a", "answer": " "}],
            "record 2 has no text in field 'answer'",
        ),
        ([{"question": "a", "answer": 3}], "record 1 has no text in field 'answer'"),
    ],
)
def test_a_file_in_another_format_is_refused(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        running.read(path, find("support-chatbot"))


def test_other_refusals_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        running.read(tmp_path / "nothing.jsonl", find("support-chatbot"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no records"):
        running.read(tmp_path / "empty.jsonl", find("support-chatbot"))
    with pytest.raises(SpecificationError, match=r"no recipe 'chess'; the recipes are support-chatbot"):
        find("chess")
    with pytest.raises(SpecificationError, match=r"no stage 'x'; its stages are answers, retriever"):
        find("support-chatbot").stage("x")
    options = running.Options(recipe=find("support-chatbot"), output=tmp_path, model=tmp_path)
    with pytest.raises(SpecificationError, match="say with --stage"):
        _ = options.stages


def test_samples_depend_on_content_alone() -> None:
    rows = [{"text": str(number)} for number in range(20)]
    assert texts.sample(rows, 5) == texts.sample(rows[::-1], 5) != rows[:5]


def test_functions_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "one.py").write_text(
        "raise SystemExit('this is never run')\n\n\nclass A:\n    def double(self, x):\n"
        '        """Return twice the number that was given."""\n        y = x + x  # twice\n        return y\n\n'
        "    def no_description(self):\n        return 1\n"
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "two.py").write_text((tmp_path / "pack" / "one.py").read_text().replace("y", "z"))
    (found,) = python_code.functions(tmp_path)
    assert found == {
        "module": "pack",
        "prompt": "Write the body of this Python function.\n\ndef double(self, x):\n"
        '    """Return twice the number that was given."""',
        "completion": "y = x + x  # twice\nreturn y",
    }
