"""Disagreements: a further person's decision on pairs that annotators left open, and how far each agrees with others.

settled = settle(comparisons, undecided, adjudicated)   # [(better, worse)] of the pairs that were settled
"""

from collections import Counter
from collections.abc import Collection, Sequence

from confide.errors import DataError

from confide_server.rlhf.annotation.preferences import Comparison, standing

PairIds = tuple[str, str]


def settle(
    comparisons: Sequence[Comparison], open_pairs: Collection[PairIds], adjudicated: Sequence[Comparison]
) -> list[PairIds]:
    """(better, worse) of each open pair of which an adjudicator prefers an answer; a tie or a skip leaves it open.

    Raises DataError ADJUDICATOR_JUDGED for who judged the pair as annotator too, ADJUDICATED_TWICE for two decisions,
    NOTHING_TO_ADJUDICATE for a pair on which the annotators agree, or that nobody judged.
    """
    judges = {(one.annotator, one.pair) for one in comparisons}
    left, settled = set(open_pairs), dict[PairIds, PairIds]()
    seen = set[PairIds]()
    for one in standing(adjudicated):
        if (one.annotator, one.pair) in judges:
            raise DataError(
                f"ADJUDICATOR_JUDGED: {one.annotator} judged the pair {one.pair[0][:12]}, {one.pair[1][:12]} as an "
                "annotator; let somebody else decide"
            )
        if one.pair in seen:
            raise DataError(f"ADJUDICATED_TWICE: the pair {one.pair[0][:12]}, {one.pair[1][:12]} has two decisions")
        seen.add(one.pair)
        if one.pair not in left:
            raise DataError(
                f"NOTHING_TO_ADJUDICATE: the annotators did not leave the pair {one.pair[0][:12]}, {one.pair[1][:12]} "
                "open; leave the decision out"
            )
        if one.preferred is not None:
            settled[one.pair] = (one.preferred, one.pair[0] if one.preferred == one.pair[1] else one.pair[1])
    return list(settled.values())


def agreement_with_others(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """By annotator: the share of judged pairs on which they chose what most others chose; nobody without such a pair.

    Of an annotator's pair the others count alone; where they are of two minds equally, the pair says nothing.
    """
    votes: dict[PairIds, dict[str, str]] = {}
    for one in comparisons:
        if one.choice != "skip":
            votes.setdefault(one.pair, {})[one.annotator] = one.preferred or one.choice
    found: dict[str, list[bool]] = {}
    for cast in votes.values():
        for name, choice in cast.items():
            others = Counter(other for person, other in cast.items() if person != name).most_common(2)
            if others and (len(others) == 1 or others[0][1] > others[1][1]):
                found.setdefault(name, []).append(choice == others[0][0])
    return {name: sum(same) / len(same) for name, same in sorted(found.items())}
