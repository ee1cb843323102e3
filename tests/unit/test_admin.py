"""The administration service over real gRPC and mTLS: who may call what, what each sees, and that changes hold."""

import itertools
import json
import time
from dataclasses import replace

import pytest
from confide.errors import ConfideError, IdentityError, ProtocolFailure, SpecificationError, StateError, TransportError
from confide.identity.consortium import approve_revocation
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.roster import Role, Rules
from confide.identity.submission import sign_stop, signers, verify_submission
from confide.proto import admin_pb2 as pb
from confide.proto import control_pb2, inquiries_pb2
from confide.proto.fleet_pb2 import Hardware
from confide.transport.admin import ActingUser, AdminClient, check_export, event_data
from confide_server.api.grpc.access import RULES
from confide_server.api.grpc.endpoint import snake
from confide_server.state.events import OfferAnswered
from google.protobuf.message_factory import GetMessageClass

from tests.admin_world import AdminWorld, running_world

ADMIN = pb.DESCRIPTOR.services_by_name["Admin"]
SERVICES = (
    ADMIN,
    control_pb2.DESCRIPTOR.services_by_name["Control"],
    inquiries_pb2.DESCRIPTOR.services_by_name["Inquiries"],
)
PEOPLE = (Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR, Role.ANNOTATOR, Role.NODE)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_world(tmp_path_factory.mktemp("admin")) as running:
        yield running


# --- who may call what -----------------------------------------------------------------------------------------------


def test_every_method_of_every_service_has_its_rule_in_the_one_table():
    named = {f"{service.name}/{method.name}" for service in SERVICES for method in service.methods}
    assert named == set(RULES)


def test_every_change_carries_a_key_and_every_answer_the_clock():
    for method in ADMIN.methods:
        change = RULES[f"Admin/{method.name}"].change
        assert ("idempotency_key" in method.input_type.fields_by_name) == change, method.name
        assert "clock" in method.output_type.fields_by_name, method.name


def call(client: AdminClient, method):
    """The method with an empty request, straight to the stub."""
    client._greet()
    request = GetMessageClass(method.input_type)()
    if RULES[f"Admin/{method.name}"].change:
        request.idempotency_key = f"matrix-{time.time_ns()}"
    with client._failures():
        sent = iter([request]) if method.client_streaming else request
        reply = getattr(client._admin, method.name)(sent, metadata=client._metadata(), timeout=30)
        if method.server_streaming:
            reply = next(iter(reply))
    return reply


@pytest.mark.parametrize("method", ADMIN.methods, ids=lambda method: method.name)
def test_every_method_lets_in_exactly_the_roles_of_its_rule(world: AdminWorld, method):
    rule = RULES[f"Admin/{method.name}"]
    for role in PEOPLE:
        direct, console = world.client(role), world.console(role)
        for client, allowed in ((direct, role in rule.roles | rule.own), (console, role in rule.roles | rule.own)):
            try:
                call(client, method)
            except ConfideError as error:
                refused = "this is for the role" in str(error)
                assert refused is not allowed, (role, client is console, error)
            else:
                assert allowed, (role, client is console)


@pytest.mark.parametrize("method", ADMIN.methods, ids=lambda method: method.name)
def test_a_console_that_names_nobody_or_an_unknown_role_gets_nothing(world: AdminWorld, method):
    with pytest.raises(IdentityError, match="named nobody"):
        call(world.client(Role.CONSOLE), method)
    for role in ("root", "coordinator", "console", ""):
        with pytest.raises(IdentityError, match="this is for the role"):
            call(world.console(role), method)


def test_only_a_console_may_speak_for_others(world: AdminWorld):
    pretending = world.client(Role.NODE).acting_for(ActingUser(name="eve", role="administrator"))
    with pytest.raises(IdentityError, match="this is for the role"):
        pretending.server_status()
    with pytest.raises(IdentityError, match="not in version"):
        world.console(Role.NODE, organization="hospital-z").list_runs()
    with pytest.raises(IdentityError, match="belongs to administrator"):
        world.console(Role.NODE, organization="administrator").list_runs()


# --- runs ------------------------------------------------------------------------------------------------------------


def test_runs_come_page_by_page_newest_first(world: AdminWorld):
    runs = [world.submit(f"paged-{number}") for number in range(5)]
    client = world.client(Role.AUDITOR)
    first = client.list_runs(name_contains="paged-", limit=2)
    second = client.list_runs(name_contains="paged-", limit=2, cursor=first.next_cursor)
    last = client.list_runs(name_contains="paged-", limit=2, cursor=second.next_cursor)
    assert [run.run_id for page in (first, second, last) for run in page.runs] == runs[::-1]
    assert (first.total, last.next_cursor) == (5, "") and abs(first.clock - time.time()) < 60
    assert first.runs[0].status == "submitted" and first.runs[0].method == "sft"
    assert not client.list_runs(name_contains="%").runs, "a filter is no pattern"
    assert [run.run_id for run in client.list_runs(run_id_prefix=runs[0][:12]).runs] == [runs[0]]
    for wrong in ({"cursor": "1; drop"}, {"statuses": ["gone"]}, {"limit": 201}):
        with pytest.raises(TransportError):
            client.list_runs(**wrong)


def test_a_run_is_told_with_its_specification_plan_and_rounds(world: AdminWorld):
    run_id = world.finished("told")
    client = world.client(Role.OPERATOR)
    detail = client.get_run(run_id)
    assert 'name = "told"' in detail.specification_toml and "rounds = 2" in detail.specification_toml
    assert "round" in detail.plan
    assert (detail.run.status, detail.run.round, detail.run.short_rounds) == ("finished_with_fewer", 2, 1)
    assert [(one.node, one.answer) for one in detail.offers] == [("hospital-a", "accepted"), ("hospital-b", "accepted")]
    first, second = client.all_rounds(run_id)
    states = {one.organization: (one.state, one.code) for one in second.participation}
    assert states == {"hospital-a": ("contributed", ""), "hospital-b": ("dropped", "TransportError")}
    assert first.metrics["train_loss"].mean == 1.5 and first.phases == {"train": 1.0} and first.received_bytes == 20
    assert [run.run_id for run in client.list_runs(statuses=["finished_with_fewer"]).runs] == [run_id]
    with pytest.raises(StateError, match="there is no run"):
        client.get_run("0" * 32)


def test_an_organization_sees_its_own_part_and_nothing_of_others(world: AdminWorld):
    run_id = world.finished("own")
    foreign = world.submit("foreign")
    with world.database.transaction() as session:
        world.journal.locked(session, foreign).cohort = ["hospital-b"]
    for client in (world.client(Role.NODE), world.console(Role.NODE, organization="hospital-a")):
        assert foreign not in [run.run_id for run in client.list_runs(limit=200).runs]
        for refused in (
            lambda: client.get_run(foreign),  # noqa: B023 - called at once
            lambda: client.list_rounds(foreign),  # noqa: B023
            lambda: client.list_checkpoints(foreign),  # noqa: B023
            lambda: next(client.stream_events(foreign)),  # noqa: B023
            lambda: client.get_run("0" * 32),  # noqa: B023
            lambda: client.list_runs(organization="hospital-b"),  # noqa: B023
            lambda: client.list_receipts(organization="hospital-b"),  # noqa: B023
            lambda: client.privacy_spent("hospital-b"),  # noqa: B023
        ):
            with pytest.raises(IdentityError):
                refused()
        said = [client.get_run(run_id), *client.all_rounds(run_id), client.list_members(), client.list_runs()]
        said += list(itertools.takewhile(lambda one: one.kind != "alive", client.stream_events(run_id)))[1:]
        assert "hospital-b" not in "".join(str(one) for one in said[1:]) and "hospital-b" not in str(said[0].run)
        assert [one.node for one in said[0].offers] == ["hospital-a"]


def test_events_are_streamed_from_a_number_on_typed_and_over_all_runs(world: AdminWorld):
    run_id = world.finished("streamed")
    client = world.client(Role.AUDITOR)
    alive, *events = itertools.islice(client.stream_events(run_id), 8)
    assert alive.kind == "alive" and [one.WhichOneof("what") for one in events[:4]] == [
        "run_submitted",
        "offer_answered",
        "offer_answered",
        "run_started",
    ]
    assert [one.sequence for one in events] == list(range(1, 8)) and events[3].run_started.rounds == 2
    again = list(itertools.islice(client.stream_events(run_id, after=events[3].number), 3))
    assert [one.number for one in again[1:]] == [one.number for one in events[4:6]]
    past = list(client.stream_events(run_id, past_only=True))
    assert [one.number for one in past[1:8]] == [one.number for one in events]
    assert [one.kind for one in client.stream_events(run_id, after=past[-1].number, past_only=True)] == ["alive"]
    stream = client.stream_events(newest_only=True)
    assert next(stream).number == world.views.last_event()
    other = world.submit("live")
    event = next(stream)
    assert (event.run_id, event.run_submitted.name) == (other, "live")
    stream.close()


def test_a_run_rests_and_goes_on_once_for_each_key(world: AdminWorld):
    run_id, operator = world.submit("resting"), world.client(Role.OPERATOR)
    paused = operator.pause_run(run_id, "maintenance", key="k" * 16)
    assert (paused.status, paused.paused_by, paused.pause_reason) == ("paused", "operator", "maintenance")
    assert operator.resume_run(run_id).status == "submitted"
    assert operator.pause_run(run_id, "maintenance", key="k" * 16).status == "paused", "the answer of before"
    assert operator.get_run(run_id).run.status == "submitted", "and nothing was done"
    with pytest.raises(StateError, match="served another request"):
        operator.pause_run(run_id, "another", key="k" * 16)
    with pytest.raises(TransportError, match="idempotency key"):
        operator.pause_run(run_id, key="short")
    world.console(Role.OPERATOR).pause_run(run_id)
    assert world.client(Role.AUDITOR).list_audit(event="run_paused").entries[0].who == "ada@console"


def test_a_stop_and_a_continuation_are_an_administrators_signature(world: AdminWorld):
    run_id, administrator = world.finished("parent"), world.client(Role.ADMINISTRATOR)
    identity = world.member(Role.ADMINISTRATOR).identity
    specification, model = world.specification("child"), bytes.fromhex(administrator.get_run(run_id).model_sha256)
    child = administrator.continue_run(
        specification, identity, parent_run_id=run_id, parent_round=2, model_sha256=model
    )
    assert (child.parent_run_id, child.parent_round, child.status) == (run_id, 2, "submitted")
    assert administrator.get_run(run_id).children == [child.run_id]
    with pytest.raises(ConfideError, match="was signed"):
        administrator.continue_run(specification, identity, parent_run_id=run_id, parent_round=1, model_sha256=model)
    with pytest.raises(StateError, match="no round 9"):
        administrator.continue_run(specification, identity, parent_run_id=run_id, parent_round=9, model_sha256=model)
    with pytest.raises(IdentityError):
        administrator.order_stop(child.run_id, world.member(Role.OPERATOR).identity)
    with pytest.raises(StateError, match="goes on from run"):
        administrator.delete_run(run_id)
    assert administrator.order_stop(child.run_id, identity).status == "stopped"
    administrator.delete_run(child.run_id)
    with pytest.raises(StateError, match="was deleted by"):
        administrator.get_run(child.run_id)
    administrator.delete_run(run_id)
    left = administrator.list_runs(statuses=["deleted"]).runs
    assert [(one.run_id, one.status) for one in left][:2] == [(child.run_id, "deleted"), (run_id, "deleted")]
    assert all(one.deleted_by and one.deleted_at for one in left)
    assert run_id not in [one.run_id for one in administrator.list_runs(limit=200).runs]
    kept = administrator.list_audit(run_id=run_id).entries
    assert kept[0].event == "run_deleted"


# --- members, models, records ----------------------------------------------------------------------------------------


def test_members_are_told_with_how_they_stand(world: AdminWorld):
    run_id, told = world.submit("told"), {"cores": 4, "vector_units": ["avx2"]}
    world.journal.answered(run_id, "accepted", OfferAnswered(node="hospital-a", accepted=True, hardware=told))
    *_, event = itertools.islice(world.client(Role.AUDITOR).stream_events(run_id), 3)
    assert event_data(event)["hardware"] == told | {"memory_gib": 0, "accelerator": ""}
    members = {one.name: one for one in world.client(Role.AUDITOR).list_members().members}
    assert members["hospital-a"].state == "connected" and members["hospital-b"].state == "stopped"
    assert members["auditor"].state == "seen" and members["auditor"].certificate_expires_at > time.time()
    assert members["hospital-c"].state == "never_seen"
    assert members["hospital-a"].hardware == Hardware(**told) and members["hospital-b"].hardware == Hardware()
    assert [one.name for one in world.client(Role.NODE).list_members().members] == ["hospital-a"]


def test_a_newcomer_is_admitted_and_revoked_by_what_the_root_signed(world: AdminWorld):
    folder = world.folder / "hospital-d"
    request = make_request(folder, "hospital-d", "node")
    world.parts.enrolment.put_first("hospital-d", request)
    operator = world.client(Role.OPERATOR)
    (waiting,) = operator.list_enrolments().enrolments
    assert (waiting.name, waiting.renewal, waiting.request) == ("hospital-d", False, request)
    assert operator.admit_member(world.consortium.admit(request)).name == "hospital-d"
    accept_admission(folder, world.parts.enrolment.admission("hospital-d"), time.time())
    world.consortium.revoke("hospital-d")
    taken = operator.take_roster(world.consortium.roster.signed)
    assert (list(taken.admitted), list(taken.revoked)) == ([], ["hospital-d"])
    newest = operator.list_rosters(limit=1).rosters[0]
    assert newest.version == taken.version and operator.get_signed_roster(newest.version).version == newest.version
    with pytest.raises(ConfideError):
        operator.take_roster(b"{}")
    revoked = {one.name: one.state for one in operator.list_members("node").members}
    assert revoked["hospital-d"] == "revoked"


def altered(release: pb.Release, **changes) -> pb.Release:
    """As a coordinator would show it that wants another document signed."""
    copy = pb.Release()
    copy.CopyFrom(release)
    for name, value in changes.items():
        setattr(copy, name, value)
    return copy


def test_a_release_is_signed_published_superseded_and_rolled_back(world: AdminWorld):
    run_id, administrator = world.finished("released"), world.client(Role.ADMINISTRATOR)
    identity = world.member(Role.ADMINISTRATOR).identity
    first = administrator.create_release("support", run_id, 1, "the first")
    assert administrator.create_release("support", run_id, 1, "the first").number == first.number
    with pytest.raises(StateError, match="signatures of nobody"):
        administrator.publish_release("support", 1)
    with pytest.raises(IdentityError, match="something else"):
        administrator.sign_release(altered(first, model_sha256="0" * 64), identity)
    assert administrator.sign_release(first, identity).status == "signed"
    assert administrator.publish_release("support", 1).current
    second = administrator.create_release("support", run_id, 0, "the second")
    assert json.loads(second.document)["previous"] == first.sha256
    administrator.sign_release(second, identity)
    administrator.publish_release("support", 2)
    states = {one.number: one.status for one in world.client(Role.ANNOTATOR).list_releases("support").releases}
    assert states == {1: "superseded", 2: "published"}
    assert administrator.roll_back_release("support", 1, "worse on hospital-b").status == "published"
    with pytest.raises(StateError, match="was rolled back"):
        administrator.publish_release("support", 2)
    edges = {(one.to, getattr(one, "from")) for one in administrator.get_lineage(run_id).edges}
    assert ("release:support/1", f"run:{run_id}") in edges
    assert administrator.list_checkpoints(run_id).checkpoints[0].releases == ["support/1"]
    with pytest.raises(StateError, match="is of run"):
        administrator.delete_run(run_id)
    for name, run, number in (("Ümlaut", run_id, 1), ("x", run_id, 9), ("x", "0" * 32, 1)):
        with pytest.raises((SpecificationError, StateError)):
            administrator.create_release(name, run, number)


def test_the_audit_log_is_paged_verified_and_exported_with_a_signed_head(world: AdminWorld):
    auditor = world.client(Role.AUDITOR)
    verdict = auditor.verify_audit()
    assert verdict.sound and verdict.entries > 3
    page = auditor.list_audit(limit=2)
    assert [one.number for one in page.entries] == [verdict.entries, verdict.entries - 1] and page.more
    lines = b"".join(auditor.export_audit()).splitlines()
    public = world.coordinator.identity.public
    entries, head = check_export(lines, public)
    assert entries == verdict.entries + 1, "that it was exported stands in it"
    assert check_export(b"".join(auditor.export_audit(entries)).splitlines(), public, after=entries, previous=head)
    for wrong in (lines[1:], lines[:-1], [*lines[:3], *lines[4:]], lines[:-2] + lines[-1:]):
        with pytest.raises((TransportError, IdentityError)):
            check_export(wrong, public)


def test_receipts_and_what_they_say_was_spent(world: AdminWorld):
    run_id = world.finished("spent")
    world.receipt(run_id, "hospital-a", slot=1, spent=1)
    world.receipt(run_id, "hospital-a", slot=2, spent=2)
    world.receipt(run_id, "hospital-b", slot=1, spent=1)
    auditor = world.client(Role.AUDITOR)
    first = auditor.list_receipts(run_id=run_id, limit=2)
    rest = auditor.list_receipts(run_id=run_id, after=first.receipts[-1].number)
    assert (len(first.receipts), first.more, len(rest.receipts), rest.more) == (2, True, 1, False)
    spent = {(one.organization, one.group): one.spent_slots for one in auditor.privacy_spent().spent}
    assert spent == {("hospital-a", "records"): 2, ("hospital-b", "records"): 1}
    assert [one.organization for one in world.client(Role.NODE).privacy_spent().spent] == ["hospital-a"]
    again = world.finished("spent-again")
    world.receipt(again, "hospital-a", slot=1, spent=1)

    def asked(role=Role.AUDITOR, **wanted):
        found = world.client(role).ask("GetPrivacySpent", pb.GetPrivacySpentRequest(**wanted)).spent
        return [(one.organization, one.run_id, one.runs, one.spent_slots, one.approved_slots) for one in found]

    assert asked(run_ids=[again]) == [("hospital-a", again, 1, 1, 3)]
    assert asked(of_named=True) == [] and len(asked()) == 3
    assert asked(summed=True) == [("hospital-a", "", 2, 3, 6), ("hospital-b", "", 1, 1, 3)]
    assert asked(Role.NODE, summed=True) == [("hospital-a", "", 2, 3, 6)]
    assert asked(Role.NODE, run_ids=[run_id, again]) == sorted(
        [("hospital-a", run_id, 1, 2, 3), ("hospital-a", again, 1, 1, 3)], key=lambda one: one[1]
    )
    with pytest.raises(IdentityError):
        asked(Role.NODE, organization="hospital-b", summed=True)
    with pytest.raises(TransportError, match="at most 200"):
        asked(run_ids=[run_id] * 201)
    assert not world.client(Role.AUDITOR).ask("GetRun", pb.GetRunRequest(run_id=run_id, without_plan=True)).plan
    named = pb.ListRunsQuery(run_ids=[again, "f" * 32])
    (line,) = world.client(Role.AUDITOR).ask("ListRuns", named).runs
    assert line.run_id == again and not world.clients["hospital-c"].ask("ListRuns", named).runs, "another's is none"
    of_one = auditor.list_receipts(organization="hospital-b")
    assert [one.organization for one in of_one.receipts] == ["hospital-b"]


def test_the_server_says_how_it_stands(world: AdminWorld):
    status = world.client(Role.OPERATOR).server_status()
    assert status.coordinator == "coordinator" and status.release and status.nodes_connected == 1
    assert {disk.what for disk in status.disks} == {"state"} and status.disks[0].total_bytes > 0
    assert sum(status.runs.values()) >= 0 and not status.trouble


def test_a_member_that_is_revoked_is_cut_off_from_its_stream(world: AdminWorld):
    late = world.admit("leaver", Role.AUDITOR)
    stream = late.stream_events(newest_only=True)
    next(stream)
    world.consortium.revoke("leaver")
    world.client(Role.OPERATOR).take_roster(world.consortium.roster.signed)
    with pytest.raises(ProtocolFailure, match="REVOKED"):
        for _ in stream:
            pass


def test_every_method_has_a_client_function():
    named = {snake(method.name) for method in ADMIN.methods}
    others = {"get_server_status": "server_status", "get_privacy_spent": "privacy_spent"}
    missing = {name for name in named if not hasattr(AdminClient, others.get(name, name))}
    assert not missing


def test_where_the_rules_ask_for_two_administrators_one_alone_starts_and_releases_nothing(tmp_path):
    with running_world(tmp_path / "two") as world:
        other = world.admit("second-admin", Role.ADMINISTRATOR)
        world.consortium.set_rules(Rules(submission=2, release=2, revocation=2))
        first = world.client(Role.ADMINISTRATOR)
        first.take_roster(world.consortium.roster.signed)
        run_id = world.submit("shared")
        detail = first.get_run(run_id)
        assert (detail.run.status, detail.signatures_needed) == ("draft", 2) and world.journal.next_run(0.0) is None
        roster = world.coordinator.roster.current
        first.cosign_run(detail, world.member(Role.ADMINISTRATOR).identity, roster)
        assert first.get_run(run_id).run.status == "draft", "the first one twice is one"
        with pytest.raises(IdentityError):
            world.client(Role.OPERATOR).cosign_run(detail, world.member(Role.OPERATOR).identity, roster)
        changed = pb.RunDetail.FromString(detail.SerializeToString())
        changed.specification = world.specification("another").canonical_bytes()
        with pytest.raises(IdentityError):
            other.cosign_run(changed, world.members["second-admin"].identity, roster)
        assert other.cosign_run(detail, world.members["second-admin"].identity, roster).status == "submitted"
        assert list(first.get_run(run_id).signed_by) == ["administrator", "second-admin"]
        offered = world.journal.next_run(0.0)
        assert signers(roster, offered.signed) == ("administrator", "second-admin")
        verify_submission(roster, offered.signed)
        for fewer in ((), (offered.signed.cosigned[0], offered.signed.cosigned[0])):
            with pytest.raises(IdentityError):
                verify_submission(roster, replace(offered.signed, cosigned=fewer))
        world.journal.stop(run_id, "administrator", sign_stop(world.member(Role.ADMINISTRATOR).identity, run_id))
        done = world.finished("model")
        release = first.create_release("support", done)
        assert first.sign_release(release, world.member(Role.ADMINISTRATOR).identity).status == "created"
        with pytest.raises(StateError, match="2 of different administrators"):
            first.publish_release("support", 1)
        other.sign_release(release, world.members["second-admin"].identity)
        assert other.publish_release("support", 1).status == "published"


def test_a_revocation_that_two_administrators_have_to_approve(tmp_path):
    with running_world(tmp_path / "revoked") as world:
        world.admit("second-admin", Role.ADMINISTRATOR)
        roster = world.consortium.set_rules(Rules(revocation=2))
        approvals = [
            approve_revocation(world.members[name].identity, name, "hospital-c", roster)
            for name in ("administrator", "second-admin")
        ]
        foreign = approve_revocation(world.member(Role.OPERATOR).identity, "operator", "hospital-c", roster)
        for wrong in ((), approvals[:1], [approvals[0], approvals[0]], [approvals[0], foreign]):
            with pytest.raises(IdentityError):
                world.consortium.revoke("hospital-c", approvals=wrong)
        with pytest.raises(IdentityError, match="something else"):
            world.consortium.revoke("hospital-b", approvals=approvals)
        assert world.consortium.revoke("hospital-c", approvals=approvals).version == roster.version + 1
