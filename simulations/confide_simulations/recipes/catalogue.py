"""The recipes by name: what a file must hold, which stages are run on it, and what the packaged data stands in for.

>>> find("legal-reading").stages[0].name
'zero-shot'
>>> find("support-chatbot").toml(find("support-chatbot").stages[0]).name
'answers.toml'
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from confide.errors import SpecificationError

from confide_simulations.recipes import texts

Record = Mapping[str, Any]
_FOLDER = Path(__file__).parent


def _as_it_is(record: Record) -> Record:
    return record


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a recipe.

    base: the packaged model. record: turns a record of the recipe's file into one of the method's. held_out: share of
    the records that no node gets; 0 where nothing is trained, so that nodes' own evaluation records are enough.
    """

    name: str
    about: str
    base: Literal["smollm2", "minilm"]
    record: Callable[[Record], Record] = _as_it_is
    held_out: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a newcomer picks.

    fields: of every record of a file. partition, key: how records are dealt to nodes, by which field; a file without
    that field is dealt at random. packaged: records in that format that arrive as packages. stand_in: what these are,
    plainly.
    """

    name: str
    about: str
    fields: tuple[str, ...]
    key: str
    partition: str = "by-key"
    packaged: Callable[[texts.Say], Sequence[Record]]
    stand_in: str
    stages: tuple[Stage, ...]

    def toml(self, stage: Stage) -> Path:
        """The stage's run specification."""
        return _FOLDER / self.name / f"{stage.name}.toml"

    def stage(self, name: str) -> Stage:
        """A stage by its name. Raises SpecificationError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise SpecificationError(f"recipe {self.name} has no stage {name!r}; its stages are {known}")


def _document(record: Record) -> Record:
    return {**record, "text": f"{record['summary']}. {record['text']}"}


def _summarised(record: Record) -> Record:
    return {**record, "prompt": f"Summarise in a few words:\n\n{record['text']}", "completion": record["summary"]}


RECIPES = (
    Recipe(
        name="support-chatbot",
        about="a chatbot that answers as your support desk does, and the retriever that finds its sources",
        fields=("question", "answer"),
        key="category",
        packaged=texts.support,
        stand_in="503 real questions and answers of one building firm's FAQ in 39 categories; a category is a topic, "
        "not another organization",
        stages=(
            Stage(name="answers", about="supervised fine-tuning on the answers", base="smollm2", held_out=0.08),
            Stage(name="retriever", about="sentence embeddings: question to answer", base="minilm", held_out=0.3),
        ),
    ),
    Recipe(
        name="medical-literature",
        about="a model that reads medical text and says in a few words what it is about",
        fields=("text", "summary"),
        key="system",
        packaged=texts.medical,
        stand_in="definitions of clinical findings in the Human Phenotype Ontology: medical text by clinicians, but "
        "one or two sentences long, and the summary is the finding's name; no packaged corpus of papers with "
        "abstracts was found",
        stages=(
            Stage(name="pretraining", about="continued pre-training on the text", base="smollm2", record=_document),
            Stage(name="summaries", about="fine-tuning: text to summary", base="smollm2", record=_summarised),
        ),
    ),
    Recipe(
        name="financial-sentiment",
        about="a classifier of short texts: negative, neutral or positive",
        fields=("text", "label"),
        key="label",
        partition="dirichlet:1",
        packaged=texts.sentiment,
        stand_in="sentences of newspaper editorials and product reviews, each rated by 20 people (Hutto & Gilbert "
        "2014): real ratings, but little of it is about finance; no packaged corpus of financial news was found",
        stages=(
            Stage(name="sentiment", about="classification with class weights", base="minilm"),
        ),
    ),
    Recipe(
        name="legal-reading",
        about="say what kind of legal text a passage is from, without training and with",
        fields=("text", "label"),
        key="owner",
        packaged=texts.legal,
        stand_in="openings of software licences with a curator's category: real legal text, but licences only; "
        "contracts, statutes and judgements are not among the packaged texts",
        stages=(
            Stage(name="zero-shot", about="the base model as it is", base="smollm2", held_out=0.0),
            Stage(name="few-shot", about="with the node's own nearest examples in the prompt", base="smollm2",
                  held_out=0.0),
            Stage(name="categories", about="classification, trained", base="minilm"),
        ),
    ),
    Recipe(
        name="code-assistant",
        about="a model that writes the body of a function from its signature and description",
        fields=("prompt", "completion"),
        key="module",
        packaged=texts.code,
        stand_in="functions of the installed Python's standard library: real code, which the base model has probably "
        "seen before",
        stages=(
            Stage(name="functions", about="supervised fine-tuning on bodies", base="smollm2"),
        ),
    ),
)  # fmt: skip


def find(name: str) -> Recipe:
    """A recipe by its name. Raises SpecificationError."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in RECIPES)
    raise SpecificationError(f"there is no recipe {name!r}; the recipes are {known}")
