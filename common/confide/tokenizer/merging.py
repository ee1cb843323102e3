"""The outer step of a tokenizer run: from the sum of counts to the next merges and the next candidates.

A public, deterministic function of the state and the opened sum. A pair's count never rises when others merge. So a
candidate whose count is low stays low, and a new pair (n, x) with n = (a, b) is at most as frequent as n and as
(b, x): the pairs that can still matter are few, and are found without asking for all of them.

Guarantee: `check_step` accepts only what this rule can make from the last state for *some* sum. Whether the sum was
the true one, no node can see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import UpdateError
from confide.tokenizer.state import Keys, Pair, TokenizerState, key_of, left_of, right_of
from confide.tokenizer.terms import Terms

Counts = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Counts of the sum below which nothing is done.

    merge: a pair must reach it to become a token. keep: to be counted again.
    """

    merge: float
    keep: float


def next_state(state: TokenizerState, counts: Counts, terms: Terms, floors: Floors) -> TokenizerState:
    """counts: of the state's candidates over all contributors, shape (k,), as opened: rounded, noised or not."""
    merges = _chosen(state, counts, terms, floors.merge)
    kept = counts >= floors.keep
    keys, bounds = state.candidates[kept], counts[kept]
    merged = [float(counts[np.searchsorted(state.candidates, key_of(*pair))]) for pair in merges]
    keys, bounds = _derived(keys, bounds, state.size, merges, merged)
    # A stable sort by count over ascending keys: ties go to the lower pair.
    best = np.sort(np.argsort(-bounds, kind="stable")[: terms.candidates])
    return TokenizerState(state.round + 1, (*state.merges, *merges), keys[best])


def _chosen(state: TokenizerState, counts: Counts, terms: Terms, floor: float) -> list[Pair]:
    """The most frequent candidates, none of which changes another's count: no occurrence of two of them overlaps."""
    room = terms.tokens_after(state.round + 1) - state.size
    chosen: list[Pair] = []
    lefts: set[int] = set()
    rights: set[int] = set()
    known = {*state.tokens, *terms.special_tokens}
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= floor]
    for left, right in zip(
        left_of(state.candidates[order]).tolist(), right_of(state.candidates[order]).tolist(), strict=True
    ):
        if len(chosen) >= room:
            break
        token = state.tokens[left] + state.tokens[right]
        if left in rights or right in lefts or token in known or len(token) > terms.max_token_bytes:
            continue
        chosen.append((left, right))
        lefts.add(left)
        rights.add(right)
        known.add(token)
    return chosen


def _derived(
    keys: Keys, bounds: Counts, size: int, merges: Sequence[Pair], merged: Sequence[float]
) -> tuple[Keys, Counts]:
    """The pairs and what the merges make of them, ascending, with upper bounds of their counts.

    merged: the count of each merge. Merge i becomes token size + i.
    """
    for token, ((left, right), count) in enumerate(zip(merges, merged, strict=True), start=size):
        after = left_of(keys) == right
        keys = np.concatenate([keys, key_of(token, right_of(keys[after]))])
        bounds = np.concatenate([bounds, np.minimum(bounds[after], count)])
        before = right_of(keys) == left
        keys = np.concatenate([keys, key_of(left_of(keys[before]), token)])
        bounds = np.concatenate([bounds, np.minimum(bounds[before], count)])
    # Only now: a token that merges with itself comes before and after itself by that very pair.
    standing = ~np.isin(keys, [key_of(*pair) for pair in merges])
    keys, bounds = keys[standing], bounds[standing]
    order = np.argsort(keys, kind="stable")
    return keys[order], bounds[order]


def check_step(last: TokenizerState, new: TokenizerState, terms: Terms) -> None:
    """Raise UpdateError unless `new` can follow from `last`. Both were parsed under the same terms.

    Over one round all is checked; over several, which a node missed, only that merges were appended.
    """
    _require(new.round > last.round, f"round {new.round} does not come after round {last.round}")
    _require(new.merges[: len(last.merges)] == last.merges, "merges were changed or taken back")
    if new.round > last.round + 1:
        return
    added = new.merges[len(last.merges) :]
    counted = np.isin([key_of(*pair) for pair in added], last.candidates)
    _require(bool(counted.all()), "a merge was not among the pairs that were counted")
    lefts, rights = {left for left, _ in added}, {right for _, right in added}
    # A pair of one token with itself overlaps itself, which is no conflict of two merges.
    conflicts = {a for a, b in added if a != b} & rights | {b for a, b in added if a != b} & lefts
    _require(not conflicts, "two merges of one round overlap")
    reachable, _ = _derived(last.candidates, np.ones(len(last.candidates)), last.size, added, [1.0] * len(added))
    _require(
        bool(np.isin(new.candidates, reachable).all()),
        "a pair is to be counted that does not follow from those counted before and the merges",
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UpdateError(f"the tokenizer state does not follow from the last one: {what}")
