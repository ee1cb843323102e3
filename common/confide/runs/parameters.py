"""n, c, q, t, d: who may collude, who may be missing, and what is promised (docs/sealing.md, parameters).

>>> parameters = Parameters.of(members=5, colluding=1, min_cohort=3)
>>> parameters.quorum, parameters.threshold, parameters.missing, parameters.smallest_list
(4, 4, 1, 4)
>>> print(words(parameters))
with 5 organizations, the coordinator and any 1 of them together learn nothing about another beyond the sum of ...
"""

from collections.abc import Collection
from dataclasses import dataclass

from confide.errors import FailureName, ProtocolFailure
from confide.runs.specification import Specification

MAX_MEMBERS = 100


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of one epoch; only possible combinations can be made.

    Guarantee: two quorums share more than `colluding` members, and `colluding` members cannot reconstruct a secret.
    """

    members: int
    """n: members of the epoch, each holding a share."""
    colluding: int
    """c: nodes that may collude with the coordinator, be cloned or rolled back."""
    quorum: int
    """q: signatures that make a list."""
    threshold: int
    """t: shares that reconstruct a secret."""
    missing: int
    """d: members that may be missing when shares are revealed."""
    min_cohort: int
    """Fewest organizations in a sum."""

    def __post_init__(self) -> None:
        n, c = self.members, self.colluding
        _require(2 <= n <= MAX_MEMBERS, f"{n} members; sealing needs 2 to {MAX_MEMBERS}")
        _require(n >= self.min_cohort, f"{n} members, and min_cohort is {self.min_cohort}; more have to take part")
        _require(c >= 0, f"colluding is {c}; it is a number of nodes")
        _require(c <= n - 2, f"colluding is {c} of {n}; at least two must be honest, so at most {max(0, n - 2)}")
        _require(self.quorum >= (n + c) // 2 + 1, f"quorum {self.quorum}: two of them may share only colluding nodes")
        _require(c < self.threshold, f"threshold {self.threshold}: {c} colluding nodes could reconstruct secrets")
        fewest = max(self.quorum, self.threshold)
        _require(
            0 <= self.missing <= n - fewest,
            f"max_missing is {self.missing}; with {n} members and {c} colluding at most {n - fewest} may be missing",
        )

    @classmethod
    def of(cls, *, members: int, colluding: int, min_cohort: int, max_missing: int | None = None) -> "Parameters":
        """q = t = floor((n + c)/2) + 1, d as given or the largest possible. Raises PARAMETERS_IMPOSSIBLE."""
        quorum = (members + colluding) // 2 + 1
        largest = max(0, members - quorum)
        return cls(
            members=members,
            colluding=colluding,
            quorum=quorum,
            threshold=quorum,
            missing=largest if max_missing is None else max_missing,
            min_cohort=min_cohort,
        )

    @property
    def smallest_list(self) -> int:
        """Fewest members that a list may have."""
        return max(self.min_cohort, self.members - self.missing)


def colluding(specification: Specification, eligible: int) -> int:
    """c: as specified, else max(1, floor((n - 1) / 3)) with n = `eligible`.

    eligible: nodes of the roster that may be in one sum of this run. It is not the size of an epoch, since whoever
    leaves members out of one would lower c by it. Where all nodes add the noise together it is split for the smallest
    cohort, before anybody knows how many come: n is min_cohort there.
    """
    given = specification.sealing.colluding
    if given is not None:
        return given
    shared = specification.privacy.shared
    return max(1, ((specification.federation.min_cohort if shared else eligible) - 1) // 3)


def eligible(specification: Specification, members: Collection[str]) -> int:
    """How many of `members` (the active nodes of one group) the run may sum."""
    named = specification.federation.nodes
    return sum(name in named for name in members) if named else len(members)


def planned(specification: Specification, members: int) -> Parameters:
    """For `confide run plan`: refuses what the specification asks for when it is impossible with `members` nodes."""
    sealing, federation = specification.sealing, specification.federation
    return Parameters.of(
        members=members,
        colluding=colluding(specification, members),
        min_cohort=federation.min_cohort,
        max_missing=sealing.max_missing,
    )


def for_epoch(
    specification: Specification,
    members: int,
    *,
    eligible: int = 0,
    min_cohort: int = 0,
    waive_colluding: bool = False,
) -> Parameters:
    """For an epoch of `members`: as planned, with d lowered where fewer take part than were planned.

    eligible: as for `colluding`; default `members`.
    min_cohort: the node's own policy, where that is higher than the specification's.
    waive_colluding: the node's policy accepts c = 0. Raises PARAMETERS_IMPOSSIBLE.
    """
    sealing, federation = specification.sealing, specification.federation
    c = colluding(specification, max(eligible, members))
    _require(
        c >= 1 or waive_colluding,
        "colluding is 0, and this node's policy asks for at least 1: the coordinator and one other node must not "
        "learn anything together. Raise sealing.colluding, or waive it in the policy",
    )
    largest = Parameters.of(members=members, colluding=c, min_cohort=max(min_cohort, federation.min_cohort))
    if sealing.max_missing is None or sealing.max_missing >= largest.missing:
        return largest
    return Parameters.of(
        members=members,
        colluding=c,
        min_cohort=largest.min_cohort,
        max_missing=sealing.max_missing,
    )


def too_few(specification: Specification, evaluate_only: bool) -> FailureName:
    """What a list smaller than the smallest is called: where all nodes add the noise together it would not suffice."""
    shared = specification.privacy.shared and not evaluate_only
    return FailureName.NOISE_INSUFFICIENT if shared else FailureName.LIST_TOO_SMALL


def words(parameters: Parameters) -> str:
    """What is promised, as a sentence for `confide run plan` and the manifest."""
    n, c, d = parameters.members, parameters.colluding, parameters.missing
    absent = "none may be missing" if d == 0 else f"{d} may be missing"
    if n == 2:
        return (
            "with 2 organizations, the coordinator alone learns nothing about either beyond their sum, but each of the "
            f"two learns the other's update from it; {absent}"
        )
    if c == 0:
        return (
            f"with {n} organizations, the coordinator alone learns nothing about any of them beyond their sum, but "
            f"together with any one organization it is not held to that; {absent}"
        )
    return (
        f"with {n} organizations, the coordinator and any {c} of them together learn nothing about another beyond the "
        f"sum of the others; {absent}"
    )


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise ProtocolFailure(FailureName.PARAMETERS_IMPOSSIBLE, detail)
