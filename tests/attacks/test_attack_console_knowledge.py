"""Somebody wants to read another organization's documents through the console, or to have one of them act in a page."""

import json
import re
from pathlib import Path

import pytest
from confide.rag import access, library
from confide_server.console.roles import Role
from confide_server.console.settings import KnowledgeSettings, Settings

from tests.console_world import make_console, person
from tests.rag_worlds import FEES, WALLS, embedder, world_with_fees

SECRET = "twelve centimetres"
QUESTION = "How thick must the wall be?"


@pytest.fixture
def world(tmp_path):
    """The clinic has leaflets, the builders have walls, the bank has nothing."""
    made = world_with_fees(tmp_path)
    made.add([made.file("walls.txt", WALLS)], organization="builders", collection="walls")
    made.add([made.file("plans.txt", WALLS)], organization="builders", collection="leaflets")
    return made


def console_over(world, organization=""):
    (world.folder / "console").mkdir()
    settings = KnowledgeSettings(
        library=str(world.library.root), embedder=str(embedder().folder), organization=organization
    )
    return make_console(world.folder / "console", knowledge=settings)


@pytest.fixture
def console(world):
    made = console_over(world)
    yield made
    made.close()


def said(answer):
    return re.search(r'<p class="headline.*?</p>\s*<p>(.*?)</p>|<main.*?</main>', answer.text, re.S).group(0)


def reads_anothers(console):
    """Addresses and questions by which the clinic tries to get at the builders' walls."""
    clinic = person(console, Role.ORGANIZATION, "clinic")
    tried = (
        "walls",
        "builders/walls",
        "..%2f..%2fbuilders%2fwalls",
        "../../builders/walls",
        "%2e%2e/builders",
        "WALLS",
    )
    for name in tried:
        yield clinic.get(f"/knowledge/{name}")
        yield clinic.submit(f"/knowledge/{name}", page="/knowledge", question=QUESTION, organization="builders")


def test_another_organizations_collection_is_refused_as_one_that_is_not_there(console):
    for answer in reads_anothers(console):
        assert answer.status_code in {403, 404} and SECRET not in answer.text
    clinic = person(console, Role.ORGANIZATION, "clinic", name="second")
    theirs, absent = clinic.get("/knowledge/walls"), clinic.get("/knowledge/stairs")
    assert said(theirs).replace("walls", "stairs") == said(absent)


def test_the_attack_reads_it_where_the_guard_is_taken_out(console, monkeypatch):
    def opened(caller, name, action="read"):
        object.__setattr__(name, "organization", "builders")

    for module in (access, library):
        monkeypatch.setattr(module, "allow", opened)
    assert any("walls.txt" in answer.text for answer in reads_anothers(console)), (
        "an attack that cannot succeed shows nothing"
    )


def test_of_one_name_each_organization_has_its_own(console):
    for organization, own, others in (("clinic", "fees.md", "plans.txt"), ("builders", "plans.txt", "fees.md")):
        client = person(console, Role.ORGANIZATION, organization)
        text = client.get("/knowledge/leaflets").text
        assert own in text and others not in text
        found = client.submit("/knowledge/leaflets", page="/knowledge", question=QUESTION).text
        assert others not in found and (SECRET in found) == (organization == "builders")


def test_people_of_the_consortium_see_no_organizations_documents_unless_some_are_its_own(world):
    for organization, sees in (("", False), ("clinic", True)):
        console = console_over(world, organization)
        for role in (Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR):
            client = person(console, role)
            assert ("leaflets" in client.get("/knowledge").text) == sees
            assert (client.get("/knowledge/leaflets").status_code == 200) == sees
            assert client.get("/knowledge/walls").status_code == 403
        console.close()
        (world.folder / "console").rename(world.folder / f"console-of-{organization or 'nobody'}")


def test_a_question_stands_in_no_address(console):
    clinic = person(console, Role.ORGANIZATION, "clinic")
    assert "Answer" not in clinic.get("/knowledge/leaflets", params={"question": QUESTION}).text
    answer = clinic.submit("/knowledge/leaflets", page="/knowledge", question="What does a visit cost?")
    assert answer.status_code == 200 and "question" not in str(answer.url)


def test_a_documents_name_and_text_are_text_and_nothing_else(world):
    markup = "The fee is <script>alert(1)</script> <img src=x onerror=alert(1)> and {{ 7*7 }} forty crowns."
    world.add([world.file("<img src=x onerror=alert(1)>.txt", markup)])
    console = console_over(world)
    clinic = person(console, Role.ORGANIZATION, "clinic")
    for text in (
        clinic.get("/knowledge/leaflets").text,
        clinic.submit("/knowledge/leaflets", page="/knowledge", question="<b>What</b> is the fee?").text,
    ):
        assert not re.search(r"<img src=x|<script>|<b>", text)
    assert "{{ 7*7 }}" in text, "the passage is shown as it stands in the document"
    console.close()


@pytest.mark.parametrize("question", ["", "  ", "x" * 4001])
def test_a_question_that_is_none_is_refused(console, question):
    clinic = person(console, Role.ORGANIZATION, "clinic")
    answer = clinic.submit("/knowledge/leaflets", page="/knowledge", question=question)
    assert answer.status_code == 403 and "a question has 1 to 4000 characters" in answer.text


def test_scores_by_part_citations_and_states_are_shown(world):
    world.add([world.file("fees.md", FEES + "\nA card is taken too.\n")])
    console = console_over(world)
    clinic = person(console, Role.ORGANIZATION, "clinic")
    assert re.search(r"clinic has 1 document that can be asked", clinic.get("/knowledge").text)
    page = clinic.submit("/knowledge/leaflets", page="/knowledge", question="A visit costs forty crowns.").text
    assert "replaced" in page and "fees.md" in page and "BM25" in page
    assert re.search(r"confide:clinic/leaflets/[0-9a-f]{32}#char=\d+,\d+", page), "the citation names its place"
    assert len(re.findall(r'<td class="number">-?[\d.e+-]+</td>', page)) >= 8
    console.close()


def test_the_documented_setting_is_one():
    page = (Path(__file__).parents[2] / "docs" / "console.md").read_text()
    written = json.loads(re.search(r'^{"knowledge": .*}$', page, re.M).group(0))
    assert Settings.model_validate_json(json.dumps(written)).knowledge.organization == "clinic"
