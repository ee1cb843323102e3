"""Asks for everything that `needs` looks at: the admin API's own methods, as an auditor sees them."""

from collections.abc import Callable
from typing import Any

from confide.proto import admin_pb2 as pb
from google.protobuf.message import Message

from confide_server.alerts.needs import LIVE, Seen

Ask = Callable[[str, Message], Any]
"""(method of the admin API in snake case, its request) -> its answer."""
_MOST_RUNS = 200


def look(ask: Ask) -> Seen:
    """What is seen now. Raises ConfideError."""
    live = ask("list_runs", pb.ListRunsQuery(statuses=LIVE, limit=_MOST_RUNS)).runs
    private = [run.run_id for run in live if run.privacy_unit != "none"]
    return Seen(
        status=ask("get_server_status", pb.GetServerStatusRequest()),
        live=live,
        ended=ask("list_runs", pb.ListRunsQuery(statuses=["failed"], limit=20)).runs,
        members=ask("list_members", pb.ListMembersRequest()).members,
        enrolments=ask("list_enrolments", pb.ListEnrolmentsRequest()).enrolments,
        releases=ask("list_releases", pb.ListReleasesRequest(limit=100)).releases,
        spent=ask("get_privacy_spent", pb.GetPrivacySpentRequest(run_ids=private, of_named=True)).spent,
    )
