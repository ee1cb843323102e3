"""What people read in a browser or an alert stands in catalogues, so that another language is another file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE, NODE, SHARED, ALERTS = (
    ROOT / "server/confide_server/console", ROOT / "client/confide_client/page", ROOT / "common/confide/web",
    ROOT / "server/confide_server/alerts",
)  # fmt: skip
TEMPLATES = [path for folder in (CONSOLE, NODE, SHARED) for path in sorted(folder.rglob("*.html"))]
# command.py speaks in a terminal; accounts/ writes SQL; the guard and assets answer in plain text before any page does.
PYTHON = [
    *sorted((CONSOLE / "web").rglob("*.py")), *sorted((CONSOLE / "federation").rglob("*.py")),
    *sorted(NODE.glob("*.py")), *sorted(ALERTS.glob("*.py")), SHARED / "pages.py",
]  # fmt: skip
PLAIN = {"UTC", "SHA-256", "BM25", "request.json", "ID"}
WORDS = re.compile(r"[A-Za-z]{2,}[ ,]+[a-z]{2,}")
# Not sentences of a page: what a program is told, what a log says, and what stands inside an error's own words.
NO_PAGE = {
    "sign in, or send `Authorization: Bearer TOKEN`\n", "the specification", "this text", "the mail password",
    "the webhook's secret", " (redirects are not followed: give the last address)", "no answer within ",
    "open once, within 15 minutes, on this machine: ", "the seed of the codes was changed; scan this new one",
    "not a JSON object",
}  # fmt: skip


def shown(template: str) -> list[str]:
    """What a template itself puts in front of people: its text, and attributes that are read out."""
    text = re.sub(r"{#.*?#}|<pre.*?</pre>|<code.*?</code>", " ", template, flags=re.S)
    text = re.sub(r"{{.*?}}|{%.*?%}", "\0", text, flags=re.S)
    said = re.findall(r"(?:aria-label|title|alt|placeholder|data-title|data-png)=\"([^\"]*)\"", text)
    text = re.sub(r"<[^>]*>|&[a-z]+;", "\n", text)
    said += re.sub(r"[a-z-]+=\"[^\"]*\"|data-[a-z]+", "\n", text).split("\n")  # a macro's attributes
    return [word for one in said for word in one.replace("\0", " ").split("  ") if re.search(r"[A-Za-z]{2,}", word)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_no_words_of_its_own(path):
    assert [one.strip() for one in shown(path.read_text()) if one.strip() not in PLAIN] == []


def test_the_search_sees_what_it_is_to_see():
    assert shown('<p title="A title">{{ t("x") }} is here</p>{# no #}<pre>confide run</pre>') == ["A title", "is here"]
    assert said('def f():\n    "A docstring here"\n    raise X("an error here")\ny = "seen by people"') == [
        "seen by people"
    ]


def said(source: str) -> list[str]:
    """Texts in a module that read like sentences, besides docstrings, errors and what is written to a log."""
    tree = ast.parse(source)
    ignored = set()
    for node in ast.walk(tree):
        logged = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        if isinstance(node, (ast.Raise, ast.Assert)) or logged:
            ignored |= {id(one) for one in ast.walk(node)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            ignored.add(id(node.value))
    constants = [one for one in ast.walk(tree) if isinstance(one, ast.Constant) and id(one) not in ignored]
    return [one.value for one in constants if isinstance(one.value, str) and WORDS.search(one.value)]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_has_no_sentences_of_its_own(path):
    assert [one for one in said(path.read_text()) if one not in NO_PAGE and not one.startswith("<")] == []
