"""With whom a sum may be made: the roster, the specification's names, blocks, and what was revealed for this model."""

from collections.abc import Collection, Mapping

from confide.errors import FailureName, ProtocolFailure
from confide.identity.roster import Role, Roster
from confide.runs.parameters import eligible
from confide.runs.specification import Specification
from confide.sealing.collector.attendance import Attendance
from confide.sealing.collector.state import CollectorState
from confide.sealing.differences import Blocks, still_away


class Cohort:
    """Of one group of one run."""

    def __init__(
        self, specification: Specification, roster: Roster, group: str, state: CollectorState, attendance: Attendance
    ) -> None:
        self.specification = specification
        self.roster = roster
        self.guarded = specification.refuses_differences
        """Whether a sum must take no block apart."""
        self._group = group
        self._state = state
        self._attendance = attendance

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster. Raises ROSTER_STALE for an older one."""
        if roster.version < self.roster.version:
            raise ProtocolFailure(
                FailureName.ROSTER_STALE,
                f"version {roster.version} of the roster came; version {self.roster.version} is in use",
            )
        self.roster = roster

    def standing(self) -> set[str]:
        """Nodes that the roster does not call revoked."""
        return {member.name for member in self.roster.active(Role.NODE)}

    def identity_key(self, name: str) -> bytes:
        """A member's."""
        return bytes.fromhex(self.roster.member(name).identity_key)

    @property
    def counted(self) -> int:
        """Nodes of the group that the run may sum: c follows from them."""
        return eligible(self.specification, self.roster.groups.get(self._group, ()))

    @property
    def _blocks(self) -> Blocks:
        return Blocks.of(self.specification, self.roster, self._group)

    def eligible(self, present: Collection[str]) -> tuple[str, ...]:
        """Who of those present makes an epoch; where differences are refused, whole blocks of them."""
        named = set(self.specification.federation.nodes) or set(present)
        left_out = set(self._attendance.excluded) | self._state.convicted
        return self.summable((set(present) & named & self.standing()) - left_out)

    def summable(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of `names` that may be summed: all, or whole blocks, or after a failed opening the very same list."""
        if not self.guarded:
            return tuple(sorted(names))
        whole, bound = self._blocks.whole(names), self._state.bound
        return whole if not bound else bound if set(bound) <= set(whole) else ()

    def waits_for(self, present: tuple[str, ...], gone: Mapping[str, str]) -> tuple[str, ...]:
        """Without whom no sum can be made that takes no block apart; empty when there can be one.

        gone: who never comes, and why. Raises BLOCK_SPLIT when those who are needed are among them.
        """
        fewest = self.specification.federation.min_cohort
        if not self.guarded or len(self.eligible(present)) >= fewest:
            return ()
        out = dict(gone) | self._attendance.excluded | dict.fromkeys(self._state.convicted, "it was convicted")
        if named := set(self.specification.federation.nodes):
            strangers = {name for them in self._blocks.members.values() for name in them} - named
            out |= dict.fromkeys(strangers, "the specification does not name it")
        return still_away(self._blocks, self._state.bound, present, out, fewest)
