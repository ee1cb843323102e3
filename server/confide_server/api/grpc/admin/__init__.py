"""The administration service (protos/confide/v1/admin.proto).

    parts.py    what it works with
    runs.py     runs, rounds, events, what people change of them
    submissions.py  runs come in with their first models, models go out
    members.py  members, rosters, enrolment
    models.py   checkpoints, releases, lineage
    preferences.py  answers that annotators compare, and their judgements
    records.py  receipts, privacy spent, audit log, the server itself

Every method has a rule in confide_server.api.grpc.access.RULES; `Caller.scope` names the organization whose things
alone the caller may see.
"""

from collections.abc import Mapping

from confide.proto import admin_pb2

from confide_server.api.grpc.admin.members import MemberMethods
from confide_server.api.grpc.admin.models import ModelMethods
from confide_server.api.grpc.admin.parts import AdminParts
from confide_server.api.grpc.admin.preferences import PreferenceMethods
from confide_server.api.grpc.admin.records import RecordMethods
from confide_server.api.grpc.admin.runs import RunMethods
from confide_server.api.grpc.admin.submissions import SubmissionMethods
from confide_server.api.grpc.endpoint import Function, snake


def functions(parts: AdminParts) -> Mapping[str, Function]:
    """Every method's function, by its name in snake case. A method that nobody implements is a KeyError."""
    groups = (
        RunMethods(parts), SubmissionMethods(parts), MemberMethods(parts), ModelMethods(parts),
        PreferenceMethods(parts), RecordMethods(parts),
    )  # fmt: skip
    known = {name: getattr(group, name) for group in groups for name in dir(group) if not name.startswith("_")}
    service = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
    return {snake(method.name): known[snake(method.name)] for method in service.methods}
