"""Made-up comparisons for tests: good answers are preferred to bad ones, whatever they are about."""

from pathlib import Path
from typing import Any

from confide_server.rlhf.annotation.preferences import Candidate, Comparison, append_line

GOOD, BAD = ("good", "fine", "sound"), ("bad", "crooked", "rotten")


def pairs(count: int, *, prompt: bool = True) -> list[dict[str, Any]]:
    """Records {prompt, chosen, rejected, annotator}."""
    made = []
    for number in range(count):
        record = {
            "chosen": f"{GOOD[number % 3]} work {number}, a {GOOD[(number + 1) % 3]} wall",
            "rejected": f"{BAD[number % 3]} work {number}, a {BAD[(number + 1) % 3]} wall",
            "annotator": f"person-{number % 4}",
        }
        made.append({"prompt": "How is the wall?", **record} if prompt else record)
    return made


def disagreement(folder: Path, *names: str) -> set[str]:
    """Three pairs in a console's folder, on one of which two annotators do not agree: the ids of its answers."""
    (folder / "feedback").mkdir()
    made = [Candidate(prompt="Why <b>?", text=f"Because {n}", model="0" * 64, seed=n) for n in range(3)]
    for one in made:
        append_line(folder / "feedback" / "candidates.jsonl", one)
    pairs = [sorted((made[a].id, made[b].id)) for a, b in ((0, 1), (0, 2), (1, 2))]
    for name, last in zip(names, ("first", "second"), strict=True):
        for pair, choice in zip(pairs, ("first", "first", last), strict=True):
            judged = Comparison(first=pair[0], second=pair[1], choice=choice, annotator=name)
            append_line(folder / "feedback" / f"ratings-{name}.jsonl", judged)
    return set(pairs[2])
