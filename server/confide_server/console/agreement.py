"""How far annotators agree who judged the same pairs, for administrators: an annotator judges blind, of others too.

>>> a = Comparison(first="0" * 64, second="1" * 64, choice="first", annotator="a")
>>> b = Comparison(first="1" * 64, second="0" * 64, choice="second", annotator="b")
>>> agreement([a, b], total=4)[0]
Annotator(name='a', judged=1, total=4, shared=1, alike=1)
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from confide_server.rlhf.annotation.preferences import Comparison
from confide_server.rlhf.annotation.snapshots import krippendorff_alpha


@dataclass(frozen=True)
class Annotator:
    """judged of `total` pairs; `shared`: judgements of others on the same pairs, of which `alike` say the same."""

    name: str
    judged: int
    total: int
    shared: int
    alike: int


def agreement(made: Sequence[Comparison], *, total: int) -> list[Annotator]:
    """By name. A skipped pair counts as judged and agrees with nobody. made: those that stand."""
    by_pair: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    judged: dict[str, int] = defaultdict(int)
    for one in made:
        judged[one.annotator] += 1
        if one.choice != "skip":
            by_pair[one.pair][one.annotator] = one.preferred or one.choice
    shared: dict[str, int] = defaultdict(int)
    alike: dict[str, int] = defaultdict(int)
    for said in by_pair.values():
        for name, choice in said.items():
            shared[name] += len(said) - 1
            alike[name] += sum(other == choice for other in said.values()) - 1
    return [Annotator(name, judged[name], total, shared[name], alike[name]) for name in sorted(judged)]


def alpha(made: Sequence[Comparison]) -> float | None:
    """Krippendorff's, nominal; None where no pair has two judgements, all are alike, or the extra `rlhf` is missing."""
    try:
        return krippendorff_alpha(made)
    except ImportError:
        return None
