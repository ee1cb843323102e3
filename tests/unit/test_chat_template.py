"""A model folder's chat template is a program of strangers: it reaches nothing, and ends."""

from pathlib import Path
from typing import Any

import pytest
from confide.errors import ModelError
from confide.models import chat_template
from confide.models.chat_template import check_source, render

from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer

TURNS = [{"role": "user", "content": "How thick must the wall be?"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_an_honest_template_reads_as_before(tokenizer: Any) -> None:
    tokenizer = with_template(tokenizer, CHAT_TEMPLATE)
    for generate in (False, True):
        expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=generate)
        assert render(tokenizer, TURNS, generate=generate) == expected


HONEST = [
    "{% for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% endfor %}",
    "{% for m in messages %}{% if loop.index0 % 2 == 0 %}{{ m.content.replace('a', 'b') }}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% continue %}{% endfor %}{{ ns.n }}",
    "{{ messages | tojson(indent=2) | indent(4) }}{{ ['a', 'b'] | join(', ') }}",
]


@pytest.mark.parametrize("template", HONEST)
def test_what_templates_do_is_allowed(tokenizer: Any, template: str) -> None:
    assert render(with_template(tokenizer, template), TURNS, generate=False)


MULTIPLYING = [
    "{{ 'x' * 10000000000 }}",
    "{{ 10 ** 10000000000 }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ '{:10000000000d}'.format(1) }}",
    "{{ 'x' | indent(10000000000, true) }}",
    "{{ 'x' | indent(width=messages | length, first=true) }}",
    "{% generation %}{{ messages * 1000000 }}{% endgeneration %}",
    "x" * (chat_template.MAX_SOURCE_CHARS + 1),
]


@pytest.mark.parametrize("template", MULTIPLYING, ids=range(len(MULTIPLYING)))
def test_what_makes_much_of_little_is_not_run(tokenizer: Any, template: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        render(with_template(tokenizer, template), TURNS, generate=False)


def test_a_loop_without_end_is_stopped(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% set d = c %}"
    template = loop + "{% endfor %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match=r"runs longer than 0.2 s"):
        render(with_template(tokenizer, template), TURNS, generate=False)


def test_text_that_doubles_is_stopped(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_GROWTH_KIB", 1 << 16)
    template = (
        "{% set ns = namespace(t='xxxxxxxxxxxxxxxx') %}{% for i in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}"
    )
    with pytest.raises(ModelError, match="grow by more than 64 MiB"):
        render(with_template(tokenizer, template), TURNS, generate=False)


def test_a_long_text_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_TEXT_CHARS", 10)
    with pytest.raises(ModelError, match="more than 10 characters"):
        render(with_template(tokenizer, CHAT_TEMPLATE), TURNS, generate=False)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
    "{{ self._TemplateReference__context }}{{ lipsum.__globals__['os'].system('touch ran') }}",
    "{% include '/etc/passwd' %}",
    "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
]


@pytest.mark.parametrize("template", ESCAPES, ids=range(len(ESCAPES)))
def test_a_template_reaches_nothing(
    tokenizer: Any, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=r"(?i)unsafe|undefined|loader|not allowed|immutable|no attribute"):
        render(with_template(tokenizer, template), TURNS, generate=False)
    assert not (tmp_path / "ran").exists()


def test_the_tracer_of_a_debugger_is_put_back(tokenizer: Any) -> None:
    import sys

    before = sys.gettrace()
    render(with_template(tokenizer, CHAT_TEMPLATE), TURNS, generate=True)
    assert sys.gettrace() is before
    check_source(CHAT_TEMPLATE)
