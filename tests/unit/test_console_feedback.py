"""Blind comparison in the console: the files of `confide rlhf`, one judgement a pair, taken back when asked."""

import re

from confide_server.console.roles import Role
from confide_server.console.web.pages.feedback import annotator
from confide_server.rlhf.annotation.adjudication import settle
from confide_server.rlhf.annotation.preferences import Candidate, Comparison, append_line, read_lines, standing
from confide_server.rlhf.annotation.snapshots import decide

from tests.console_world import make_console, person
from tests.preferences import disagreement


def shown(text):
    return {name: re.search(rf'name="{name}" value="([0-9a-f]{{64}})"', text).group(1) for name in ("first", "second")}


def test_pairs_are_judged_blind_and_taken_back(tmp_path):
    console = make_console(tmp_path)
    anna = person(console, Role.ANNOTATOR, name="Anna@example")
    assert "Nothing is to be compared yet" in anna.get("/feedback").text
    (tmp_path / "feedback").mkdir()
    for number in range(3):
        given = Candidate(prompt="Why <b>is</b> it so?", text=f"<i>Because</i> {number}", model="0" * 64, seed=number)
        append_line(tmp_path / "feedback" / "candidates.jsonl", given)
    page = anna.get("/feedback").text
    assert "Pair 1 of 3" in page and "<b>" not in page and "0" * 64 not in page, "whose an answer is, is not told"
    pair = shown(page)
    anna.submit("/feedback", page="/feedback", choice="1", **pair)
    again = anna.submit("/feedback", page="/feedback", choice="2", **pair)
    assert again.status_code == 403 and "another pair is shown" in again.text
    assert (
        anna.submit("/feedback", page="/feedback", choice="x", **shown(anna.get("/feedback").text)).status_code == 403
    )
    assert "Pair 2 of 3" in anna.get("/feedback").text
    (ratings,) = (tmp_path / "feedback").glob("ratings-*.jsonl")
    (made,) = standing(read_lines(ratings, Comparison))
    assert (made.first, made.second, made.choice) == (pair["first"], pair["second"], "first")
    anna.submit("/feedback/undo", page="/feedback")
    assert "Pair 1 of 3" in anna.get("/feedback").text and standing(read_lines(ratings, Comparison)) == []
    console.close()


def test_administrators_see_how_far_annotators_agree_and_annotators_do_not(tmp_path):
    console = make_console(tmp_path)
    (tmp_path / "feedback").mkdir()
    for number in range(4):
        given = Candidate(prompt="Why?", text=f"Because {number}", model="0" * 64, seed=number)
        append_line(tmp_path / "feedback" / "candidates.jsonl", given)
    people = [person(console, Role.ANNOTATOR, name=f"annotator-{number}") for number in (1, 2)]
    for client, prefers in zip(people, (max, min), strict=True):
        for number in range(6):  # of six pairs the first annotator prefers the larger id in four, the other never
            pair = shown(client.get("/feedback").text)
            wanted = prefers(pair.values()) if number < 4 else max(pair.values())
            client.submit("/feedback", page="/feedback", choice="1" if pair["first"] == wanted else "2", **pair)
    page = person(console, Role.ADMINISTRATOR).get("/feedback").text
    rows = re.findall(
        r"<td>annotator-(\d)[^<]*</td><td class=\"number\">6 / 6</td><td class=\"number\">(\d+)</td>", page
    )
    assert rows == [("1", "6"), ("2", "6")] and re.search(r"alpha over all pairs with two judgements: -?0\.\d+", page)
    assert "4 pairs have no majority." in page and 'href="/adjudication"' in page
    assert "annotator-2" not in people[0].get("/feedback").text.split("<main")[1]
    assert "alpha" not in people[0].get("/feedback").text
    console.close()


def test_somebody_who_judged_none_decides_what_annotators_left_open_and_it_is_kept_who(tmp_path):
    console = make_console(tmp_path)
    root, anna = person(console, Role.ADMINISTRATOR, name="root-admin"), person(console, Role.ANNOTATOR, name="anna")
    assert "No pair waits for a decision" in root.get("/adjudication").text
    judge = annotator(next(one for one in console.people.all() if one.name == "anna"))
    left = disagreement(tmp_path, judge, "other")
    page = root.get("/adjudication").text
    assert (
        "Decision 1 of 1" in page and "<b>?" not in page and judge not in page and "other" not in page.split("<main")[1]
    )
    assert set(shown(page).values()) == left
    refused = anna.get("/adjudication")
    assert refused.status_code == 403 and "ADJUDICATOR_JUDGED" in refused.text
    assert anna.submit("/adjudication", page="/feedback", choice="1", **shown(page)).status_code == 403
    assert person(console, Role.AUDITOR, name="auditor").get("/adjudication").status_code in (403, 404)
    pair = shown(page)
    wrong = {"first": pair["second"], "second": pair["first"]}
    assert root.submit("/adjudication", page="/adjudication", choice="1", **wrong).status_code == 403
    root.submit("/adjudication", page="/adjudication", choice="2", **pair)
    assert "Done: 1 pair is decided." in root.get("/adjudication").text
    root.submit("/adjudication/undo", page="/adjudication")
    root.submit("/adjudication", page="/adjudication", choice="1", **shown(root.get("/adjudication").text))
    (file,) = (tmp_path / "feedback").glob("adjudicated-*.jsonl")
    ratings = [one for path in (tmp_path / "feedback").glob("ratings-*") for one in read_lines(path, Comparison)]
    settled = settle(ratings, decide(ratings, "majority")[1], read_lines(file, Comparison))
    assert settled == [(pair["first"], pair["second"])]
    acts = [(row["person"], row["act"]) for row in console.people.acts()]
    assert acts.count(("root-admin", "adjudicated")) == 2 and ("root-admin", "adjudication_undone") in acts
    second = person(console, Role.ADMINISTRATOR, name="second-admin")
    assert "No pair waits" in second.get("/adjudication").text, "a pair has one decision"
    console.close()
