"""Synthetic preferences from a reward model: of several answers to a prompt the best is chosen, the worst rejected.

Guarantee: with a reward model that is private (docs/privacy.md) and prompts that are public, everything here is
post-processing: it costs no further privacy, and the evidence says so. Private prompts are refused on this road: their
text would be in the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from confide.errors import DataError, PolicyRefusal
from numpy.typing import NDArray

from confide_server.rlhf.policy import Completion


class Scorer(Protocol):
    """A reward model."""

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """(N,) rewards, finite."""


@dataclass(frozen=True)
class SyntheticPair:
    """In TRL's preference format, with by how much the chosen answer's reward is larger."""

    prompt: str
    chosen: str
    rejected: str
    margin: float


def check_public(source: Literal["public", "licensed", "private"]) -> None:
    """Raise PolicyRefusal for private prompts."""
    if source == "private":
        raise PolicyRefusal(
            "the prompts are private: best-of-n and synthetic pairs would carry their text into a released model, "
            "uncharged. Use public or licensed prompts, or federated DPO, where private prompts stay at the nodes"
        )


def ranked(groups: Sequence[Sequence[Completion]], reward: Scorer) -> list[list[tuple[float, Completion]]]:
    """Each prompt's answers with their rewards, best first. An empty answer comes last, whatever its reward."""
    flat = [completion for group in groups for completion in group]
    if not flat:
        raise DataError("there are no answers to rank; draw some first")
    scores = iter(reward.scores([one.prompt for one in flat], [one.text or " " for one in flat]))
    made = [[(float(next(scores)), completion) for completion in group] for group in groups]
    return [sorted(group, key=lambda one: (bool(one[1].text), one[0]), reverse=True) for group in made]


def pairs(
    ranking: Sequence[Sequence[tuple[float, Completion]]], *, each: int = 1, least_margin: float = 0.0
) -> list[SyntheticPair]:
    """`each` pairs a prompt: best against worst, second best against second worst, and so on to the middle.

    Equal answers and margins of `least_margin` or less make none. Raises DataError REWARDS_EQUAL when no prompt gives a
    pair: there is nothing to learn from.
    """
    made = []
    places = [(group, place) for place in range(each) for group in ranking if 2 * place + 1 < len(group)]
    for group, place in places:
        (high, best), (low, worst) = group[place], group[-1 - place]
        if best.text and best.text != worst.text and high - low > least_margin:
            made.append(SyntheticPair(best.prompt, best.text, worst.text, high - low))
    if not made:
        raise DataError(
            "REWARDS_EQUAL: in no prompt's answers one is better than another; draw more answers, at a higher "
            "temperature, or train the reward model on more pairs"
        )
    return made
