"""What both browser pages share: the guard, vendored files, texts, and how things are written."""

import asyncio
import hashlib
import re

import pytest
from confide.errors import StateError
from confide.web.assets import FOLDER, Assets
from confide.web.guard import Guard
from confide.web.pages import Pages, duration
from confide.web.secrets import OneTimeLink
from confide.web.serving import is_loopback, listening, tls_context
from confide.web.texts import Texts
from hypothesis import given
from hypothesis import strategies as st


def test_vendored_files_are_those_that_are_named():
    table = (FOLDER.parent / "THIRD_PARTY.md").read_text()
    named = dict(re.findall(r"\| static/(\S+) \|.*\| ([0-9a-f]{64}) \|", table))
    vendored = {path.name for path in FOLDER.iterdir() if "min" in path.name}
    assert set(named) == vendored
    for name, digest in named.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest


def test_a_first_visit_is_small():
    assert sum(len(asset.packed) for asset in Assets()._assets.values()) < 120 * 1024


def test_an_asset_that_is_not_there_is_named():
    with pytest.raises(StateError, match=r"nothing\.js"):
        Assets().address("nothing.js")


@given(st.text(max_size=60))
def test_whatever_is_shown_is_escaped_and_cleaned(text):
    pages = Pages([], texts=Texts({}))
    shown = pages.environment.from_string('<p title="{{ x }}">{{ x }}</p>').render(x=text)
    assert shown.count("<") == 2 and shown.count('"') == 2
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_a_link_of_a_process_opens_once():
    clock = [0.0]
    link = OneTimeLink(lambda: clock[0])
    assert not link.open("x") and link.open(link.handed) and not link.open(link.handed)
    late = OneTimeLink(lambda: clock[0])
    clock[0] = 901.0
    assert not late.open(late.handed)


@given(st.floats(min_value=-1e9, max_value=1e12))
def test_every_duration_has_words(seconds):
    assert re.fullmatch(r"(\d+ (s|min|h|d) ?){1,2}", duration(seconds))


def test_only_loopback_is_loopback(tmp_path):
    assert is_loopback("127.0.0.1") and is_loopback("::1")
    assert not any(map(is_loopback, ("10.0.0.1", "localhost", "::", "")))
    with pytest.raises(StateError, match="no IP address"):
        listening("example.org", 0)
    with pytest.raises(StateError, match="do not serve TLS"):
        tls_context(tmp_path / "no.crt", tmp_path / "no.key")


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=6),
    st.sampled_from(["GET", "POST", "PUT", "TRACE", "HEAD", ""]),
)
def test_no_request_breaks_the_guard(headers, method):
    said = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        said.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    guard = Guard(app, hosts=["a"], https=True)
    scope = {"type": "http", "method": method, "headers": [(name.lower(), value) for name, value in headers]}
    asyncio.run(guard(scope, receive, send))
    start = said[0]
    assert start["status"] in {405, 413, 421} or (b"host", b"a") in scope["headers"]
    assert any(name == b"content-security-policy" for name, _ in start["headers"])
