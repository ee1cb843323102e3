"""The newest roster that a member has seen, and with whom it lets itself be summed."""

from collections.abc import Collection, Iterable

from confide.errors import FailureName, ProtocolFailure
from confide.identity.roster import Roster
from confide.sealing.differences import Blocks
from confide.sealing.member.context import MemberContext


class HeldRoster:
    """Goes up only; its version is remembered durably."""

    def __init__(self, context: MemberContext, roster: Roster) -> None:
        """Raises ROSTER_STALE for one that is older than what was seen before."""
        self._context = context
        self.current = roster
        self.update(roster)

    def update(self, roster: Roster) -> None:
        """Use a newer roster. Raises ROSTER_STALE for an older one, or another one of the same version."""
        log = self._context.log
        version, sha256 = log.roster
        if roster.version < version or (roster.version == version and roster.digest != sha256):
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"version {roster.version} of the roster came, {roster.digest[:16]}; version {version}, {sha256[:16]}, "
                "was seen already",
            )
        if roster.version > version:
            log.write("roster", version=roster.version, sha256=roster.digest)
        self.current = roster

    def all_standing(self, names: Iterable[str]) -> bool:
        """Whether none of these members was revoked."""
        return set(names) <= {member.name for member in self.current.members if member.revoked_at is None}

    def check_fresh(self) -> None:
        """Raise ROSTER_STALE when it has expired."""
        self.current.check_fresh(self._context.clock())

    def check_own(self) -> None:
        """`check_fresh`, and this node is in it. Raises as Roster.member does."""
        self.check_fresh()
        self.current.member(self._context.node)

    @property
    def group(self) -> str:
        """This node's."""
        return self.current.member(self._context.node).group

    @property
    def group_members(self) -> tuple[str, ...]:
        """Active nodes of this node's group."""
        return tuple(self.current.groups[self.group])

    def check_cohort(self, names: Collection[str]) -> None:
        """Raise COHORT_NOT_EPOCH or BLOCK_SPLIT unless an epoch of these members may be made."""
        allowed = self._context.specification.federation.nodes
        strangers = [name for name in names if allowed and name not in allowed]
        if strangers:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH, f"{strangers[0]} is not among the nodes that the specification names"
            )
        group = self.group
        others = [name for name in names if self.current.member(name).group != group]
        if others:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH,
                f"{others[0]} is of group {self.current.member(others[0]).group!r} in the roster that the root signed, "
                f"this node of {group!r}; it is summed with its own group only",
            )
        self.check_blocks(names)

    def check_blocks(self, names: Collection[str]) -> None:
        """Raise BLOCK_SPLIT unless these members may be summed together, by the roster's blocks and what was revealed.

        Nothing is refused where something else bounds what two sums tell, or this node accepts it.
        """
        if self._context.guards_differences:
            blocks = Blocks.of(self._context.specification, self.current, self.group)
            blocks.check(names)
            self._context.memory.check_split(names, blocks.fewest)
