"""Blind comparison in the console: the files of `confide rlhf`, one judgement a pair, taken back when asked."""

import re

from confide_server.console.roles import Role
from confide_server.rlhf.preferences import Candidate, Comparison, append_line, read_lines, standing

from tests.console_world import make_console, person


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
    assert "4 pairs have no majority." in page and "confide rlhf adjudicate" in page
    assert "annotator-2" not in people[0].get("/feedback").text.split("<main")[1]
    assert "alpha" not in people[0].get("/feedback").text
    console.close()
