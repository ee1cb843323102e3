"""The console in a real browser, over a real coordinator with three nodes that train: mouse, keyboard, narrow, dark."""

import json
import re
import shutil
import time
from dataclasses import dataclass, field

import pyotp
import pytest
from confide.transport.admin import event_data
from confide_client.state import StateFolder
from confide_server.console.settings import KnowledgeSettings, Settings, write_settings
from confide_server.rlhf.annotation.preferences import Candidate, append_line
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup

from tests.browser.browsing import Complaints, axe_violations, chromium, needs_chromium, too_wide
from tests.preferences import disagreement
from tests.rag_worlds import embedder, world_with_fees
from tests.tiny_models import tiny_llama
from tests.training_specs import specification as make_specification

pytestmark = needs_chromium
PASSWORD = "four unrelated words here"
NODES = ("bank-b", "hospital-a", "law-firm-c")
PAGES = ("/", "/runs", "/runs/{}", "/compare?run={}", "/specification", "/members", "/privacy", "/models", "/knowledge",
         "/knowledge/leaflets", "/audit", "/feedback", "/adjudication", "/people", "/account")  # fmt: skip
PATIENCE_MS = 60_000


@dataclass
class Stage:
    """Everything that runs, and a signed-in administrator's cookies."""

    federation: LocalFederation
    processes: ProcessGroup
    browser: object
    address: str
    state: dict
    seed: str
    run_id: str = ""
    open: list = field(default_factory=list)
    complaints: Complaints = field(default_factory=Complaints)

    def page(self, path="/", **options):
        """A new window on a page, signed in."""
        context = self.browser.new_context(storage_state=self.state, **options)
        self.open.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        if options.get("java_script_enabled", True):
            self.complaints.heed(page)
        page.goto(self.address + path)
        return page


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    files = {}
    for index, name in enumerate(NODES):
        files[name] = folder / f"{name}.jsonl"
        lines = [{"question": f"How thick is wall {i}?", "answer": f"Wall {i} is {i} cm thick."} for i in range(24)]
        files[name].write_text("".join(json.dumps(line) + "\n" for line in lines[index::3]))
    made = LocalFederation(folder, nodes=files, base=tiny_llama(tmp_path_factory.mktemp("llama")), console=True)
    made.set_up()
    federation = {"rounds": 60, "data": made.data, "clip_norm": 4.0, "exchange_deadline_s": 120.0}
    specification = make_specification(model={"sha256": made.model_sha256}, federation=federation)
    made.allow(specification)
    documents = world_with_fees(folder / "documents")
    shown = KnowledgeSettings(
        library=str(documents.library.root), embedder=str(embedder().folder), organization="clinic"
    )
    write_settings(made.console_folder, Settings(knowledge=shown))
    with ProcessGroup() as processes, chromium() as browser:
        made.start(processes)
        link = made.start_console(processes)
        page = browser.new_page()
        page.goto(link)
        seed = page.text_content("#seed")
        page.fill("#name", "administrator")
        page.fill("#password", PASSWORD)
        page.fill("#again", PASSWORD)
        page.fill("#code", pyotp.TOTP(seed).now())
        page.click("main button")
        page.wait_for_selector("text=needs you")
        found = Stage(made, processes, browser, link.split("/welcome")[0], page.context.storage_state(), seed)
        found.run_id = made.submit(specification)
        yield found


@pytest.fixture(autouse=True)
def closed(stage):
    """Each test has windows of its own, and answers for what they complain of."""
    yield
    while stage.open:
        stage.open.pop().close()
    stage.complaints.said.clear()


def headline(page):
    """The page's first line."""
    return page.text_content(".headline")


def test_a_run_is_followed_without_reloading(stage):
    page = stage.page("/runs")
    page.click(f"a[href='/runs/{stage.run_id}']")
    page.evaluate("window.stays = true")
    page.wait_for_selector("text=/Round \\d+ of 60/")
    page.wait_for_selector("text=/round 2 committed/")
    page.wait_for_selector(".chart canvas", state="attached")
    first = page.get_attribute("#live progress", "value")
    page.wait_for_function(
        "before => Number(document.querySelector('#live progress').value) > Number(before)", arg=first
    )
    assert page.evaluate("window.stays"), "the page was fetched again"
    assert page.locator(".cell.contributed").count() >= 3
    stage.complaints.check(page)


def test_a_new_round_is_shown_soon_after_it_is_committed(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    page.wait_for_selector("text=/round 3 committed/")
    seen, rounds = {}, "Number(document.querySelector('#live progress').value)"
    for _ in range(3):
        page.wait_for_function(f"before => {rounds} > before", arg=max(seen, default=0))
        seen[page.evaluate(rounds)] = time.time()
    with stage.federation.client() as client:
        committed = {}
        for event in client.watch(stage.run_id):
            if event.kind == "round_committed":
                committed[event_data(event)["round"]] = event.time
            if len(committed) > max(seen):
                break
    late = [seen[number] - committed[number] for number in list(seen)[1:]]
    # Under 1 s on an idle machine. The page looks by itself every 15 s: sooner than that it was told.
    assert late and min(late) < 10.0, late


def test_it_is_paused_and_resumed_by_mouse_with_the_second_factor(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    page.fill("#reason", "a <b>holiday</b>")
    if page.locator("#pause-code").count():
        page.fill("#pause-code", pyotp.TOTP(stage.seed).at(time.time() + 30))
    page.click("button:text-is('Pause')")
    page.wait_for_selector("text=/Paused by administrator@console/")
    assert "a <b>holiday</b>" in headline(page)
    overview = stage.page("/")
    assert "needs you" in headline(overview) and "is paused by administrator@console" in overview.text_content(".needs")
    page.click("button:text-is('Resume')")
    page.wait_for_selector("text=/Round \\d+ of 60/")
    stage.complaints.check(page)
    assert (
        stage.page("/audit").locator("td:has-text('administrator@console')").count() >= 2
    )  # who paused, and who resumed


def test_the_keyboard_is_enough(stage):
    page = stage.page("/")
    page.wait_for_selector(f"a[href='/runs/{stage.run_id}']")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('href')") == f"/runs/{stage.run_id}":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "where the keyboard is can be seen"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/runs/{stage.run_id}")
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName === 'SUMMARY' && !document.activeElement.closest('#live')"):
            break
    is_open = "document.activeElement.parentElement.open"  # before a run starts its plan is
    before = page.evaluate(is_open)
    page.keyboard.press("Enter")
    assert page.evaluate(is_open) is not before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_telephone(stage, scheme):
    page = stage.page("/", viewport={"width": 360, "height": 740}, color_scheme=scheme)
    for path in PAGES:
        page.goto(stage.address + path.format(stage.run_id))
        page.wait_for_load_state("networkidle") if path == "/specification" else page.wait_for_selector(".headline")
        assert headline(page).strip(), path
        assert not too_wide(page), path
        assert axe_violations(page) == [], path
        stage.complaints.check(page)


def test_reading_needs_no_script(stage):
    page = stage.page("/", java_script_enabled=False)
    for path in PAGES:
        page.goto(stage.address + path.format(stage.run_id))
        assert headline(page).strip(), path
    page.goto(f"{stage.address}/runs/{stage.run_id}")
    assert page.locator("table.grid .cell").count() >= 3
    page.click("summary:has-text('The figures as a table')")
    assert page.locator("details[open] td.number").count() > 5


def test_a_specification_is_checked_as_one_types(stage):
    page = stage.page("/specification?recipe=fine-tune&model=" + "ab" * 32)
    page.wait_for_selector("#command")
    page.fill("#toml", page.input_value("#toml").replace("rounds = 3", "rounds = 0"))
    page.wait_for_selector("text=Not valid yet")
    page.fill("#toml", page.input_value("#toml").replace("rounds = 0", "rounds = 4"))
    page.wait_for_selector("text=/4 rounds with 3 nodes/")
    with page.expect_download() as download:
        page.click("button:has-text('Save the TOML')")
    assert download.value.suggested_filename == "fine-tune.toml"
    assert download.value.path().read_text() == page.input_value("#toml")
    stage.complaints.check(page)


def test_the_header_is_one_line_or_has_the_pages_in_a_line_of_their_own(stage):
    page = stage.page("/account")
    middle = "one => { const box = one.getBoundingClientRect(); return Math.round(box.top + box.height / 2); }"
    for width, lines in ((1280, 1), (1279, 2), (360, 2)):
        page.set_viewport_size({"width": width, "height": 740})
        name, pages, who = (page.eval_on_selector(f"header.top > {one}", middle) for one in (".name", "nav", ".who"))
        assert abs(name - who) <= 2 and (abs(name - pages) <= 2) == (lines == 1), width
        assert not too_wide(page)
    stage.complaints.check(page)


@pytest.fixture
def answers(stage):
    """Where a test puts answers that are to be judged: none of them is left to another test."""
    folder = stage.federation.console_folder / "feedback"
    yield folder
    shutil.rmtree(folder)


def test_a_disagreement_is_settled_with_keys_alone(stage, answers):
    disagreement(answers.parent, "anna", "berta")
    page = stage.page("/adjudication", viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.wait_for_selector(".headline:has-text('Decision 1 of 1')")
    assert page.locator(".badge:has-text('open')").count() == 1
    assert not too_wide(page) and axe_violations(page) == []
    for key, words in (("1", "Done: 1 pair is decided."), ("u", "Decision 1 of 1"), ("2", "Done: 1 pair is decided.")):
        page.keyboard.press(key)
        page.wait_for_selector(f".headline:has-text('{words}')")
    page.wait_for_selector(".badge.good:has-text('decided')")
    assert stage.page("/people").locator("td:has-text('decided a disagreement')").count() == 2
    stage.complaints.check(page)


def test_a_question_finds_what_the_documents_say(stage):
    page = stage.page("/knowledge", viewport={"width": 360, "height": 740})
    assert "clinic has 1 document that can be asked" in headline(page)
    page.click("a:has-text('leaflets')")
    page.fill("#question", "A visit costs forty crowns.")
    page.keyboard.press("Enter")
    page.wait_for_selector("blockquote:has-text('forty crowns')")
    assert re.search(r"confide:clinic/leaflets/[0-9a-f]{32}#char=\d+,\d+", page.text_content("figcaption"))
    assert page.locator("td.words:has-text('forty crowns')").count() >= 1
    first = page.locator("tr:has(td.words)").first.locator("td.number").all_text_contents()
    assert len(first) == 4 and all(float(score) == float(score) for score in first), "a score and its three parts"
    assert page.url.endswith("/knowledge/leaflets"), "the question stands in no address"
    assert not too_wide(page) and axe_violations(page) == []
    page.click("figcaption a")
    page.wait_for_selector("tr[id^='document-']:has-text('fees.md')")
    stage.complaints.check(page)


def test_answers_are_compared_with_keys_alone(stage, answers):
    folder = answers
    folder.mkdir()
    for number in range(3):
        given = Candidate(prompt="Why <b>is</b> it so?", text=f"<i>Because</i> {number}", model="0" * 64, seed=number)
        append_line(folder / "candidates.jsonl", given)
    page = stage.page("/feedback", viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.wait_for_selector(".headline:has-text('Pair 1 of 3')")
    assert not too_wide(page) and axe_violations(page) == []
    for key, number in (("1", 2), ("t", 3), ("u", 2), ("2", 3), ("s", None)):
        page.keyboard.press(key)
        words = f"Pair {number} of 3" if number else "Done: 3 pairs are judged."
        page.wait_for_selector(f".headline:has-text('{words}')")
    stage.complaints.check(page)


def test_figures_are_downloaded(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    with page.expect_download() as download:
        page.click("text=Download as CSV")
    rows = download.value.path().read_text().splitlines()
    assert rows[0].startswith("round,") and "contributors" in rows[0] and len(rows) > 2


def test_a_chart_is_kept_as_a_picture(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    page.wait_for_selector("button.picture")
    page.locator("button.picture").first.focus()
    canvas = "document.querySelector('.chart canvas')"
    page.evaluate(f"{canvas}.seen = true")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => {canvas} && !{canvas}.seen")
    with page.expect_download() as download:
        page.keyboard.press("Enter")  # the keyboard is where it was, though the chart was drawn again
    kept = download.value
    data = kept.path().read_bytes()
    assert kept.suggested_filename == f"run-{stage.run_id[:8]}-loss.png"
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    assert data.startswith(b"\x89PNG") and width > 200 and height > 200 and len(set(data)) > 100
    stage.complaints.check(page)


def test_the_keyboard_stays_where_it_is_when_a_fragment_comes_anew(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    link = f"#live a[href='/runs/{stage.run_id}/rounds.csv']"
    page.locator(link).focus()
    # What is put above is gone with the next look, as a line of a list that became shorter.
    above = "window.before.prepend(Object.assign(document.createElement('a'), {href: '/', id: 'above'}))"
    for does, stays in (
        ("", link),
        (above, link),
        (f"{above}; document.getElementById('above').focus()", "#live"),
    ):
        page.evaluate(f"window.before = document.getElementById('live'); {does}; htmx.trigger('#live', 'tick')")
        page.wait_for_function("() => document.getElementById('live') !== window.before")
        page.wait_for_function("found => document.activeElement === document.querySelector(found)", arg=stays)
    stage.complaints.check(page)


def test_the_plan_in_words_comes_when_it_is_ready(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    page.locator("#plan summary").focus()
    if not page.evaluate("document.querySelector('#plan').open"):
        page.keyboard.press("Enter")
    page.wait_for_selector("#plan[open] pre")
    page.wait_for_function("() => document.activeElement === document.querySelector('#plan summary')")
    assert "rounds" in page.text_content("#plan pre")
    stage.complaints.check(page)


def test_organizations_are_seen_at_a_glance(stage):
    page = stage.page("/members")
    page.wait_for_selector(".map li.good:has-text('bank-b')")
    assert page.locator(".map li").count() == len(NODES)
    page.wait_for_selector("tr:has-text('bank-b') td:has-text('no accelerator')")
    page.wait_for_selector(".map li:has-text('bank-b'):has-text('GiB')")


def test_the_audit_chain_is_verified(stage):
    page = stage.page("/audit")
    page.wait_for_selector("#verdict:has-text('The chain holds')")
    assert re.match(r"The chain holds: verified to entry [\d,]+ at ", headline(page).strip())


def test_a_first_visit_is_small(stage):
    context = stage.browser.new_context()
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    taken = []
    session.on("Network.loadingFinished", lambda event: taken.append(event["encodedDataLength"]))
    context.add_cookies(stage.state["cookies"])
    page.goto(f"{stage.address}/runs/{stage.run_id}")
    page.wait_for_selector(".chart canvas", state="attached")
    assert sum(taken) < 150 * 1024, sum(taken)


def test_a_node_that_its_operator_pauses_is_told_apart_from_one_that_is_away(stage):
    page = stage.page("/members")
    page.wait_for_selector("tr:has-text('bank-b') .badge.good")
    node = StateFolder.at(stage.federation.node_folder("bank-b"))
    node.note_pause(at=time.time(), by="its operator", reason="maintenance")
    page.wait_for_selector("tr:has-text('bank-b') .badge:has-text('stopped by its operator')")
    node.end_pause()
    page.wait_for_selector("tr:has-text('bank-b') .badge.good")
    stage.complaints.check(page)


def test_the_consoles_death_changes_nothing_and_its_restart_signs_nobody_out(stage):
    page = stage.page(f"/runs/{stage.run_id}")
    before = int(page.get_attribute("#live progress", "value"))
    port = int(stage.address.rpartition(":")[2])
    stage.processes.stop("console")
    page.wait_for_selector("#lost:visible")
    stage.federation.restart_console(stage.processes, port)
    page.wait_for_selector("#lost", state="hidden")
    page.goto(f"{stage.address}/runs/{stage.run_id}")
    assert int(page.get_attribute("#live progress", "value")) >= before
    with stage.federation.client() as client:
        assert client.get_run(stage.run_id).run.status in {"running", "finished"}


def test_a_silent_coordinator_is_said_and_never_shown_as_well(stage):
    page = stage.page("/members")
    stage.complaints.check(page)
    stage.processes.stop("coordinator")
    page.wait_for_selector("text=/has not answered for \\d+/")
    age = "document.querySelector('.fresh.silent .age').textContent"
    page.wait_for_function(f"before => {age} !== before", arg=page.evaluate(age))  # it ticks
    page.goto(stage.address + "/audit?event=nothing")
    assert "The coordinator does not answer" in headline(page)
    stage.federation.start_server(stage.processes)
    page.goto(stage.address + "/members")
    page.wait_for_selector(".fresh:not(.silent)")


def test_signing_out_everywhere_ends_open_pages(stage):
    page = stage.page("/account")
    page.click("text=Sign out everywhere")
    page.wait_for_url("**/sign-in")
    page.goto(stage.address + "/")
    assert page.url.endswith("/sign-in?next=/")
    page.fill("#name", "administrator")
    page.fill("#password", PASSWORD + "x")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=name or password are not right")


def test_a_security_key_is_added_and_signs_in(stage):
    context = stage.browser.new_context()
    page = context.new_page()
    stage.open.append(context)
    page.set_default_timeout(PATIENCE_MS)
    stage.complaints.heed(page)
    devices = context.new_cdp_session(page)
    devices.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "usb", "hasUserVerification": True, "isUserVerified": True}
    devices.send("WebAuthn.addVirtualAuthenticator", {"options": options | {"automaticPresenceSimulation": True}})
    address = stage.address.replace("127.0.0.1", "localhost")  # keys know names, not numbers
    link = stage.federation.console_link()
    page.goto(address + link.partition("/welcome")[1] + link.partition("/welcome")[2])
    seed = page.text_content("#seed")
    page.fill("#name", "second-administrator")
    page.fill("#password", PASSWORD)
    page.fill("#again", PASSWORD)
    page.fill("#code", pyotp.TOTP(seed).now())
    page.click("main button")
    page.wait_for_selector("text=Live runs")
    page.goto(address + "/account")
    page.fill("#key-label", "the blue one")
    page.click("text=Add a security key")
    page.wait_for_selector("td:has-text('the blue one')")
    page.click("text=Sign out >> nth=0")
    page.fill("#name", "second-administrator")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.click("text=Use a security key")
    page.wait_for_selector("text=Live runs")
    stage.complaints.check(page)
