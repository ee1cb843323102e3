"""Made-up comparisons for tests: good answers are preferred to bad ones, whatever they are about."""

from typing import Any

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
