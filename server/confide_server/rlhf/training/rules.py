"""Rewards that can be verified: installed rules with an argument, never code.

>>> rules_reward((Rule(name="exact_match", argument="42"),))(["?", "?"], ["42", "41"])
[1.0, 0.0]
"""

import re
from collections.abc import Callable, Sequence

from confide.errors import SpecificationError

from confide_server.rlhf.training.documents import Rule

_MOST_CHARACTERS = 10_000
_NESTED = re.compile(r"\([^)]*[+*][^)]*\)[+*{]")


def _exact(argument: str) -> Callable[[str], float]:
    return lambda text: float(text.strip() == argument.strip())


def _pattern(argument: str) -> Callable[[str], float]:
    if _NESTED.search(argument) or len(argument) > 500:
        raise SpecificationError(
            "a rule's regular expression repeats a group that repeats, or is longer than 500 characters, which may "
            "take for ever on some text; write a plainer one"
        )
    try:
        compiled = re.compile(argument)
    except re.error as error:
        raise SpecificationError(f"a rule's regular expression is not valid: {error}") from error
    return lambda text: float(compiled.search(text[:_MOST_CHARACTERS]) is not None)


def _length(argument: str) -> Callable[[str], float]:
    if not argument.isdecimal() or int(argument) < 1:
        raise SpecificationError(f"a rule of length has the argument {argument!r}; give a number of characters above 0")
    aim = int(argument)
    return lambda text: -abs(len(text) - aim) / aim


_RULES = {"exact_match": _exact, "regular_expression": _pattern, "length": _length}


def rules_reward(rules: Sequence[Rule]) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """The weighted sum of the rules, for each answer. Raises SpecificationError for an argument that means nothing."""
    made = [(rule.weight, _RULES[rule.name](rule.argument)) for rule in rules]
    return lambda prompts, answers: [sum(weight * score(text) for weight, score in made) for text in answers]
