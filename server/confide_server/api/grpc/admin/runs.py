"""Runs: listed, shown, watched, and what people change of them."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from confide.errors import ConfideError, IdentityError, StateError, TransportError
from confide.identity.submission import SignedSubmission
from confide.proto import admin_pb2 as pb
from confide.runs.sections import Privacy
from confide.runs.specification import parse_canonical
from confide.runs.toml_text import to_toml
from confide.text import line
from google.protobuf.json_format import ParseDict

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import MAX_STREAMS, AdminParts, limited
from confide_server.api.grpc.admin.records import privacy_lines
from confide_server.api.grpc.control import checked_run_id
from confide_server.state.database import Event
from confide_server.state.events import seen_by
from confide_server.state.runs.status import RunStatus
from confide_server.state.views import MAX_PAGE, Detail, Filters, RunRow, Views

POLL_S = 2.0
ALIVE_S = 5.0
_KINDS = frozenset(field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["what"].fields)
_LINE_FIELDS = frozenset(pb.RunLine.DESCRIPTOR.fields_by_name)


class RunMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._views = parts.views

    def list_runs(self, caller: Caller, request: pb.ListRunsQuery) -> pb.RunPage:
        """Newest first; of an organization those in whose cohort it is."""
        organization = request.organization or caller.scope
        caller.check_sees(organization)
        filters = Filters(
            statuses=list(request.statuses),
            name_contains=request.name_contains[:64],
            organization=organization,
            administrator=request.administrator,
            method=request.method,
            parent_run_id=request.parent_run_id,
            run_id_prefix=request.run_id_prefix[:32],
            run_ids=_named(request.run_ids),
        )
        limit = limited(request.limit, default=50, most=MAX_PAGE)
        page = self._views.runs(filters, limit=limit, cursor=request.cursor)
        runs = [run_line(row, caller.scope) for row in page.rows]
        return pb.RunPage(runs=runs, next_cursor=page.next_cursor, total=page.total)

    def get_run(self, caller: Caller, request: pb.GetRunRequest) -> pb.RunDetail:
        """Everything about one run but its rounds and events."""
        detail = self._views.detail(self._visible(caller, request.run_id))
        row, (digest, toml, privacy) = detail.row, _read(detail.specification)
        return pb.RunDetail(
            run=run_line(row, caller.scope),
            specification=detail.specification,
            specification_sha256=digest,
            specification_toml=toml,
            plan="" if request.without_plan else _plan(detail.specification, len(row.cohort) or self._nodes()),
            initial_model_sha256=detail.initial_model_sha256.hex(),
            model_sha256=detail.model_sha256.hex(),
            expires_at=detail.expires_at,
            offers=[offer for offer in _offers(detail) if caller.scope in ("", offer.node)],
            signed_by=list(detail.signed_by),
            nonce=detail.nonce,
            signature=detail.signature,
            signatures_needed=self._parts.member.roster.current.rules.submission,
            children=[] if caller.scope else list(detail.children),
            stop_requested_by=detail.stop_requested_by,
            privacy=pb.PrivacyClaim(
                unit=privacy.unit,
                epsilon=privacy.epsilon or 0.0,
                delta=(privacy.delta or 0.0) if privacy.epsilon else 0.0,
            ),
            spent=privacy_lines(self._parts, caller.scope, [row.run_id]),
        )

    def _nodes(self) -> int:
        return len(self._parts.member.roster.current.active("node"))

    def list_rounds(self, caller: Caller, request: pb.ListRoundsRequest) -> pb.RoundPage:
        """Committed rounds, first to last; an organization sees its own part in each."""
        run_id = self._visible(caller, request.run_id)
        limit = limited(request.limit, default=100, most=500)
        rows, more = self._views.rounds(run_id, after=request.after_round, limit=limit)
        cohort = self._views.line(run_id).cohort
        bare = request.without_participation
        return pb.RoundPage(rounds=[_round_line(row, cohort, caller.scope, bare) for row in rows], more=more)

    def stream_events(
        self, caller: Caller, request: pb.StreamEventsRequest, active: Callable[[], bool]
    ) -> Iterator[pb.Event]:
        """Events after a number, then as they happen, with what nodes say they are doing, until the caller leaves.

        Of one who asks for the past only the stream ends once all of it was sent.
        """
        run_id = self._visible(caller, request.run_id) if request.run_id else ""
        if not self._parts.streams.acquire(blocking=False):
            raise StateError(f"{MAX_STREAMS} event streams are open already; try again when one has been closed")
        try:
            yield from self._stream(caller, run_id, request, active)
        finally:
            self._parts.streams.release()

    def _stream(
        self, caller: Caller, run_id: str, request: pb.StreamEventsRequest, active: Callable[[], bool]
    ) -> Iterator[pb.Event]:
        tail, board = self._parts.tail, self._parts.journal.progress
        after = tail.newest if request.newest_only else request.after
        heard, sees = 0, _Sight(self._views, caller.scope)
        yield pb.Event(number=after, time=time.time(), kind="alive", alive=pb.Alive())
        said = time.monotonic()
        while active():
            found = tail.after(after, run_id, 0.0 if request.past_only else POLL_S)
            for event in found:
                after = event.number
                if (data := sees.of(event)) is not None:
                    said = time.monotonic()
                    yield event_message(event, data)
            if request.past_only:
                if not found:
                    return
                continue
            heard, reports = board.changes(heard)
            for of_run, data in reports:
                if run_id in ("", of_run) and sees.work(of_run, data):
                    said = time.monotonic()
                    work = pb.WorkProgress(**data)
                    yield pb.Event(number=after, run_id=of_run, time=time.time(), kind="progress", progress=work)
            if time.monotonic() - said >= ALIVE_S:
                said = time.monotonic()
                yield pb.Event(number=after, time=time.time(), kind="alive", alive=pb.Alive())

    # --- changes

    def pause_run(self, caller: Caller, request: pb.PauseRunRequest) -> pb.RunChanged:
        """Let a run rest once its open round has ended."""
        self._parts.control.pause(checked_run_id(request.run_id), line(request.reason, 500), caller.by)
        return self._changed(request.run_id)

    def resume_run(self, caller: Caller, request: pb.ResumeRunRequest) -> pb.RunChanged:
        """And go on."""
        self._parts.control.resume(checked_run_id(request.run_id), caller.by)
        return self._changed(request.run_id)

    def set_priority(self, caller: Caller, request: pb.SetPriorityRequest) -> pb.RunChanged:
        """Higher goes first."""
        self._parts.control.set_priority(checked_run_id(request.run_id), request.priority, caller.by)
        return self._changed(request.run_id)

    def order_stop(self, caller: Caller, request: pb.OrderStopRequest) -> pb.RunChanged:
        """Stop a run by an administrator's signed order, which the nodes check too."""
        signer = request.administrator or caller.name
        self._parts.journal.stop(checked_run_id(request.run_id), signer, request.signature)
        return self._changed(request.run_id)

    def continue_run(self, caller: Caller, request: pb.ContinueRunRequest) -> pb.RunChanged:
        """A new run, signed as one that begins with the model of another run's round."""
        signed = SignedSubmission(
            run_id=checked_run_id(request.run_id),
            nonce=request.nonce,
            expires_at=request.expires_at,
            specification=request.specification,
            initial_model_sha256=request.initial_model_sha256,
            administrator=request.administrator or caller.name,
            signature=request.signature,
            parent_run_id=checked_run_id(request.parent_run_id),
            parent_round=request.parent_round,
        )
        return self._changed(self._parts.journal.continue_from(signed))

    def cosign_run(self, caller: Caller, request: pb.CosignRunRequest) -> pb.RunChanged:
        """Add an administrator's signature to a draft."""
        signer = request.administrator or caller.name
        self._parts.journal.cosign(checked_run_id(request.run_id), signer, request.signature)
        return self._changed(request.run_id)

    def delete_run(self, caller: Caller, request: pb.DeleteRunRequest) -> pb.RunChanged:
        """Remove what is kept of a run that has ended."""
        self._parts.control.delete(checked_run_id(request.run_id), caller.by)
        return pb.RunChanged(run=pb.RunLine(run_id=request.run_id, status="deleted"))

    def _changed(self, run_id: str) -> pb.RunChanged:
        return pb.RunChanged(run=run_line(self._views.line(run_id), ""))

    def _visible(self, caller: Caller, run_id: str) -> str:
        """The run id. Raises the same IdentityError for another's run as for one that is not there."""
        run_id = checked_run_id(run_id)
        if caller.scope:
            try:
                visible = self._views.in_cohort(run_id, caller.scope)
            except StateError:
                visible = False
            if not visible:
                raise IdentityError(f"{caller.scope} takes part in no run {run_id}; an organization sees its own only")
        return run_id


class _Sight:
    """What a caller may see of the stream."""

    def __init__(self, views: Views, organization: str) -> None:
        self._views = views
        self._organization = organization
        self._known: dict[str, bool] = {}

    def of(self, event: Event) -> Mapping[str, Any] | None:
        """The event's data, cut down to the caller's own; None when it is none of its business."""
        if not self._organization:
            return event.data
        return seen_by(self._organization, event.kind, event.data) if self._takes_part(event.run_id) else None

    def work(self, run_id: str, data: Mapping[str, Any]) -> bool:
        """Whether it may see this report."""
        return not self._organization or (data["node"] == self._organization and self._takes_part(run_id))

    def _takes_part(self, run_id: str) -> bool:
        if not self._known.get(run_id):  # a cohort is fixed once it is known; before, nobody is in it
            try:
                self._known[run_id] = self._views.in_cohort(run_id, self._organization)
            except StateError:
                return False
        return self._known[run_id]


def event_message(event: Event, data: Mapping[str, Any]) -> pb.Event:
    """An event as it travels; one of a kind that this release does not know travels without its data."""
    said = pb.Event(number=event.number, run_id=event.run_id, sequence=event.sequence, time=event.time, kind=event.kind)
    if event.kind in _KINDS:
        ParseDict(dict(data), getattr(said, event.kind), ignore_unknown_fields=True)
        getattr(said, event.kind).SetInParent()
    return said


def _named(run_ids: Sequence[str]) -> list[str]:
    if len(run_ids) > MAX_PAGE:
        raise TransportError(f"{len(run_ids)} runs were named; at most {MAX_PAGE} are at a time")
    return [checked_run_id(run_id) for run_id in run_ids]


def run_line(row: RunRow, scope: str) -> pb.RunLine:
    """A run's columns. scope: the organization that is to see of the others only how many they are."""
    values = {name: value for name, value in row._mapping.items() if name in _LINE_FIELDS and value is not None}
    cohort = values.pop("cohort", [])
    if scope:
        values["waits_for"] = [name for name in values.get("waits_for", []) if name == scope]
        values["waits_reason"] = "" if not values["waits_for"] else "waits for you"
        values["detail"] = values["deleted_by"] = ""  # they name organizations and people
        if values["status"] == RunStatus.FINISHED_WITH_FEWER:
            values["status"] = RunStatus.FINISHED.value
    shown = [name for name in cohort if scope in ("", name)]
    return pb.RunLine(**values, cohort=shown, organizations=len(cohort))


def _offers(detail: Detail) -> Iterator[pb.OfferLine]:
    for node, answer in sorted(detail.answers.items()):
        at, said = detail.offers.get(node, (0.0, {}))
        yield pb.OfferLine(
            node=node,
            answer=answer,
            reason=said.get("reason", ""),
            at=at,
            round_s=said.get("round_s", 0.0),
            precision=said.get("precision", ""),
        )


def _round_line(row: RunRow, cohort: list[str], scope: str, bare: bool) -> pb.RoundLine:
    there = [] if bare else sorted(set(cohort) | set(row.contributors) | set(row.dropped))
    return pb.RoundLine(
        round=row.round,
        attempts=row.attempts,
        committed_at=row.committed_at,
        seconds=row.seconds,
        phases=row.phases,
        update_norm=row.update_norm,
        metrics={name: pb.Metric(mean=one["mean"], count=one["count"]) for name, one in row.metrics.items()},
        model_sha256=row.model_sha256.hex(),
        participation=[_part(name, row) for name in there if scope in ("", name)],
        contributors=len(row.contributors),
        received_bytes=sum(row.received.values()) if not scope else row.received.get(scope, 0),
        promise="" if bare else str(row.promise.get("words", "")),
    )


def _part(name: str, row: RunRow) -> pb.Participation:
    if name in row.contributors:
        return pb.Participation(organization=name, state="contributed", bytes=row.received.get(name, 0))
    if name in row.dropped:
        code, _, reason = str(row.dropped[name]).partition(": ")
        return pb.Participation(organization=name, state="dropped", code=code, reason=reason)
    return pb.Participation(organization=name, state="not_asked")


@functools.lru_cache(maxsize=256)
def _read(body: bytes) -> tuple[str, str, Privacy]:
    """(digest, TOML, privacy) of a specification."""
    specification = parse_canonical(body)
    return specification.digest, to_toml(specification), specification.privacy


@functools.lru_cache(maxsize=256)
def _plan(specification: bytes, nodes: int) -> str:
    """In words; computed once, since noise takes a moment."""
    from confide.planning.run_plan import render

    try:
        return render(parse_canonical(specification), nodes=nodes)
    except ConfideError as error:
        return f"no plan can be made for {nodes} organizations: {error}"
