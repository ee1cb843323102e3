"""What a feedback run asks of the nodes: opinions on public answers, of which only sums leave (docs/rlhf.md).

Three purposes. "scores": one number in [-1, 1] an answer, from which the mean over organizations comes back. "gate":
each organization judges every pair of a candidate's and a baseline's answer, and three numbers leave: by how much the
candidate wins, how often neither does, and whether it wins less than a threshold. "pairs": the same three numbers, of
the candidate itself over the organization's own comparisons, which nobody else sees: it wins one where it prefers what
people preferred by more than the base does.

>>> asked = FeedbackSection(purpose="gate", source="ours", prompts=("Why?",), answers=("So.",), against=("No.",))
>>> asked.numbers, round(asked.longest, 3)
(3, 0.866)
"""

import hashlib
import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from confide import canonical
from confide.documents import StoredDocument

MAX_ANSWERS = 512
MAX_TEXT_CHARS = 4000
MAX_CHARS = 400_000
"""Of all texts of a run together: they stand in its specification, which every node reads."""
GATE_NUMBERS = 3
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class FeedbackSection(StoredDocument):
    """method "feedback": public answers that each node judges with what its own comparisons taught it, docs/rlhf.md."""

    purpose: Literal["scores", "gate", "pairs"] = "scores"
    """ "scores": a number an answer. "gate": the candidate's answers against the baseline's, three numbers in all.
    "pairs": the candidate itself against its base on each node's own comparisons, the same three numbers."""
    source: str = Field(default="", max_length=256)
    """Where the prompts come from, which are public: every member of the consortium reads them."""
    prompts: tuple[Text, ...] = ()
    """Of each answer, in order; the same one stands as often as it has answers."""
    answers: tuple[Text, ...] = ()
    """What is judged; of purpose "gate" the candidate's."""
    against: tuple[Text, ...] = ()
    """gate: the baseline's answer to the same prompt, for each."""
    candidate_sha256: Digest = ""
    """gate: of the candidate model, as the run or adapter that made it names it."""
    baseline_sha256: Digest = ""
    """gate: of the baseline; empty: the base alone."""
    below: float = Field(default=0.4, gt=0, lt=1)
    """gate: a node says by one number whether the candidate wins less often with it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self == type(self).model_construct():
            return self  # a run that asks for no feedback
        if self.purpose == "pairs":
            return self._check_pairs()
        if not self.answers or len(self.prompts) != len(self.answers):
            raise ValueError(f"{len(self.answers)} answers to {len(self.prompts)} prompts; each answer has its prompt")
        if len(self.answers) > MAX_ANSWERS:
            raise ValueError(f"{len(self.answers)} answers are asked about; at most {MAX_ANSWERS} at once")
        if not self.source.strip():
            raise ValueError("source is empty; say where the public prompts come from, since every node reads them")
        if (self.purpose == "gate") != bool(self.against) or (self.against and len(self.against) != len(self.answers)):
            raise ValueError(
                f'purpose is "{self.purpose}" with {len(self.against)} answers of a baseline; "gate" has one for each '
                'candidate\'s answer, "scores" none'
            )
        if self.against == self.answers and self.answers:
            raise ValueError("candidate and baseline give the same answers; there is nothing to compare")
        asked = list(zip(self.prompts, self.answers, strict=True))
        if len(set(asked)) != len(asked):
            raise ValueError("an answer to a prompt stands twice: asked twice, its noise would be averaged away")
        characters = sum(map(len, (*self.prompts, *self.answers, *self.against)))
        if characters > MAX_CHARS:
            raise ValueError(f"the texts have {characters} characters; at most {MAX_CHARS} go into one run")
        return self

    def _check_pairs(self) -> Self:
        if self.prompts or self.answers or self.against or self.baseline_sha256 or not self.candidate_sha256:
            raise ValueError(
                'purpose is "pairs", which sends the candidate itself to the nodes: name it by candidate_sha256, and '
                "give no prompts, answers or baseline; it is held against its base"
            )
        return self

    @property
    def asked(self) -> bool:
        """Whether anything is asked at all."""
        return bool(self.answers) or self.purpose == "pairs"

    @property
    def numbers(self) -> int:
        """How many numbers leave a node: D."""
        return len(self.answers) if self.purpose == "scores" else GATE_NUMBERS

    @property
    def longest(self) -> float:
        """The largest L2 norm of honest answers: the clip with which nothing is clipped."""
        return math.sqrt(self.numbers) if self.purpose == "scores" else math.sqrt(GATE_NUMBERS) / 2

    @property
    def names(self) -> tuple[str, ...]:
        """SHA-256 of each thing judged, texts or model, hex. By it a node knows what it has answered before."""
        if self.purpose == "pairs":
            return (
                hashlib.sha256(canonical.encode(["confide/v1/feedback", "pairs", self.candidate_sha256])).hexdigest(),
            )
        others = self.against or ("",) * len(self.answers)
        asked = zip(self.prompts, self.answers, others, strict=True)
        fields = ("confide/v1/feedback", self.purpose)
        return tuple(hashlib.sha256(canonical.encode([*fields, *texts])).hexdigest() for texts in asked)


def encode_gate(wins: float, ties: float, below: bool) -> tuple[float, float, float]:
    """A node's three numbers, each in [-1/2, 1/2]. wins, ties: shares of the pairs; losses are the rest.

    >>> encode_gate(0.75, 0.25, below=False)
    (0.375, -0.25, -0.5)
    """
    losses = 1.0 - wins - ties
    return (wins - losses) / 2, ties - 0.5, 0.5 if below else -0.5


def decode_gate(mean: tuple[float, float, float]) -> dict[str, float]:
    """Shares from the mean over organizations, noise and all, so that they may lie a little outside of [0, 1].

    >>> decode_gate((0.375, -0.25, -0.5))
    {'win_rate': 0.875, 'wins': 0.75, 'ties': 0.25, 'losses': 0.0, 'organizations_below': 0.0}
    """
    margin, ties, below = mean[0], mean[1] + 0.5, mean[2] + 0.5
    wins = (1 - ties) / 2 + margin
    return {
        "win_rate": margin + 0.5, "wins": wins, "ties": ties, "losses": 1 - ties - wins, "organizations_below": below,
    }  # fmt: skip
