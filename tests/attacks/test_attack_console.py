"""Somebody attacks the console: without an account, with another role, from another site, with names full of markup."""

import re

import pytest
from confide.errors import StateError
from confide_server.console.accounts.limits import OF_NAME
from confide_server.console.federation.reading import SETTLED_S
from confide_server.console.roles import RULES, Role
from confide_server.console.web.access import local_path
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st

from tests.console_world import HOST, NODES, PASSWORD, RUN_ID, MemoryCoordinator, browser, make_console, person

VALUES = {
    "run_id": RUN_ID, "name": "support", "number": "1", "token_id": "0" * 16, "person_id": "0" * 16,
    "digest": "0" * 16, "key_id": "AAAA", "collection": "leaflets", "version": "4",
}  # fmt: skip
MARKUP = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></title><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7*7 }}{% raw %}${7*7}",
    "\u202egnp.exe\x1b[2J\x00",
    "&lt;script&gt;",
)


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    made = make_console(tmp_path_factory.mktemp("console"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def people(console):
    """One signed-in browser for each role."""
    return {role: person(console, role, NODES[0] if role is Role.ORGANIZATION else "") for role in Role}


def routes(console):
    """(name, method, address) of every route there is."""
    found = []

    def walk(listed):
        for route in listed:
            if isinstance(route, APIRoute):
                address = re.sub(r"{(\w+)[^}]*}", lambda match: VALUES[match.group(1)], route.path)
                found.extend((route.name, method, address) for method in route.methods if method != "HEAD")
            else:
                inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", [])
                walk(inner)

    walk(console.inner_app().routes)
    return found


def test_the_table_names_every_route_and_nothing_else(console):
    named = [name for name, _, _ in routes(console)]
    assert sorted(named) == sorted(set(named)), "two routes share a name, and so a rule"
    assert set(named) == set(RULES)


def test_a_route_that_the_table_does_not_name_answers_nobody(console, people):
    app = console.inner_app()
    app.get("/new", name="new_page")(lambda: "secret")
    from starlette.testclient import TestClient

    with TestClient(app, base_url=HOST, cookies=people[Role.ADMINISTRATOR].cookies) as client:
        answer = client.get("/new")
    assert answer.status_code == 403 and "secret" not in answer.text


def test_without_an_account_only_public_routes_answer(console):
    client = browser(console)
    client.follow_redirects = False
    for name, method, address in routes(console):
        if RULES[name].public:
            continue
        answer = client.request(method, address)
        led = answer.status_code == 303 and answer.headers["location"].startswith("/sign-in")
        assert led or answer.status_code in {401, 403}, (name, answer.status_code)


@pytest.mark.parametrize("role", Role)
def test_each_role_gets_what_the_table_says(console, people, role):
    client = people[role]
    token = client.form("/account")["csrf"]
    for name, method, address in routes(console):
        rule = RULES[name]
        if rule.public or rule.allows(role) or name == "live":
            continue
        answer = client.request(method, address, data={"csrf": token} if method == "POST" else None)
        assert answer.status_code == 403, (role, name, answer.status_code)
        assert f"not for the role {role.value}" in answer.text


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.confirmed])
def test_an_act_that_asks_for_the_second_factor_again_does_nothing_without_it(tmp_path, name):
    made = make_console(tmp_path)
    client = person(made, Role.ADMINISTRATOR)
    made.store.run("UPDATE sessions SET confirmed_at = 0")
    method, address = next((method, address) for route, method, address in routes(made) if route == name)
    assert method == "POST"
    before = (list(made.reader._coordinator.changed), len(made.people.all()), len(made.people.acts()))
    for code in ("", *client.wrong_codes(1), "12345678"):
        answer = client.submit(address, code=code, role="auditor", scope="runs", days="1", label="x")
        assert answer.status_code == 403
    assert (made.reader._coordinator.changed, len(made.people.all()), len(made.people.acts())) == before
    made.close()


def test_no_change_without_the_token_of_the_very_session(console, people):
    other = person(console, Role.ADMINISTRATOR, name="other-admin").form("/account")["csrf"]
    for token in ("", "x", other, other[::-1]):
        for name, method, address in routes(console):
            if method != "POST" or RULES[name].public or not RULES[name].allows(Role.ADMINISTRATOR):
                continue
            answer = people[Role.ADMINISTRATOR].post(address, data={"csrf": token})
            assert answer.status_code == 403 and "not of your present session" in answer.text, name
    assert console.reader._coordinator.changed == []


def test_a_packed_pages_length_tells_nothing_of_the_token_and_no_secret_is_packed(console, people):
    client = people[Role.ADMINISTRATOR]
    first, second = client.form("/members")["csrf"], client.form("/members")["csrf"]
    assert not set(re.findall("[0-9a-f]{16}", first)) & set(re.findall("[0-9a-f]{16}", second))
    for token in (first, second):
        said = client.post("/people/none/close", data={"csrf": token}).text
        assert "not of your present session" not in said
    packed = client.get(f"/runs/{RUN_ID}")
    assert packed.headers["content-encoding"] == "gzip" and packed.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in client.get(f"/runs/{RUN_ID}", headers={"accept-encoding": "identity"}).headers
    link = console.people.invite(Role.AUDITOR)
    assert "content-encoding" not in browser(console).get("/welcome", params={"link": link}).headers, "a seed is on it"
    assert "content-encoding" not in client.submit("/people/invite", page="/people", role="auditor").headers


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ],
)  # fmt: skip
def test_a_change_from_another_site_is_refused_before_it_is_read(console, people, headers):
    token = people[Role.ADMINISTRATOR].form("/account")["csrf"]
    answer = people[Role.ADMINISTRATOR].post("/sign-out", data={"csrf": token}, headers=headers)
    assert answer.status_code == 403 and "another site" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:9444.evil.example", "127.0.0.1", "", "localhost:1"])
def test_another_host_name_is_refused(console, host):
    answer = browser(console).get("/sign-in", headers={"host": host})
    assert answer.status_code == 421


def test_every_answer_forbids_frames_foreign_scripts_and_keeping(console, people):
    for name, method, address in routes(console):
        if method != "GET" or name == "live":
            continue
        answer = people[Role.ADMINISTRATOR].get(address)
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store" or name == "asset"


def test_no_page_has_a_script_style_or_address_of_its_own(console, people):
    for name, method, address in routes(console):
        if method != "GET" or name in {"live", "asset"}:
            continue
        text = people[Role.ADMINISTRATOR].get(address).text
        assert not re.search(r"<script(?! src=\"/static/)", text), name
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text), name
        foreign = set(re.findall(r"(?:src|href|action)=\"(https?:[^\"]+)", text))
        assert not foreign, name


@pytest.mark.parametrize("markup", MARKUP)
def test_names_and_reasons_of_others_are_text_and_nothing_else(tmp_path, markup):
    nodes = tuple(f"{markup}{number}" for number in range(3))
    made = make_console(tmp_path, MemoryCoordinator(name=markup, nodes=nodes, reason=markup))
    client = person(made, Role.ADMINISTRATOR)
    (tmp_path / "plain").mkdir()
    plain = make_console(tmp_path / "plain")
    calm = person(plain, Role.ADMINISTRATOR)
    for address in ("/", "/runs", f"/runs/{RUN_ID}", "/members", "/privacy", "/models", "/audit",
                    f"/compare?run={RUN_ID}"):  # fmt: skip
        text, harmless = client.get(address).text, calm.get(address).text
        tags = re.compile(r"<(?!/?time)[a-z/!][^>\s]*")
        assert set(tags.findall(text)) <= set(tags.findall(harmless)), address
        assert markup not in text or not set(markup) & set("<>\"'"), address
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text), address
    given_by_address = ("/runs?q=%3Cb%3E%22", "/audit?event=%3Cb%3E&run=%22%3E", "/sign-in?next=%22%3E%3Cb%3E")
    for address in (*given_by_address, "/specification?recipe=%3Cb%3E&data=%22%3E%3Cb%3E"):
        assert "<b>" not in client.get(address).text
    made.close()
    plain.close()


def test_a_session_that_was_planted_before_sign_in_is_worth_nothing_after(tmp_path):
    made = make_console(tmp_path)
    client = person(made, Role.AUDITOR, name="anna")
    seed, used = client.seed, client.used
    victim = browser(made)
    victim.seed, victim.used = seed, used
    victim.cookies.set("confide-console", "planted", domain="127.0.0.1")
    victim.post("/sign-in", data={"name": "anna", "password": PASSWORD})
    half = victim.cookies["confide-console"]
    assert half != "planted"
    assert victim.get("/").url.path == "/sign-in", "the password alone lets nobody in"
    made.store.run("UPDATE people SET code_step = 0")
    victim.used = 0
    victim.post("/sign-in/code", data={"code": victim.next_code()})
    assert victim.get("/").url.path == "/"
    thief = browser(made)
    for cookie in ("planted", half):
        thief.cookies.set("confide-console", cookie, domain="127.0.0.1")
        assert thief.get("/").url.path == "/sign-in"
    made.close()


def test_cookies_are_for_this_server_and_no_script(tmp_path):
    made = make_console(tmp_path)
    client = person(made, Role.AUDITOR)
    client.follow_redirects = False
    kept = client.post("/sign-in", data={"name": "auditor-x", "password": PASSWORD}).headers["set-cookie"].lower()
    named = {one.strip().partition("=")[0] for one in kept.split(";")[1:]}  # without the value, which is random text
    assert "httponly" in named and "samesite=strict" in kept and "domain" not in named
    made.close()


def test_guessing_is_slowed_and_a_restart_forgives_nothing(tmp_path):
    made = make_console(tmp_path)
    person(made, Role.AUDITOR, name="anna")
    guesser = browser(made)
    words = set()
    for name in ["anna"] * OF_NAME + ["nobody"] * 2:
        answer = guesser.post("/sign-in", data={"name": name, "password": "not the password"})
        words.add(re.search(r'class="wrong"[^>]*>([^<]+)', answer.text).group(1))
    assert len(words) == 1, "whether the name exists cannot be told from the answer"
    made.close()
    again = make_console(tmp_path)
    answer = browser(again).post("/sign-in", data={"name": "Anna", "password": PASSWORD})
    assert answer.status_code == 403 and "too many failed attempts" in answer.text
    again.close()


def test_codes_cannot_be_tried_out(tmp_path):
    made = make_console(tmp_path)
    anna, client = person(made, Role.AUDITOR, name="anna"), browser(made)
    client.seed, client.used = anna.seed, anna.used
    client.post("/sign-in", data={"name": "anna", "password": PASSWORD})
    for code in client.wrong_codes(OF_NAME):
        assert client.post("/sign-in/code", data={"code": code}).status_code == 403
    assert "too many" in client.post("/sign-in/code", data={"code": client.next_code()}).text
    made.close()


def test_nobody_is_sent_elsewhere(console, people):
    for given_path in ("//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "/%0d%0aset-cookie:x"):
        answer = browser(console).get("/sign-in", params={"next": given_path})
        back = re.search(r'name="next" value="([^"]*)"', answer.text).group(1)
        assert back == local_path(given_path)
        assert not back.startswith("//") and "evil" not in back


@given(st.text(max_size=40))
def test_a_path_to_go_back_to_is_always_a_path_of_this_server(text):
    path = local_path(text)
    assert path.startswith("/") and not path.startswith("//") and "\\" not in path and "\n" not in path


def test_an_api_token_reads_its_scope_and_changes_nothing(tmp_path):
    made = make_console(tmp_path)
    client = person(made, Role.ADMINISTRATOR)
    owner = made.people.all()[0]
    token = made.tokens.make(owner, "script", ["runs"], 1)
    program = browser(made)
    program.follow_redirects = False
    program.headers["authorization"] = f"Bearer {token}"
    for name, method, address in routes(made):
        rule = RULES[name]
        if rule.public:
            continue
        answer = program.request(method, address)
        expected = {200} if rule.scope == "runs" and method == "GET" else {401}
        assert answer.status_code in expected, (name, answer.status_code, answer.text[:200])
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("console.db*"))
    assert token.encode() not in stored and token.removeprefix("confide_").encode() not in stored
    assert client.cookies["confide-console"].encode() not in stored
    assert PASSWORD.encode() not in stored
    program.headers.pop("authorization")
    assert program.get("/api/v1/runs", params={"token": token}).status_code == 401, "a token in an address is none"
    made.close()


def test_an_organization_is_asked_for_as_itself_and_its_answers_are_its_own(console, people):
    coordinator = console.reader._coordinator
    people[Role.ADMINISTRATOR].get("/members")
    coordinator.asked.clear()
    text = people[Role.ORGANIZATION].get("/members").text
    assert {acting.organization for _, acting in coordinator.asked} == {NODES[0]}
    assert NODES[0] in text and NODES[1] not in text, "no answer of another role is shown from the cache"


def test_on_every_route_an_organization_is_asked_for_as_itself_whatever_its_address_says(console, people):
    coordinator, client = console.reader._coordinator, people[Role.ORGANIZATION]
    token = client.form("/account")["csrf"]
    for name, method, address in routes(console):
        if not RULES[name].allows(Role.ORGANIZATION) or name in {"live", "sign_out", "sign_out_everywhere"}:
            continue
        coordinator.asked.clear()
        lies = {"csrf": token, "organization": NODES[1], "role": "administrator"}
        client.request(
            method, address, params=lies if method == "GET" else None, data=lies if method == "POST" else None
        )
        assert {acting.organization for _, acting in coordinator.asked} <= {NODES[0]}, name


def test_ticks_tell_an_organization_of_its_own_runs_only(console):
    import asyncio

    async def heard(run_ids, happened):
        with console.live.watching(run_ids) as watcher:
            watcher.tell(happened)
            await asyncio.sleep(2 * SETTLED_S)
            return not watcher._ticks.empty()

    assert asyncio.run(heard(None, RUN_ID)) and asyncio.run(heard(frozenset({RUN_ID}), RUN_ID))
    assert not asyncio.run(heard(frozenset(), RUN_ID))


def test_a_closed_account_is_out_at_once(tmp_path):
    made = make_console(tmp_path)
    admin = person(made, Role.ADMINISTRATOR)
    auditor = person(made, Role.AUDITOR, name="anna")
    assert auditor.get("/audit").status_code == 200
    target = next(one for one in made.people.all() if one.name == "anna")
    assert admin.submit(f"/people/{target.id}/close").status_code == 200
    assert auditor.get("/audit").url.path == "/sign-in"
    assert browser(made).post("/sign-in", data={"name": "anna", "password": PASSWORD}).status_code == 403
    with pytest.raises(StateError, match="there is no account"):
        made.people.get("nobody")
    made.close()


def test_a_body_or_form_that_is_too_much_is_refused(console):
    client = browser(console)
    assert client.post("/sign-in", content=b"x" * (1 << 21)).status_code == 413
    assert client.post("/sign-in", files={"name": ("a", b"x")}).status_code == 400
    many = {f"f{number}": "x" for number in range(200)}
    assert client.post("/sign-in", data=many).status_code == 400
    assert client.request("PUT", "/").status_code == 405
