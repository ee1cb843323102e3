"""Members, rosters, who asks to come in, and what organizations' receipts say was spent."""

from confide.proto import admin_pb2 as pb
from confide.transport.admin_calls import AdminCalls, new_key


class MemberCalls(AdminCalls):
    """What is asked of members, and handed over that the root signed."""

    def list_members(self, role: str = "") -> pb.MemberPage:
        """By name."""
        return self._ask(self._admin.ListMembers, pb.ListMembersRequest(role=role), pb.MemberPage)

    def get_signed_roster(self, version: int = 0) -> pb.SignedRosterReply:
        """As the root signed it; 0 is the newest."""
        return self._ask(self._admin.GetSignedRoster, pb.GetSignedRosterRequest(version=version), pb.SignedRosterReply)

    def list_rosters(self, *, limit: int = 50, before: int = 0) -> pb.RosterPage:
        """Newest first."""
        return self._ask(
            self._admin.ListRosters, pb.ListRostersRequest(limit=limit, before_version=before), pb.RosterPage
        )

    def publish(self, roster: bytes, *, key: str = "") -> pb.RosterTaken:
        """Accept a newer roster here, and hand it to the coordinator, which need not know this caller yet."""
        accepted = self.publish_roster(roster)
        if accepted.member(self._claim.name).revoked_at is not None:  # it is there, and this caller is out
            return pb.RosterTaken(version=accepted.version)
        return self.take_roster(roster, key=key)

    def take_roster(self, roster: bytes, *, key: str = "") -> pb.RosterTaken:
        """Hand over a newer roster that the root signed: who is revoked in it is cut off at once."""
        return self._ask(
            self._admin.TakeRoster,
            pb.TakeRosterRequest(roster=roster, idempotency_key=key or new_key()),
            pb.RosterTaken,
        )

    def list_enrolments(self, after: str = "") -> pb.EnrolmentPage:
        """Who asks to come in, by name; `next_after` brings the next page."""
        return self._ask(self._admin.ListEnrolments, pb.ListEnrolmentsRequest(after=after), pb.EnrolmentPage)

    def all_enrolments(self) -> list[pb.EnrolmentLine]:
        """Everybody who asks to come in, page by page."""
        asking: list[pb.EnrolmentLine] = []
        while True:
            page = self.list_enrolments(asking[-1].name if asking else "")
            asking += page.enrolments
            if not page.next_after or not page.enrolments:
                return asking

    def admit_member(self, admission: bytes, *, key: str = "") -> pb.MemberAdmitted:
        """Hand over the root's answer to a request."""
        request = pb.AdmitMemberRequest(admission=admission, idempotency_key=key or new_key())
        return self._ask(self._admin.AdmitMember, request, pb.MemberAdmitted)

    def list_receipts(
        self, *, run_id: str = "", organization: str = "", after: int = 0, limit: int = 100
    ) -> pb.ReceiptPage:
        """In order of arrival."""
        request = pb.ListReceiptsRequest(run_id=run_id, organization=organization, after=after, limit=limit)
        return self._ask(self._admin.ListReceipts, request, pb.ReceiptPage)

    def privacy_spent(self, organization: str = "") -> pb.PrivacySpent:
        """By organization, group of data and run."""
        return self._ask(
            self._admin.GetPrivacySpent, pb.GetPrivacySpentRequest(organization=organization), pb.PrivacySpent
        )
