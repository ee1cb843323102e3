"""What the console says of the federation: needs, headlines, the grid, lineage, and how old all of it is."""

import importlib
import re
import threading
import time
import tomllib

import click
import pytest
import typer
from confide.errors import TransportError
from confide.proto import admin_pb2 as pb
from confide_server.alerts import needs
from confide_server.alerts.words import PATH as ALERTS
from confide_server.console.federation import reading, run_words
from confide_server.console.federation.lineage import drawn
from confide_server.console.federation.reading import Acting, Reader, Unanswered
from confide_server.console.roles import Role
from confide_server.console.web.frame import FOLDER, Frame
from hypothesis import given
from hypothesis import strategies as st

from tests.console_world import NODES, RUN_ID, MemoryCoordinator, make_console, person

ANNA = Acting("anna", Role.OPERATOR)
NOW = 1_800_000_000.0


def seen(**given):
    return [(need.level, need.text) for need in needs.needs(needs.Seen(**given), now=NOW)]


def test_nothing_needs_anybody_when_all_is_well():
    status = pb.ServerStatus(roster_expires_at=NOW + 1e7, certificate_expires_at=NOW + 1e7)
    member = pb.MemberLine(name="a", role="node", state="connected", certificate_expires_at=NOW + 1e7)
    run = pb.RunLine(run_id=RUN_ID, status="running", cohort=["a"])
    assert seen(status=status, members=[member], live=[run]) == []


@pytest.mark.parametrize(
    ("given_things", "expected"),
    [
        ({"status": pb.ServerStatus(trouble="full")}, ("bad", "needs.trouble")),
        ({"status": pb.ServerStatus(threads=[pb.ThreadStatus(name="x")])}, ("bad", "needs.thread")),
        ({"status": pb.ServerStatus(disks=[pb.DiskStatus(free_bytes=5, total_bytes=100)])}, ("warn", "needs.disk")),
        ({"status": pb.ServerStatus(disks=[pb.DiskStatus(free_bytes=1, total_bytes=100)])}, ("bad", "needs.disk")),
        ({"status": pb.ServerStatus(roster_expires_at=NOW + 86400)}, ("warn", "needs.roster")),
        ({"status": pb.ServerStatus(roster_expires_at=NOW - 1)}, ("bad", "needs.roster")),
        ({"status": pb.ServerStatus(certificate_expires_at=NOW + 86400)}, ("warn", "needs.own_certificate")),
        ({"live": [pb.RunLine(status="waiting", waits_for=["b"])]}, ("bad", "needs.waits")),
        ({"live": [pb.RunLine(status="offering", waits_for=["b"])]}, ("warn", "needs.waits")),
        ({"live": [pb.RunLine(status="paused", paused_by="anna")]}, ("warn", "needs.paused")),
        ({"live": [pb.RunLine(status="draft")]}, ("warn", "needs.draft")),
        ({"ended": [pb.RunLine(status="failed", ended_at=NOW - 60)]}, ("bad", "needs.failed")),
        ({"members": [pb.MemberLine(role="node", state="offline")]}, ("warn", "needs.away")),
        ({"members": [pb.MemberLine(certificate_expires_at=NOW + 60)]}, ("warn", "needs.certificates")),
        ({"enrolments": [pb.EnrolmentLine(name="new")]}, ("warn", "needs.enrolments")),
        ({"releases": [pb.Release(status="created")]}, ("warn", "needs.release_unsigned")),
        ({"releases": [pb.Release(status="signed")]}, ("warn", "needs.release_unpublished")),
    ],
)
def test_each_thing_that_needs_somebody(given_things, expected):
    assert seen(**given_things) == [expected]


def test_old_failures_and_nodes_that_were_never_there_need_nobody():
    run = pb.RunLine(status="failed", ended_at=NOW - 2 * 86400)
    members = [pb.MemberLine(role="node", state=state) for state in ("never_seen", "stopped", "training")]
    assert seen(ended=[run], members=members) == []


def test_a_node_that_a_run_needs_is_worse_than_another():
    members = [pb.MemberLine(name="a", role="node", state="offline")]
    assert seen(members=members, live=[pb.RunLine(status="running", cohort=["a", "b"])]) == [("bad", "needs.away")]


def event(number, **what):
    return pb.Event(number=number, run_id=RUN_ID, time=NOW + number, **what)


def test_the_open_round_says_who_is_awaited_and_what_they_do():
    events = [
        event(1, round_started=pb.RoundStarted(round=1, attempt=1)),
        event(2, round_committed=pb.RoundCommitted(round=1)),
        event(3, round_started=pb.RoundStarted(round=2, attempt=1, deadline_s=600)),
        event(4, contributed=pb.Contributed(round=2, node="a", bytes=10)),
        event(5, dropped=pb.Dropped(round=2, node="b", code="LATE", reason="slow")),
    ]
    opened = run_words.open_round(events)
    assert (opened.number, opened.here, opened.dropped) == (2, {"a"}, {"b": "LATE: slow"})
    run = pb.RunLine(status="running", round=1, rounds=9, cohort=["a", "b", "c"])
    work = {"c": pb.WorkProgress(phase="training", step=3, steps=20)}
    mood, key, said = run_words.headline(run, opened, work)
    assert (mood, key, said["who"]) == ("good", "run.head.round", "c (training, step 3 of 20)")
    everybody = run_words.open_round([*events, event(6, contributed=pb.Contributed(round=2, node="c", bytes=10))])
    assert run_words.headline(run, everybody, work)[1] == "run.head.opening"
    assert run_words.open_round([*events, event(6, slot_abandoned=pb.SlotAbandoned(round=2))]) is None
    rounds = [pb.RoundLine(round=1, participation=[pb.Participation(organization="a", state="contributed")])]
    cells = {name: [cell.state for cell in row] for name, row in run_words.grid(run, rounds, opened).rows}
    assert cells == {"a": ["contributed"] * 2, "b": ["not_asked", "dropped"], "c": ["not_asked", "open"]}


def test_every_status_and_kind_of_event_has_words():
    texts = Frame(lambda name: name).texts
    for status in (*needs.LIVE, *needs.ENDED, "of a newer coordinator"):
        mood, key, said = run_words.headline(pb.RunLine(status=status), None, {})
        assert texts(key, **said) and mood
    for field in pb.Event.DESCRIPTOR.oneofs_by_name["what"].fields:
        made = pb.Event(kind=field.name)
        getattr(made, field.name).SetInParent()
        key, said = run_words.event_words(made)
        assert texts(key, **said) and (key != "event.other" or field.name in {"progress", "alive"}), field.name


def test_the_catalogue_has_every_text_that_is_used_and_no_other():
    texts, used = Frame(lambda name: name).texts, set()
    places = [*FOLDER.rglob("*.html"), *FOLDER.rglob("*.py"), *FOLDER.parents[2].rglob("confide/web/templates/*")]
    for path in [*places, *ALERTS.parent.glob("*.py")]:
        text = path.read_text()
        used |= set(re.findall(r"""["']([a-z_]+(?:\.[a-z_]+)+)["']""", text))
        for prefix in re.findall(r"""["']([a-z_]+\.(?:[a-z_]+\.)?)["'] ~""", text):
            used |= {key for key in texts.keys if key.startswith(prefix)}
        for prefix in re.findall(r"f\"([a-z_.]+\.){", text):
            used |= {key for key in texts.keys if key.startswith(prefix)}
    shared = {key for key in used if key.split(".")[0] in {key.split(".")[0] for key in texts.keys}}
    missing = {
        key for key in shared - texts.keys if not key.endswith((".html", ".css", ".js", ".svg", ".py", ".jsonl"))
    }
    assert not missing
    assert not texts.keys - used - {key for key in texts.keys if key.startswith("run.head.")}


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30))
def test_lineage_is_drawn_whatever_comes(edges):
    nodes = [pb.LineageNode(id=f"run:{number}", kind="run", label="x") for number in range(6)]
    lines = [pb.LineageEdge(**{"from": f"run:{begin}"}, to=f"run:{end}") for begin, end in edges]
    drawing = drawn(pb.Lineage(nodes=nodes, edges=lines))
    assert len({(box.x, box.y) for box in drawing.boxes}) == len(nodes)
    assert all(box.x < drawing.width and box.y < drawing.height for box in drawing.boxes)


def test_of_a_thousand_runs_those_behind_releases_are_drawn():
    nodes = [pb.LineageNode(id=f"run:{number}", kind="run", label="x") for number in range(1000)]
    nodes.append(pb.LineageNode(id="release:a/1", kind="release", label="a"))
    lines = [pb.LineageEdge(**{"from": f"run:{number}"}, to=f"run:{number + 1}") for number in range(3)]
    lines.append(pb.LineageEdge(**{"from": "run:3"}, to="release:a/1"))
    drawing = drawn(pb.Lineage(nodes=nodes, edges=lines))
    assert {"release:a/1", "run:0", "run:3", "run:999"} <= {box.id for box in drawing.boxes}
    assert len(drawing.boxes) == 60 and drawing.left_out == 941


def test_a_silent_coordinator_is_told_with_its_age_and_never_as_green():
    clock = [0.0]
    coordinator = MemoryCoordinator()
    reader = Reader(coordinator, lambda: clock[0])
    reader.look(ANNA).members()
    coordinator.silent = True
    clock[0] = 40.0
    look = reader.look(ANNA)
    assert [member.name for member in look.members().members] == list(NODES)
    clock[0] = 80.0
    look.members()
    assert look.freshness.silent_s >= 40.0 and "no coordinator answers" in look.freshness.trouble
    with pytest.raises(Unanswered):
        reader.look(ANNA).status()
    coordinator.silent = False
    look = reader.look(ANNA)
    look.members()
    look.verdict()
    assert look.freshness.silent_s == 0.0
    clock[0] = 120.0
    look = reader.look(ANNA)
    look.members()
    look.verdict()
    assert look.freshness.silent_s == 0.0, "a verdict is asked for once a minute, and nobody is silent meanwhile"
    reader.close()


def test_a_coordinator_that_hangs_holds_no_page(monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE_S", 0.05)
    released = threading.Event()

    class Hanging(MemoryCoordinator):
        def ask(self, method, request, acting):
            released.wait(60)
            return super().ask(method, request, acting)

    reader = Reader(Hanging())
    for _ in range(3):
        with pytest.raises(Unanswered, match="no answer within"):
            reader.look(ANNA).members()
    released.set()
    while reader.silence[0]:
        time.sleep(0.01)
    assert reader.look(ANNA).members().members, "the question stayed open, and its answer counts"
    reader.close()


def test_who_looks_after_something_happened_sees_it():
    coordinator, clock = MemoryCoordinator(), [100.0]
    reader = Reader(coordinator, lambda: clock[0])

    def asked(after_s):
        clock[0] += after_s
        before = len(coordinator.asked)
        reader.look(ANNA).run(RUN_ID)
        return len(coordinator.asked) - before

    assert [asked(0.0), asked(0.5)] == [1, 0]
    reader.heard()
    assert asked(reading.SETTLED_S) == 1, "within a second, but from before"
    reader.heard()
    assert asked(0.0) == 0, "what happens again and again is asked for four times a second at most"
    assert asked(reading.SETTLED_S + 0.01) == 1
    assert [asked(0.9), asked(0.2)] == [0, 1]
    reader.heard(step=True)
    clock[0] += 0.001
    assert [asked(0.0), asked(0.0)] == [1, 0], "what a step changes is never shown from before it"
    reader.close()


def test_many_pages_ask_once_and_answers_are_shared_by_role_only():
    coordinator = MemoryCoordinator()
    reader = Reader(coordinator, lambda: 100.0)  # nothing grows old
    threads = [threading.Thread(target=lambda: reader.look(ANNA).members()) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(coordinator.asked) <= 2
    reader.look(Acting("x", Role.ORGANIZATION, "bank-b")).members()
    reader.look(Acting("y", Role.ORGANIZATION, "hospital-a")).members()
    assert [acting.organization for _, acting in coordinator.asked[-2:]] == ["bank-b", "hospital-a"]
    with pytest.raises(TransportError):
        reader._coordinator = MemoryCoordinator(silent=True)
        reader.look(ANNA).status()
    reader.close()


def test_pages_say_in_their_first_line_what_is_asked_of_them(tmp_path):
    console = make_console(tmp_path)
    client = person(console, Role.ADMINISTRATOR)

    def headline(address):
        found = re.search(r'class="headline[^>]*>(.*?)</p>', client.get(address).text, re.S)
        return " ".join(re.sub("<[^>]+>", "", found.group(1)).split())

    assert headline("/") == "1 thing needs you."
    assert headline(f"/runs/{RUN_ID}") == "Round 2 of 5 is committed; the run goes on."
    assert headline("/members") == "3 nodes, nothing to do."
    assert headline("/models") == "support 1 is not released: 0 of 1 signatures."
    assert headline("/privacy").startswith("At most: notes of bank-b has spent")
    console.reader._coordinator.slots = 3
    console.reader.forget()
    assert headline("/privacy") == "bank-b has 1 slot left for example (notes): the run would stop at round 3."
    assert headline("/") == "4 things need you."
    console.reader._coordinator.slots = 10
    console.reader.forget()
    assert headline("/audit").startswith("The chain holds: verified to entry 7 at 20")
    console.reader._coordinator.silent = True
    console.reader._answers.clear()
    answer = client.get("/")
    assert answer.status_code == 503 and "The coordinator does not answer" in answer.text
    assert client.get("/runs/nonsense").status_code == 503
    console.reader._coordinator.silent = False
    assert client.get("/runs/nonsense").status_code == 404
    console.close()


def test_acts_go_to_the_coordinator_in_the_persons_name_and_are_done_once(tmp_path):
    console = make_console(tmp_path)
    client = person(console, Role.OPERATOR, name="anna")
    answer = client.submit(f"/runs/{RUN_ID}/pause", page=f"/runs/{RUN_ID}", reason="maintenance")
    assert answer.status_code == 200 and answer.url.path == f"/runs/{RUN_ID}"
    ((method, request, acting),) = console.reader._coordinator.changed
    assert (method, request.run_id, request.reason, acting.user) == ("PauseRun", RUN_ID, "maintenance", "anna")
    assert 16 <= len(request.idempotency_key) <= 64
    console.close()


def test_what_changes_of_a_runs_page_is_made_once_for_those_who_are_shown_the_same(tmp_path, monkeypatch):
    console = make_console(tmp_path)
    console.reader._clock = lambda: 100.0  # nothing grows old
    people = [
        person(console, Role.OPERATOR, name="anna"),
        person(console, Role.OPERATOR, name="otto"),
        person(console, Role.AUDITOR, name="ada"),
        person(console, Role.ORGANIZATION, "bank-b", name="ben"),
        person(console, Role.ORGANIZATION, "hospital-a", name="cleo"),
    ]
    render, made = console.frame.pages.render, []
    monkeypatch.setattr(
        console.frame.pages, "render", lambda name, **given: (made.append(name), render(name, **given))[1]
    )
    parts = [client.get(f"/runs/{RUN_ID}/live").text for client in people]
    assert made == ["run_live.html"] * 4, "the two operators share one"
    assert parts[0] == parts[1] and "#act" in parts[0] and "#act" not in parts[2]
    assert parts[0].strip() in people[1].get(f"/runs/{RUN_ID}").text
    assert not any(word in part for part in parts for word in ("csrf", "anna", "ben"))
    plain = people[0].get(f"/runs/{RUN_ID}/live", headers={"accept-encoding": "identity"})
    assert plain.text == parts[0] and "content-encoding" not in plain.headers
    console.close()


def test_a_specification_is_checked_and_signed_elsewhere(tmp_path):
    console = make_console(tmp_path)
    client = person(console, Role.ADMINISTRATOR)
    page = client.get("/specification", params={"recipe": "fine-tune", "model": "ab" * 32, "data": "faq"})
    toml = re.search(r"<textarea[^>]*>(.*?)</textarea>", page.text, re.S).group(1).replace("&#34;", '"')
    checked = client.submit("/specification/check", page="/specification", toml=toml, nodes="4").text
    assert "What it would do with 4 nodes" in checked and "confide run submit fine-tune.toml" in checked
    wrong = client.submit("/specification/check", page="/specification", toml=toml + "\n[nonsense]\nx = 1\n").text
    assert "Not valid yet" in wrong and "nonsense" in wrong
    console.close()


def test_a_release_without_its_evaluation_is_not_releasable(tmp_path):
    console = make_console(tmp_path, MemoryCoordinator(gate="missing"))
    client = person(console, Role.ADMINISTRATOR)
    text = client.get("/models").text
    assert "support 1 is not releasable: its evaluation is missing." in text
    assert "confide release attach support 1" in text and "/models/releases/support/1/publish" not in text
    console.reader._coordinator.gate = "passed"
    console.reader.forget()
    assert "/models/releases/support/1/publish" in client.get("/models").text
    console.close()


def test_a_runs_order_epoch_and_slot_are_shown_and_set(tmp_path):
    happened = [
        pb.Event(number=1, kind="epoch_started", epoch_started=pb.EpochStarted(members=NODES, slots=8)),
        pb.Event(number=2, kind="round_started", round_started=pb.RoundStarted(round=3, attempt=1, slot=5)),
    ]
    console = make_console(tmp_path, MemoryCoordinator(happened=happened))
    client = person(console, Role.ADMINISTRATOR)
    text = client.get(f"/runs/{RUN_ID}").text
    assert "epoch of 3 for 8 slots" in text and "slot 5 is open" in text and "with 3 organizations" in text
    client.submit(f"/runs/{RUN_ID}/priority", page=f"/runs/{RUN_ID}", priority="7")
    ((method, request, _),) = console.reader._coordinator.changed
    assert method == "SetPriority" and request.priority == 7
    console.close()


def test_receipts_are_shown_as_they_were_signed(tmp_path):
    other = "f" * 32
    receipts = [
        pb.ReceiptLine(number=1, run_id=RUN_ID, organization="bank-b", receipt=b'{"group":"<b>"}', signature=b"\x17"),
        pb.ReceiptLine(number=2, run_id=other, organization="bank-b", receipt=b'{"group":"other"}'),
    ]
    console = make_console(tmp_path, MemoryCoordinator(receipts=receipts))
    client = person(console, Role.AUDITOR)
    text = client.get("/privacy").text
    assert f"run={RUN_ID}#receipts" in text and "&#34;group&#34;" not in text, "asked for one run at a time"
    text = client.get(f"/privacy?run={RUN_ID}").text
    assert "{&#34;group&#34;:&#34;&lt;b&gt;&#34;}" in text and "17</pre>" in text and other[:8] not in text
    assert other[:8] in client.get("/privacy?run=nonsense").text
    console.close()


def test_members_are_older_by_number_and_everything_amiss_is_in_the_first_line(tmp_path):
    class Aged(MemoryCoordinator):
        def _ListMembers(self, request, acting):
            page = super()._ListMembers(request, acting)
            page.members[0].release, page.members[1].release, page.members[2].state = "0.10.0", "0.9.1", "offline"
            page.members[2].release = "0.10.0"
            return page

    console = make_console(tmp_path, Aged())
    text = person(console, Role.AUDITOR).get("/members").text
    first = re.sub("<[^>]+>", " ", re.search(r'class="headline.*?</p>', text, re.S).group())
    assert "1 of 3 nodes is away." in first and "1 node is older than 0.10.0." in first
    console.close()


def test_lineage_keeps_what_comes_from_one_model_together():
    names = [f"run:{letter}" for letter in "abcdef"]
    nodes = [pb.LineageNode(id=one, kind="run", label=one) for one in names]
    pairs = [("a", "f"), ("b", "e"), ("c", "d")]
    edges = [pb.LineageEdge(**{"from": f"run:{begin}"}, to=f"run:{end}") for begin, end in pairs]
    boxes = {box.id: box for box in drawn(pb.Lineage(nodes=nodes, edges=edges)).boxes}
    assert all(boxes[f"run:{begin}"].y == boxes[f"run:{end}"].y for begin, end in pairs), "no line crosses another"


def test_every_command_that_a_page_shows_is_one():
    entries = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    shown = set()
    for path in [*FOLDER.glob("templates/*.html"), FOLDER / "texts.en.toml"]:
        text = re.sub(r"{{[^}]*}}", "X", path.read_text())
        shown |= {
            found.strip() for found in re.findall(r"confide ((?:[a-z-]+ )+(?:[A-Z0-9\[{.].*|--.*)?)(?=</pre>|\n)", text)
        }
    assert len(shown) > 8
    for line in shown:
        words = line.replace("</pre>", "").split()
        module, _, name = entries["confide.commands"][words[0]].partition(":")
        command = typer.main.get_command(getattr(importlib.import_module(module), name))
        rest = words[1:]
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line
