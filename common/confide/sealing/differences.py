"""What two sums tell: which lists of names may be signed beside one another (docs/sealing.md, differences of sums).

A list that is large enough promises nothing about two lists. So the signed roster divides the members into blocks, and
a list is a union of whole blocks, the same blocks in every run; whatever the coordinator subtracts then is again a sum
over whole blocks. `Memory` (revealed.py) adds what a node has revealed for already.

>>> blocks = Blocks({"": ("a", "b", "c"), "new": ("d", "e", "f")}, colluding=1)
>>> blocks.whole(("a", "b", "c", "d", "f"))
('a', 'b', 'c')
>>> blocks.check(("a", "b", "c", "d", "f"))
Traceback (most recent call last):
confide.errors.ProtocolFailure: BLOCK_SPLIT: e of block 'new' is not among them, which d is of; ...
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from confide.errors import FailureName, ProtocolFailure
from confide.identity.roster import Roster
from confide.runs.specification import Specification

REMEDY = (
    'Wait for the member, or submit the run anew with sealing.differences = "accepted", which every node\'s policy '
    "has to accept"
)


@dataclass(frozen=True)
class Blocks:
    """The blocks of one group. Names of a block stand in order."""

    members: Mapping[str, tuple[str, ...]]
    colluding: int
    """c_d: how many of one block may collude."""

    @classmethod
    def of(cls, specification: Specification, roster: Roster, group: str) -> "Blocks":
        """As the root signed them, for the group in which a sum is made."""
        return cls(roster.blocks(group), specification.sealing.block_colluding)

    @property
    def fewest(self) -> int:
        """Members that a block has at least: two more than may collude. One block alone may be smaller."""
        return self.colluding + 2

    def is_small(self, block: str) -> bool:
        """Whether too few stand in it to be summed beside others."""
        return len(self.members) > 1 and len(self.members[block]) < self.fewest

    def whole(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of `names` whose whole block is among them, in order."""
        here = set(names)
        kept = (them for block, them in self.members.items() if set(them) <= here and not self.is_small(block))
        return tuple(sorted(name for them in kept for name in them))

    def check(self, names: Collection[str]) -> None:
        """Raise BLOCK_SPLIT unless `names` is a union of whole blocks, each large enough.

        Guarantee: two sums over such lists, in whatever runs, differ by whole blocks only, so by at least two honest
        organizations while at most c_d of a block collude and the root keeps the blocks as they are.
        """
        here = set(names)
        for block, them in self.members.items():
            inside = here & set(them)
            if not inside:
                continue
            if inside != set(them):
                raise split(
                    f"{min(set(them) - inside)} of block {block!r} is not among them, which {min(inside)} is of; the "
                    f"difference to a sum over the whole block would show it. {REMEDY}"
                )
            if self.is_small(block):
                raise split(
                    f"block {block!r} of the roster has {len(them)} members; beside other blocks it needs "
                    f"{self.fewest}, so that {self.colluding} of them may collude. {REMEDY}"
                )


def atoms(lists: Iterable[Collection[str]]) -> set[frozenset[str]]:
    """The smallest sets that all the lists are unions of: who is in exactly the same lists stands together.

    >>> sorted(map(sorted, atoms([("a", "b", "c"), ("a", "b")])))
    [['a', 'b'], ['c']]
    """
    known = [frozenset(names) for names in lists]
    signature: dict[str, tuple[bool, ...]] = {
        name: tuple(name in names for names in known) for name in frozenset().union(*known)
    }
    together: dict[tuple[bool, ...], set[str]] = {}
    for name, where in signature.items():
        together.setdefault(where, set()).add(name)
    return {frozenset(names) for names in together.values()}


def check_split(known: Collection[Collection[str]], names: Collection[str], fewest: int) -> None:
    """Raise BLOCK_SPLIT when a sum over `names`, beside those over the `known` lists, would set few members apart.

    Blocks change when the root takes a member in or revokes one: the roster then says what is whole, and only memory
    says what it was. A list that splits nothing further than it was split already is fine.
    """
    if not known:
        return
    before = atoms(known)
    small = [part for part in atoms([*known, names]) - before if len(part) < fewest]
    if small:
        part = min(small, key=lambda each: (len(each), min(each)))
        raise split(
            f"beside the sums that this node has revealed for, one over these {len(set(names))} would set "
            f"{', '.join(sorted(part))} apart; at least {fewest} have to stay together. {REMEDY}"
        )


def check_named(specification: Specification, roster: Roster) -> None:
    """Raise BLOCK_SPLIT when the nodes that a specification names are no whole blocks: its sums could never be made.

    Nothing is asked of a specification that names nobody, or whose differences are bounded otherwise. A name that the
    roster does not know raises IdentityError.
    """
    named = specification.federation.nodes
    if not named or not specification.refuses_differences:
        return
    by_group: dict[str, list[str]] = {}
    for name in named:
        by_group.setdefault(roster.member(name).group, []).append(name)
    for group, names in sorted(by_group.items()):
        Blocks.of(specification, roster, group).check(names)


def still_away(
    blocks: Blocks, bound: Collection[str], present: Collection[str], out: Mapping[str, str], min_cohort: int
) -> tuple[str, ...]:
    """Who has to come before a list of whole blocks can be made, in order; for a coordinator that waits.

    bound: the only list that may be made, when there is one. out: who never comes, and why.
    Raises BLOCK_SPLIT when too many of those who are needed are among them.
    """
    needed = [tuple(bound)] if bound else [them for block, them in blocks.members.items() if not blocks.is_small(block)]
    possible = [them for them in needed if not set(them) & set(out)]
    if sum(map(len, possible)) < (len(bound) or min_cohort):
        lost = sorted({name for them in needed for name in them} & set(out))
        who = (
            f"{lost[0]} is not of this run any more ({out[lost[0]]})"
            if lost
            else "no block of the roster is large enough"
        )
        raise split(f"{who}; its block is not summed without it. {REMEDY}")
    begun = [them for them in possible if set(them) & set(present)]
    wanted = begun if sum(map(len, begun)) >= min_cohort else possible
    return tuple(sorted({name for them in wanted for name in them} - set(present)))


def differences_kind(specification: Specification) -> str:
    """What bounds the difference of two sums, for manifests: "refused", "accepted" (nothing) or "noised"."""
    if specification.privacy.unit == "organization":
        return "noised"
    return specification.sealing.differences


def split(detail: str) -> ProtocolFailure:
    """A list or cohort that takes a block apart."""
    return ProtocolFailure(FailureName.BLOCK_SPLIT, detail)
