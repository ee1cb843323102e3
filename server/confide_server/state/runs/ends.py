"""How runs ended, told again to a node that missed it: the very words of the run's last message, signed anew.

    RunEnds(database, member).of(["1f" * 16])

A run has ended when the event of its end is recorded. Whatever other state it is in, also one that a later release
knows, it goes on, and nothing is said of it: a node erases what cannot be made again.
"""

from collections.abc import Sequence

from confide.identity.member import LocalMember
from confide.identity.submission import STOPPED, SignedEnd, sign_end
from confide.proto import fleet_pb2
from sqlalchemy import select

from confide_server.state.database import Database, Event, Run

MOST_ASKED = 200
"""Runs in one question."""
_KINDS = ("run_finished", "run_failed", "run_stopped")


def end_message(signed: SignedEnd) -> fleet_pb2.End:
    """The message of a run's end, with its signatures."""
    return fleet_pb2.End(
        slot=0,
        committed=not signed.failure,
        failure=signed.failure,
        run_ended=True,
        coordinator=signed.coordinator,
        signature=signed.signature,
        stopped_by=signed.stopped_by,
        stop_signature=signed.stop_signature,
    )


class RunEnds:
    """Answers from the coordinator's database, over its signature."""

    def __init__(self, database: Database, member: LocalMember) -> None:
        self._database = database
        self._member = member

    def of(self, run_ids: Sequence[str]) -> fleet_pb2.RunEnds:
        """Of the first `MOST_ASKED` of them."""
        asked = list(dict.fromkeys(run_ids))[:MOST_ASKED]
        with self._database.reading() as session:
            columns = select(Run.run_id, Run.stop_requested_by, Run.stop_signature).where(Run.run_id.in_(asked))
            known = {row.run_id: row for row in session.execute(columns)}
            query = select(Event.run_id, Event.kind, Event.data).where(Event.run_id.in_(known), Event.kind.in_(_KINDS))
            ended = session.execute(query).all()
        said = [
            SignedEnd(run_id, STOPPED, known[run_id].stop_requested_by or "", known[run_id].stop_signature)
            if kind == "run_stopped"
            else SignedEnd(run_id, data["code"] if kind == "run_failed" else "")
            for run_id, kind, data in ended
        ]
        return fleet_pb2.RunEnds(
            ends=[fleet_pb2.RunEnd(run_id=end.run_id, end=end_message(self._signed(end))) for end in said],
            unknown=[run_id for run_id in asked if run_id not in known],
        )

    def _signed(self, end: SignedEnd) -> SignedEnd:
        return sign_end(self._member.identity, self._member.name, end)
