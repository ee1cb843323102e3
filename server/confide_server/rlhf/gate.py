"""The promotion gate: is a candidate better than its baseline, and has it forgotten nothing? Measured, with intervals.

    figures = measure(candidate, baseline, judge, prompts, general, organizations=..., seed=7)
    verdict = decide(figures, Thresholds())
    data = sign_evidence(evidence_of(figures, verdict, lineage), identity_key)

A gate that cannot tell does not pass: the lower end of the win rate's interval must be above the threshold. What was
not measured stands in the evidence as not known.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from confide.errors import DataError, ModelError
from confide.identity.keys import SigningKey
from confide.identity.signed import open_document, sign_document
from numpy.typing import NDArray

from confide_server.rlhf.opinions_of_nodes import faults

DOMAIN = "rlhf-evidence"
_RESAMPLES = 2000


class Judge(Protocol):
    """Who says which of two answers is better."""

    def prefers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """(N,): 1 where the first is better, 0 where the second is, 1/2 for a tie."""


class Model(Protocol):
    """A policy, as the gate asks it."""

    def log_probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> Any:
        """(N,) of each answer, summed over its tokens."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a candidate must keep to. A release states its own, they stand in its evidence."""

    prompts: int = 30
    """Fewer tell nothing, whatever their interval: the bootstrap of a handful that all agree has no width."""
    decided: int = 6
    """Prompts without a tie. Five that all agree come about by chance once in sixteen, among however many ties."""
    win_rate: float = 0.5
    """The lower end of the win rate's interval must be above it."""
    kl: float = 20.0
    """Nats an answer between candidate and baseline."""
    forgetting: float = 1.10
    """Perplexity on general text, candidate over baseline."""
    length: float = 2.0
    """Mean length of answers, candidate over baseline, or the inverse."""
    repetition: float = 0.5
    """Share of an answer's word pairs that it says again."""
    worst_organization: float = 0.4
    """Win rate on the prompts of the organization where it is lowest."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured. win_rate: over both orders, ties half; interval: 95 %, bootstrap over prompts."""

    prompts: int
    answers: int
    win_rate: float
    interval: tuple[float, float]
    kl: float
    perplexity: tuple[float, float] | None
    """(candidate, baseline) on general text, per token; None: no text was given."""
    length_ratio: float
    repetition: float
    decided: int | None = None
    """Prompts at which one side won; None: not counted, in evidence from before it was."""
    organizations: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """failed: what did not hold, in words; unknown: what was not measured."""

    passed: bool
    failed: tuple[str, ...]
    unknown: tuple[str, ...]


def check_no_leak(training: Sequence[str], gate: Sequence[str]) -> None:
    """Raise DataError for prompts that are in both: the gate would ask what was learned by heart. Names the count."""
    shared = {_plain(prompt) for prompt in training} & {_plain(prompt) for prompt in gate}
    if shared:
        raise DataError(
            f"PROMPTS_LEAK: {len(shared)} of {len(set(map(_plain, gate)))} gate prompts are in the training set too; "
            "take them out of one of the two"
        )


def check_other_prompts(training: Mapping[str, Any], gate: str, named: str) -> None:
    """Raise DataError for the prompt set that the run was trained on, and for a training set that it was not.

    training: lineage.json of the candidate's run, or nothing. gate, named: hashes of the gate's prompts, and of those
    that were said to be the training's; "": none were named.
    """
    trained = str(training.get("prompts") or "")
    if trained and trained == gate:
        raise DataError("PROMPTS_LEAK: the gate's prompts are those that the candidate was trained on; ask others")
    if trained and named and trained != named:
        raise DataError(
            f"PROMPTS_LEAK: the candidate was trained on the prompts {trained[:16]}, and {named[:16]} were named; name "
            "the file that it was trained on, so that it can be held against the gate's"
        )


def check_same_tokens(one: Any, other: Any) -> None:
    """Raise ModelError for two tokenizers: how likely an answer is would be counted over different tokens."""
    if one.get_vocab() != other.get_vocab() or one.chat_template != other.chat_template:
        raise ModelError(
            "candidate and baseline have different tokenizers, so that neither their distance nor their perplexity can "
            "be compared; evaluate models of one base"
        )


def whose(path: Path | None, prompts: Sequence[str]) -> list[str]:
    """Names in a file, one a line, each of the organization that asks the prompt in the same place; none: of nobody.

    Raises DataError for another number of names than prompts.
    """
    if path is None:
        return []
    names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if len(names) != len(prompts):
        raise DataError(f"{path} names {len(names)} organizations for {len(prompts)} prompts; give one a prompt")
    return names


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def measure(
    candidate: Model,
    baseline: Model,
    judge: Judge,
    prompts: Sequence[str],
    answers: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    *,
    general: Sequence[str] = (),
    organizations: Sequence[str] = (),
    tokens: Any = None,
    seed: int = 0,
) -> Figures:
    """answers: of candidate and baseline, as many to each prompt. organizations: whose each prompt is, or none.

    tokens: counts the tokens of a text of which the models give log-probabilities, for perplexity. Raises
    DataError for no prompts, or all the same answers.
    """
    ours, theirs = ([list(group) for group in side] for side in answers)
    if not prompts or len(ours) != len(prompts) or len(theirs) != len(prompts):
        raise DataError(f"the gate has {len(prompts)} prompts, and answers to {len(ours)} and {len(theirs)} of them")
    if ours == theirs:
        raise DataError(
            "CANDIDATES_IDENTICAL: candidate and baseline give the same answers; there is nothing to compare"
        )
    won = np.array([_won(judge, prompt, a, b) for prompt, a, b in zip(prompts, ours, theirs, strict=True)])
    rng = np.random.default_rng(seed)
    means = won[rng.integers(0, len(won), (_RESAMPLES, len(won)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    flat = [(prompt, answer) for prompt, group in zip(prompts, ours, strict=True) for answer in group]
    asked, said = [prompt for prompt, _ in flat], [answer for _, answer in flat]
    kl = float(np.mean(np.asarray(candidate.log_probabilities(asked, said) - baseline.log_probabilities(asked, said))))
    theirs_flat = [answer for group in theirs for answer in group]
    perplexity = None
    if general:
        count = sum(int(tokens(text)) for text in general)
        nothing = ["" for _ in general]
        perplexity = tuple(
            math.exp(-float(np.sum(np.asarray(model.log_probabilities(nothing, list(general))))) / max(1, count))
            for model in (candidate, baseline)
        )
    named = sorted(set(organizations))
    return Figures(
        prompts=len(prompts),
        answers=len(said),
        win_rate=float(won.mean()),
        interval=(float(low), float(high)),
        kl=kl,
        perplexity=None if perplexity is None else (perplexity[0], perplexity[1]),
        length_ratio=_mean_length(said) / max(1.0, _mean_length(theirs_flat)),
        repetition=float(np.mean([repetition(answer) for answer in said])),
        decided=int(np.sum(won != 0.5)),
        organizations={
            name: float(np.mean([w for w, own in zip(won, organizations, strict=True) if own == name]))
            for name in named
        },
        seed=seed,
    )


def _won(judge: Judge, prompt: str, ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Over all pairs of answers, in both orders."""
    first = [a for a in ours for _ in theirs]
    second = [b for _ in ours for b in theirs]
    asked = [prompt] * len(first)
    there = judge.prefers(asked, first, second)
    back = 1.0 - judge.prefers(asked, second, first)
    return float((there.mean() + back.mean()) / 2)


def _mean_length(answers: Sequence[str]) -> float:
    return float(np.mean([len(answer) for answer in answers]))


def repetition(text: str) -> float:
    """Share of word pairs that occurred before in the text, 0 to 1.

    >>> repetition("a b a b a b"), repetition("a b c d")
    (0.6, 0.0)
    """
    words = text.split()
    pairs = list(itertools.pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def decide(figures: Figures, thresholds: Thresholds, *, said_by_nodes: Mapping[str, Any] | None = None) -> Verdict:
    """Every threshold by itself; what was not measured fails nothing and is named.

    said_by_nodes: opinions_of_nodes.read_opinions of a gate that nodes answered.
    """
    failed, unknown = [], []
    if figures.prompts < thresholds.prompts:
        failed.append(f"{figures.prompts} prompts, too few to tell; at least {thresholds.prompts} are asked")
    if figures.decided is not None and figures.decided < thresholds.decided:
        failed.append(
            f"one side won at {figures.decided} prompts and the others are ties; {thresholds.decided} are the least "
            "that can tell"
        )
    if not figures.interval[0] > thresholds.win_rate:
        failed.append(
            f"win rate {figures.win_rate:.3f}, interval {figures.interval[0]:.3f} to {figures.interval[1]:.3f}: "
            f"its lower end is not above {thresholds.win_rate:g}"
        )
    if not figures.kl <= thresholds.kl:  # a NaN holds to nothing
        failed.append(f"{figures.kl:.2f} nats an answer from the baseline, more than {thresholds.kl:g}")
    if figures.perplexity is None:
        unknown.append("forgetting: no general text was given")
    elif not figures.perplexity[0] <= thresholds.forgetting * figures.perplexity[1]:
        failed.append(
            f"perplexity on general text {figures.perplexity[0]:.2f} instead of {figures.perplexity[1]:.2f}, more than "
            f"{thresholds.forgetting:g} times"
        )
    if not 1 / thresholds.length <= figures.length_ratio <= thresholds.length:
        failed.append(f"answers are {figures.length_ratio:.2f} times as long; at most {thresholds.length:g} is allowed")
    if figures.repetition > thresholds.repetition:
        failed.append(
            f"{figures.repetition:.0%} of an answer's word pairs are repeated, more than {thresholds.repetition:.0%}"
        )
    if figures.decided is None:
        unknown.append("at how many prompts one side won: it was not counted")
    if not figures.organizations:
        unknown.append("the worst organization: no prompt says whose it is")
    elif min(figures.organizations.values()) < thresholds.worst_organization:
        worst = min(figures.organizations, key=lambda name: figures.organizations[name])
        failed.append(
            f"win rate {figures.organizations[worst]:.3f} at {worst}, below {thresholds.worst_organization:g}"
        )
    if said_by_nodes is None:
        unknown.append("what organizations' own judges say: no node was asked")
    else:
        failed += faults(said_by_nodes, win_rate=thresholds.win_rate)
    return Verdict(not failed, tuple(failed), tuple(unknown))


def evidence_of(
    figures: Figures, thresholds: Thresholds, verdict: Verdict, *, lineage: Mapping[str, Any], made_at: float
) -> dict[str, Any]:
    """The document that is signed. lineage: hashes of specification, base, adapter, reward model, prompts, and the
    privacy that was spent on them."""
    return {
        "version": 1,
        "made_at": made_at,
        "lineage": dict(lineage),
        "figures": asdict(figures),
        "thresholds": asdict(thresholds),
        "passed": verdict.passed,
        "failed": list(verdict.failed),
        "not_known": list(verdict.unknown),
    }


def sign_evidence(evidence: Mapping[str, Any], key: SigningKey) -> bytes:
    """Canonical bytes of the document and its signature."""
    import json

    return sign_document(json.loads(json.dumps(evidence)), DOMAIN, key)


def open_evidence(data: bytes, public: bytes) -> dict[str, Any]:
    """The document, verified. Raises IdentityError."""
    return open_document(data, DOMAIN, public)


class RewardJudge:
    """Prefers what a reward model scores higher."""

    def __init__(self, reward: Any) -> None:
        self._reward = reward

    def prefers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """By the sign of the difference."""
        difference = self._reward.scores(prompts, first) - self._reward.scores(prompts, second)
        return np.asarray((np.sign(difference) + 1) / 2, dtype=np.float64)
