"""How a newer roster comes into this coordinator, whoever brings it: what counts is the root's signature."""

from collections.abc import Callable

from confide.identity.roster import Roster, RosterStore


class RosterIntake:
    """The one way in; shared by the control port's services."""

    def __init__(self, store: RosterStore, on_roster: Callable[[Roster], None] | None = None) -> None:
        """on_roster: told of each newer one, after it is durable and before whoever brought it hears of it."""
        self._store = store
        self._on_roster = on_roster

    def accept(self, signed: bytes) -> Roster:
        """Take it if it is newer. Raises ROSTER_STALE or IdentityError as RosterStore.accept."""
        before = self._store.current.version
        roster = self._store.accept(signed)
        if roster.version != before and self._on_roster is not None:
            self._on_roster(roster)
        return roster
