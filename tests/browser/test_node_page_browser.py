"""The node's page in a real browser, over a real node's folder of release 0.1 with a run that waits."""

import threading

import pytest
from confide.web.serving import listening, server
from confide_client.page.app import NodePage
from confide_client.runs import approvals
from confide_client.state import StateFolder

from tests.browser.browsing import Complaints, axe_violations, chromium, needs_chromium, too_wide
from tests.first_release import node_of_then

pytestmark = needs_chromium


@pytest.fixture
def served(tmp_path):
    node = node_of_then(tmp_path)
    with listening("127.0.0.1", 0) as listener:
        page = NodePage(StateFolder.at(node), listener.getsockname()[1])
        web = server(page.app())
        thread = threading.Thread(target=lambda: web.run(sockets=[listener]), daemon=True)
        thread.start()
        yield page
        web.should_exit = True
        thread.join(5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_is_read_and_refused(served, scheme):
    complaints = Complaints()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        page.set_default_timeout(90_000)
        complaints.heed(page)
        page.goto(served.address)
        assert "waits for your answer" in page.text_content(".headline")
        page.wait_for_selector("h3:has-text('What it would do here') + pre")  # made by a process of its own
        assert "run " in page.text_content("h3:has-text('What it would do here') + pre")
        page.wait_for_selector(".chart canvas", state="attached")
        page.evaluate("window.drawn = document.querySelector('.chart canvas')")
        page.click("summary:has-text('The ledger')")
        page.wait_for_selector("td:has-text('a slot spent')")
        with page.expect_response(lambda answer: answer.url.endswith("/")):
            pass  # it looks again by itself
        page.wait_for_selector("details[open] td:has-text('a slot spent')")
        assert page.evaluate("window.drawn === document.querySelector('.chart canvas')"), "the drawing stays"
        assert not too_wide(page) and axe_violations(page) == []
        page.fill("input[name=reason] >> nth=0", "not our field")
        page.keyboard.press("Enter")
        page.wait_for_selector(".done")
        complaints.check(page)
    run_id = next(run for run in served.state.run_ids() if (served.state.run(run) / "approval.json").exists())
    assert approvals.load(served.state.run(run_id)).decision == "refused"
