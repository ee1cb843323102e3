"""The coordinator's answers with their age. While it is silent the last answer stands, and the page says since when.

    look = reader.look(Acting("operator", Role.OPERATOR))
    page = look.runs(pb.ListRunsQuery(limit=50))
    look.freshness        # of the oldest answer that this page shows

Many pages that ask the same within a second ask once; people of different roles and organizations never share an
answer, since the coordinator answers each of them differently.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from confide.errors import ConfideError, TransportError
from confide.proto import admin_pb2 as pb
from google.protobuf.message import Message

from confide_server.console.roles import Role

FRESH_S, SETTLED_S = 1.0, 0.25
"""How old an answer may be, and how old where something has happened since: whoever looks so long after something
happened sees it."""
SILENT_AFTER_S = 5.0
"""Younger troubles are not told: a restart of the coordinator takes about as long."""
MOST_ANSWERS = 512
PATIENCE_S = 4.0
"""How long a page waits before it shows what it knows; the question stays open."""
NEVER_OLD_S = 86400.0
"""For what does not change."""
MOMENT_S = 0.05
"""How long a page waits for what it can be shown without."""
ASKING_THREADS = 16
_Key = tuple[str, bytes, Role, str]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Acting:
    """For whom the console asks."""

    user: str
    role: Role
    organization: str = ""


class Coordinator(Protocol):
    """The admin API as the console uses it (confide.transport.admin)."""

    def ask(self, method: str, request: Message, acting: Acting) -> Message:
        """One call. Raises ConfideError: TransportError when nobody answered."""

    def events(self, request: pb.StreamEventsRequest, acting: Acting) -> Iterator[pb.Event]:
        """What was and what happens. Raises ConfideError."""

    def export_audit(self, acting: Acting) -> Iterator[bytes]:
        """The signed audit log in pieces. Raises ConfideError."""


class Unanswered(TransportError):
    """The coordinator does not answer, and nothing was heard of this before."""


@dataclass(frozen=True)
class Freshness:
    """How old what a page shows is, and whether the coordinator answers."""

    age_s: float
    silent_s: float = 0.0
    """0: it answered. Else for how long it has not."""
    trouble: str = ""


@dataclass(frozen=True)
class _Answer:
    message: Message
    at: float


def _key(method: str, request: Message, acting: Acting) -> _Key:
    """Who are answered alike: everybody of a role, and of an organization."""
    return method, request.SerializeToString(deterministic=True), acting.role, acting.organization


def _rounds_after(run_id: str, after: int, bare: bool) -> pb.ListRoundsRequest:
    return pb.ListRoundsRequest(run_id=run_id, after_round=after, limit=500, without_participation=bare)


class Reader:
    """Asks, remembers, and says how old. Used from several threads."""

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float] = time.monotonic) -> None:
        self._coordinator, self._clock = coordinator, clock
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._pending: dict[_Key, Future[_Answer]] = {}
        self._lock = threading.Lock()
        self._asking = ThreadPoolExecutor(ASKING_THREADS, thread_name_prefix="console-asks")
        self._silent_since: float | None = None
        self._trouble = ""
        self._heard_at = self._step_at = float("-inf")

    def look(self, acting: Acting) -> "Look":
        """One page's view."""
        return Look(self, acting)

    def close(self) -> None:
        """What is still being asked is not waited for."""
        self._asking.shutdown(wait=False, cancel_futures=True)

    @property
    def silence(self) -> tuple[float, str]:
        """(for how long nobody has answered, what was said last); (0, "") while somebody does."""
        since = self._silent_since
        return (0.0, "") if since is None else (self._clock() - since, self._trouble)

    def ask(self, method: str, request: Message, acting: Acting, fresh_s: float = FRESH_S) -> tuple[Message, float]:
        """(answer, its age). Raises ConfideError: Unanswered when there is none at all."""
        key = _key(method, request, acting)
        with self._lock:
            known = self._answers.get(key)
            if known is not None and self._is_fresh(known, fresh_s):
                return known.message, self._clock() - known.at
            pending = self._pending.get(key)
            if pending is None:
                pending = self._pending[key] = self._asking.submit(self._renew, key, method, request, acting)
        try:
            known = pending.result(PATIENCE_S)
        except (TransportError, TimeoutError) as error:
            self._silent(error)
            if known is None:
                raise Unanswered(self._trouble) from error
        return known.message, self._clock() - known.at

    def known(self, method: str, request: Message, acting: Acting, fresh_s: float = FRESH_S) -> Message | None:
        """What was answered last, however old; asked for anew, which is waited for a moment where nothing is known."""
        self.begin(method, request, acting, fresh_s)
        key = _key(method, request, acting)
        with self._lock:
            known, pending = self._answers.get(key), self._pending.get(key)
        if known is None and pending is not None:
            with contextlib.suppress(ConfideError, TimeoutError):
                known = pending.result(MOMENT_S)
        return known.message if known is not None else None

    def begin(self, method: str, request: Message, acting: Acting, fresh_s: float = FRESH_S) -> None:
        """Ask already what `ask` will want next: several questions then take as long as the slowest."""
        key = _key(method, request, acting)
        with self._lock:
            known = self._answers.get(key)
            if not (known is not None and self._is_fresh(known, fresh_s)) and key not in self._pending:
                self._pending[key] = self._asking.submit(self._renew, key, method, request, acting)

    def _renew(self, key: _Key, method: str, request: Message, acting: Acting) -> _Answer:
        try:
            asked_at = self._clock()
            answer = _Answer(self._coordinator.ask(method, request, acting), asked_at)
            with self._lock:
                known = self._answers.get(key)
                if known is None or known.at <= asked_at:
                    self._answers[key] = answer
                self._answers.move_to_end(key)
                while len(self._answers) > MOST_ANSWERS:
                    self._answers.popitem(last=False)
                self._silent_since = None
            return answer
        finally:
            with self._lock:
                self._pending.pop(key, None)

    def heard(self, *, step: bool = False) -> None:
        """Something has happened: what was asked before may be answered differently now.

        step: nobody is shown an answer from before it. Of what happens again and again it may be SETTLED_S old.
        """
        with self._lock:
            self._heard_at = self._clock()
            if step:
                self._step_at = self._heard_at
            self._pending.clear()

    def _is_fresh(self, known: _Answer, fresh_s: float) -> bool:
        age_s = self._clock() - known.at
        settled = age_s <= SETTLED_S and known.at > self._step_at
        return age_s <= fresh_s and (known.at > self._heard_at or settled or fresh_s > FRESH_S)

    def _silent(self, error: Exception) -> None:
        with self._lock:
            if self._silent_since is None:
                self._silent_since = self._clock()
            self._trouble = str(error) or f"no answer within {PATIENCE_S:g} s"

    def change(self, method: str, request: Message, acting: Acting) -> Message:
        """A change, never remembered; what was known before is forgotten. Raises ConfideError."""
        answer = self._coordinator.ask(method, request, acting)
        self.forget()
        return answer

    def forget(self, besides: Collection[str] = ()) -> None:
        """Ask everything anew, besides what these methods answered."""
        with self._lock:
            for key in [key for key in self._answers if key[0] not in besides]:
                del self._answers[key]

    def events(self, request: pb.StreamEventsRequest, acting: Acting) -> Iterator[pb.Event]:
        """As Coordinator.events."""
        return self._coordinator.events(request, acting)

    def export_audit(self, acting: Acting) -> Iterator[bytes]:
        """As Coordinator.export_audit."""
        return self._coordinator.export_audit(acting)


class Look:
    """What one page asks. Every method raises ConfideError."""

    def __init__(self, reader: Reader, acting: Acting) -> None:
        self._reader, self.acting = reader, acting
        self._oldest_s = 0.0

    @property
    def freshness(self) -> Freshness:
        """Of what was asked so far."""
        silent_s, trouble = self._reader.silence
        told = silent_s > SILENT_AFTER_S or self._oldest_s > SILENT_AFTER_S
        return Freshness(self._oldest_s, max(silent_s, self._oldest_s) if told else 0.0, trouble if told else "")

    def _ask(self, method: str, request: Message, kind: type[M], fresh_s: float = FRESH_S) -> M:
        answer, age_s = self._reader.ask(method, request, self.acting, fresh_s)
        if not isinstance(answer, kind):
            raise TransportError(
                f"the coordinator answered {method} with a {type(answer).__name__}; is it our release?"
            )
        # What is asked rarely on purpose (the chain's verdict, the lineage) does not make the page old.
        self._oldest_s = max(self._oldest_s, age_s if age_s > fresh_s or fresh_s <= FRESH_S else 0.0)
        return answer

    def ahead(self, **questions: Message) -> None:
        """Begin to ask all of these at once, by the methods' names; the page then takes them one by one."""
        for method, request in questions.items():
            self._reader.begin(method, request, self.acting)

    def ahead_of_runs(self, run_ids: Iterable[str], *, bare: bool = False) -> None:
        """Begin to ask for these runs and their rounds. bare: as `rounds`, and of the runs nothing."""
        for run_id in run_ids:
            if not bare:
                self._reader.begin("GetRun", pb.GetRunRequest(run_id=run_id, without_plan=True), self.acting)
            self._reader.begin("ListRounds", _rounds_after(run_id, 0, bare), self.acting)

    def status(self) -> pb.ServerStatus:
        return self._ask("GetServerStatus", pb.GetServerStatusRequest(), pb.ServerStatus)

    def runs(self, query: pb.ListRunsQuery) -> pb.RunPage:
        return self._ask("ListRuns", query, pb.RunPage)

    def run(self, run_id: str) -> pb.RunDetail:
        """Without the plan."""
        return self._ask("GetRun", pb.GetRunRequest(run_id=run_id, without_plan=True), pb.RunDetail)

    def plan(self, run_id: str) -> str:
        """In words; empty while the coordinator works it out, which takes seconds at the first time."""
        detail = self._reader.known("GetRun", pb.GetRunRequest(run_id=run_id), self.acting, NEVER_OLD_S)
        return detail.plan if isinstance(detail, pb.RunDetail) else ""

    def rounds(self, run_id: str, most: int = 2000, *, bare: bool = False) -> list[pb.RoundLine]:
        """Every committed round, at most the last `most`. bare: figures, and not who took part."""
        found: list[pb.RoundLine] = []
        more, after = True, 0
        while more:
            page = self._ask("ListRounds", _rounds_after(run_id, after, bare), pb.RoundPage)
            found.extend(page.rounds)
            more, after = page.more and bool(page.rounds), found[-1].round if found else 0
        return found[-most:]

    def members(self) -> pb.MemberPage:
        return self._ask("ListMembers", pb.ListMembersRequest(), pb.MemberPage)

    def rosters(self) -> pb.RosterPage:
        return self._ask("ListRosters", pb.ListRostersRequest(limit=20), pb.RosterPage)

    def signed_roster(self, version: int) -> bytes:
        """A roster as the root signed it."""
        asked = pb.GetSignedRosterRequest(version=max(0, min(version, 1 << 62)))
        return self._ask("GetSignedRoster", asked, pb.SignedRosterReply).roster

    def enrolments(self) -> pb.EnrolmentPage:
        return self._ask("ListEnrolments", pb.ListEnrolmentsRequest(), pb.EnrolmentPage)

    def spent(self, organization: str = "") -> pb.PrivacySpent:
        """By organization, group and run."""
        return self._ask("GetPrivacySpent", pb.GetPrivacySpentRequest(organization=organization), pb.PrivacySpent)

    def spent_in(self, run_ids: Sequence[str]) -> Sequence[pb.PrivacyLine]:
        """In these runs, at most 200."""
        asked = pb.GetPrivacySpentRequest(
            organization=self.acting.organization, run_ids=list(run_ids)[:200], of_named=True
        )
        return self._ask("GetPrivacySpent", asked, pb.PrivacySpent).spent if run_ids else ()

    def spent_in_all(self, organization: str = "") -> pb.PrivacySpent:
        """By organization and group, added up over all runs."""
        asked = pb.GetPrivacySpentRequest(organization=organization, summed=True)
        return self._ask("GetPrivacySpent", asked, pb.PrivacySpent)

    def receipts(self, run_id: str = "", after: int = 0) -> pb.ReceiptPage:
        asked = pb.ListReceiptsRequest(run_id=run_id, after=after, limit=100)
        return self._ask("ListReceipts", asked, pb.ReceiptPage)

    def releases(self) -> pb.ReleasePage:
        return self._ask("ListReleases", pb.ListReleasesRequest(limit=100), pb.ReleasePage)

    def checkpoints(self, run_id: str) -> pb.CheckpointPage:
        asked = pb.ListCheckpointsRequest(run_id=run_id, from_first=True, limit=500)
        return self._ask("ListCheckpoints", asked, pb.CheckpointPage)

    def lineage(self, run_id: str = "") -> pb.Lineage:
        return self._ask("GetLineage", pb.GetLineageRequest(run_id=run_id), pb.Lineage, fresh_s=10.0)

    def base_models(self) -> list[tuple[str, str]]:
        """(SHA-256, name) of those that runs began with; none while the coordinator works it out, or is silent."""
        known = self._reader.known("GetLineage", pb.GetLineageRequest(), self.acting, fresh_s=60.0)
        nodes = known.nodes if isinstance(known, pb.Lineage) else ()
        return [(one.id.removeprefix("base:"), one.label) for one in nodes if one.kind == "base"]

    def audit(self, query: pb.ListAuditRequest) -> pb.AuditPage:
        return self._ask("ListAudit", query, pb.AuditPage)

    def verdict(self) -> pb.AuditVerdict | None:
        """Of the whole chain as it was verified last, at `clock`; None while that is done for the first time."""
        known = self._reader.known("VerifyAudit", pb.VerifyAuditRequest(), self.acting, fresh_s=60.0)
        return known if isinstance(known, pb.AuditVerdict) else None

    def change(self, method: str, request: Message) -> Message:
        """Do something. Raises ConfideError."""
        return self._reader.change(method, request, self.acting)
