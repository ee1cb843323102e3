"""What is trained on is what is asked: the same text, the same tokens, whatever tokenizer and template a base has."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from confide.errors import DataError, ModelError
from confide.methods.base import create
from confide.models.answering import prompt_ids
from confide.models.rendering import Rendering
from confide.models.store import ModelStore
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer, sentencepiece_tokenizer, tiny_llama
from tests.training_specs import specification

ENDS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
LAST_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TEMPLATES = {
    "none": None,
    "chatml": CHAT_TEMPLATE,
    "end token behind the last turn, as Phi-3": ENDS,
    "thinks in the last turn, as Qwen3": LAST_THINKS,
    "opens a thought, as R1 distilled": OPENS_THOUGHT,
}
TWO = [
    {"role": "user", "content": "How thick?"},
    {"role": "assistant", "content": "Twelve centimetres."},
    {"role": "user", "content": "Who pays?"},
    {"role": "assistant", "content": "The client pays."},
]


@pytest.fixture(scope="module", params=["bytes", "sentencepiece", "bytes with a begin token"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "sentencepiece":
        return sentencepiece_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    made = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    if request.param != "bytes":
        begin = ("<eos>", made.convert_tokens_to_ids("<eos>"))
        made.backend_tokenizer.post_processor = processors.TemplateProcessing("<eos> $A", special_tokens=[begin])
    return made


def _contents() -> st.SearchStrategy[str]:
    words = st.sampled_from(["wall", " ", "\n", "The", "Who", "?", ".", "ö", "  ", "<|im_end|>", "client"])
    return st.lists(words, max_size=5).map("".join)


@st.composite
def _conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    turns = draw(st.lists(st.tuples(_contents(), _contents()), min_size=1, max_size=3))
    told = [{"role": "system", "content": draw(_contents())}] if draw(st.booleans()) else []
    for asked, answered in turns:
        told += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return told


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=25)
@given(messages=_conversations())
def test_learning_starts_where_answering_starts(tokenizer: Any, template: str, messages: list[dict[str, str]]) -> None:
    """Oracle: the tokens that chat gives the model for the same turns."""
    tokenizer.chat_template = TEMPLATES[template]
    try:
        examples = Rendering(tokenizer).examples(messages)
    except DataError:
        assert template.startswith(("opens", "end token"))
        return
    places = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [(example.ids, span) for example in examples for span in example.spans]
    assert len(learned) == len(places)
    for number, (ids, (start, stop)) in zip(places, learned, strict=True):
        assert ids[:start] == prompt_ids(tokenizer, messages[:number])[0].tolist()
        said = tokenizer.decode(ids[start:stop])
        assert messages[number]["content"].split("</think>")[-1].strip() in said


@pytest.mark.parametrize("template", ["none", "chatml"])
def test_ids_are_those_of_the_whole_text(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    (example,) = Rendering(tokenizer).examples(TWO)
    if template == "none":
        whole = tokenizer("".join(turn["content"] for turn in TWO))["input_ids"] + [tokenizer.eos_token_id]
    else:
        whole = tokenizer(tokenizer.apply_chat_template(TWO, tokenize=False), add_special_tokens=False)["input_ids"]
    assert example.ids == whole
    assert len(example.spans) == 2
    assert example.bytes == sum(len(turn["content"].encode()) for turn in TWO if turn["role"] == "assistant")


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (
            "end token behind the last turn, as Phi-3",
            ["Twelve centimetres.\n<|im_end|>", "The client pays.\n<|im_end|>"],
        ),
        (
            "thinks in the last turn, as Qwen3",
            [f"<think>\n\n</think>\n\n{text}<|im_end|>\n" for text in ("Twelve centimetres.", "The client pays.")],
        ),
    ],
)
def test_a_template_that_rewrites_earlier_turns_makes_an_example_of_each_answer(
    tokenizer: Any, template: str, answers: list[str]
) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    examples = Rendering(tokenizer).examples(TWO)
    said = [tokenizer.decode(ids[start:stop]) for ids, ((start, stop),), _ in examples]
    assert said == answers
    method = create(specification(method={"max_length": 512}), tokenizer)
    assert [int(made.learned.sum()) for made in method.prepare([{"messages": TWO}])] == [
        stop - start for _, ((start, stop),), _ in examples
    ]


def test_what_the_assistant_says_first_is_given_not_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    (example,) = Rendering(tokenizer).examples([{"role": "assistant", "content": "Good day."}, *TWO])
    assert len(example.spans) == 2
    assert Rendering(tokenizer).examples([{"role": "assistant", "content": "Good day."}]) == []


def test_one_bad_record_is_left_out_and_named_here(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        method = create(specification(), make_tokenizer(Path(folder)))
        good = {"prompt": "a", "completion": "b"}
        bad = {"messages": [{"role": "secret", "content": "secret"}]}
        assert len(method.prepare([good, bad, good, {"prompt": 3, "completion": "c"}])) == 2
        assert "2 of 4 records do not fit" in caplog.text and "record 2" in caplog.text
        assert "secret" not in caplog.text
        with pytest.raises(DataError, match="a turn in 'messages' needs a role"):
            method.prepare([bad])


def test_templates_with_names_only_are_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text(CHAT_TEMPLATE)
    with pytest.raises(
        ModelError, match=r"chat templates called rag, and none by default; copy .* chat_template\.jinja"
    ):
        ModelStore(tmp_path / "models").add(str(base), "base")
    named = make_tokenizer(tmp_path / "named")
    named.chat_template = {"rag": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE}
    with pytest.raises(ModelError, match="called rag, tool_use"):
        create(specification(), named)
