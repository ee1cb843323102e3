"""A console over a coordinator in memory, and people who sign in to it with real passwords and codes."""

import contextlib
import itertools
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyotp
from confide.errors import StateError, TransportError
from confide.proto import admin_pb2 as pb
from confide.proto.fleet_pb2 import Hardware
from confide_server.console.accounts.codes import STEP_S
from confide_server.console.federation.reading import Acting
from confide_server.console.roles import Role
from confide_server.console.settings import Settings
from confide_server.console.web.app import Console
from starlette.testclient import TestClient

RUN_ID = "0123456789abcdef" * 2
PASSWORD = "four unrelated words here"
HOST = "http://127.0.0.1:9444"
NODES = ("bank-b", "hospital-a", "law-firm-c")


@dataclass
class MemoryCoordinator:
    """Answers from what a test puts in; remembers what was asked and changed, and for whom."""

    name: str = "example"
    nodes: tuple[str, ...] = NODES
    reason: str = "no record is long enough"
    silent: bool = False
    asked: list[tuple[str, Acting]] = field(default_factory=list)
    changed: list[tuple[str, object, Acting]] = field(default_factory=list)
    happened: list[pb.Event] = field(default_factory=list)
    status: str = "running"
    slots: int = 10
    gate: str = "not_asked"
    receipts: list[pb.ReceiptLine] = field(default_factory=list)

    def ask(self, method, request, acting):
        if self.silent:
            raise TransportError("no coordinator answers at 127.0.0.1:9; is it started?")
        self.asked.append((method, acting))
        answer = getattr(self, f"_{method}", None)
        if answer is None:
            self.changed.append((method, request, acting))
            return pb.RunChanged(clock=time.time(), run=self.run_line())
        return answer(request, acting)

    def events(self, request, acting):
        if self.silent:
            raise TransportError("no coordinator answers")
        if request.newest_only:
            yield pb.Event(clock=time.time(), kind="alive", alive=pb.Alive())
            return
        yield from self.happened
        yield pb.Event(clock=time.time(), kind="alive", alive=pb.Alive())

    def export_audit(self, acting):
        yield b'{"number":1}\n'

    def run_line(self, acting=None):
        mine = acting is None or acting.role is not Role.ORGANIZATION
        return pb.RunLine(
            run_id=RUN_ID, name=self.name, status=self.status, round=2, rounds=5, sealing="sealed",
            submitted_at=time.time() - 900, administrator="administrator", method="sft", data="notes",
            privacy_unit="record", cohort=self.nodes if mine else [acting.organization],
            organizations=len(self.nodes), last_event=len(self.happened),
        )  # fmt: skip

    def _GetServerStatus(self, request, acting):
        now = time.time()
        disk = pb.DiskStatus(what="state", path="/srv", free_bytes=80 << 30, total_bytes=100 << 30)
        return pb.ServerStatus(
            clock=now, release="0.2.0", coordinator="coordinator", consortium=self.name, roster_version=4,
            roster_expires_at=now + 60 * 86400, certificate_expires_at=now + 90 * 86400, disks=[disk],
            threads=[pb.ThreadStatus(name="driver", alive=True)],
        )  # fmt: skip

    def _ListRuns(self, request, acting):
        fits = (not request.statuses or self.status in request.statuses) and (
            not request.run_ids or RUN_ID in request.run_ids
        )
        runs = [self.run_line(acting)] if fits else []
        return pb.RunPage(clock=time.time(), runs=runs, total=len(runs))

    def _GetRun(self, request, acting):
        if request.run_id != RUN_ID:
            raise StateError(f"there is no run {request.run_id[:40]}")
        return pb.RunDetail(
            clock=time.time(), run=self.run_line(acting), plan=f"run {self.name}\n  5 rounds", model_sha256="ab" * 32,
            specification_toml=f'name = "{self.name}"', specification_sha256="cd" * 32,
            privacy=pb.PrivacyClaim(unit="record", epsilon=8.0, delta=1e-5),
            offers=[pb.OfferLine(node=node, answer="accepted", reason=self.reason) for node in self.nodes],
        )  # fmt: skip

    def _ListRounds(self, request, acting):
        def part(node, number):
            lost = number == 2 and node == self.nodes[-1]
            state = "dropped" if lost else "contributed"
            return pb.Participation(organization=node, state=state, code="LATE" if lost else "", bytes=1000,
                                    reason=self.reason if lost else "")  # fmt: skip

        rounds = [
            pb.RoundLine(
                round=number, attempts=1, committed_at=time.time() - 300 + number, seconds=12.5,
                update_norm=1.0 / number,
                metrics={"train_loss": pb.Metric(mean=4.0 - number / 2, count=3)}, model_sha256="ef" * 32,
                participation=[part(node, number) for node in self.nodes], contributors=3, received_bytes=3000,
                phases={"train": 10.0, "reveal": 1.0}, promise=f"with 3 organizations: {self.reason}",
            )
            for number in (1, 2)
        ]  # fmt: skip
        return pb.RoundPage(clock=time.time(), rounds=[line for line in rounds if line.round > request.after_round])

    def _ListMembers(self, request, acting):
        now = time.time()
        machine = Hardware(cores=8, memory_gib=64, vector_units=["avx2", self.reason], accelerator=self.reason)
        members = [
            pb.MemberLine(name=node, role="node", state="connected", last_seen=now - 3, release="0.2.0",
                          certificate_expires_at=now + 200 * 86400, identity_key="12" * 32, round_s=64.0,
                          hardware=machine)
            for node in self.nodes
        ]  # fmt: skip
        if acting.role is Role.ORGANIZATION:
            members = [one for one in members if one.name == acting.organization]
        return pb.MemberPage(clock=now, members=members, roster_version=4)

    def _ListEnrolments(self, request, acting):
        return pb.EnrolmentPage(clock=time.time(), enrolments=[])

    def _ListRosters(self, request, acting):
        line = pb.RosterLine(version=4, sha256="aa" * 32, issued_at=time.time(), expires_at=time.time(), members=5,
                             admitted=self.nodes)  # fmt: skip
        return pb.RosterPage(clock=time.time(), rosters=[line])

    def _GetSignedRoster(self, request, acting):
        return pb.SignedRosterReply(clock=time.time(), version=request.version, roster=b'{"version": 4}')

    def _GetPrivacySpent(self, request, acting):
        lines = [
            pb.PrivacyLine(organization=node, group="notes", run_id=RUN_ID, run_name=self.name, unit="record", runs=1,
                           spent_slots=2, approved_slots=self.slots, epsilon_claimed=8.0, epsilon_spent_at_most=8.0,
                           delta=1e-5, run_at=time.time() - 900)
            for node in self.nodes if not request.organization or node == request.organization
        ]  # fmt: skip
        return pb.PrivacySpent(clock=time.time(), spent=lines)

    def _ListReceipts(self, request, acting):
        found = [one for one in self.receipts if request.run_id in {"", one.run_id}]
        return pb.ReceiptPage(clock=time.time(), receipts=found)

    def _ListReleases(self, request, acting):
        release = pb.Release(name="support", number=1, status="signed", run_id=RUN_ID, round=2, model_sha256="ef" * 32,
                             notes=self.reason, signatures_needed=1, gate=self.gate)  # fmt: skip
        return pb.ReleasePage(clock=time.time(), releases=[release])

    def _GetLineage(self, request, acting):
        nodes = [
            pb.LineageNode(id="base:" + "0" * 64, kind="base", label=self.name, status=""),
            pb.LineageNode(id=f"run:{RUN_ID}", kind="run", label=self.name, status="running"),
            pb.LineageNode(id="release:support/1", kind="release", label="support 1", status="signed"),
        ]
        edges = [pb.LineageEdge(**{"from": nodes[0].id}, to=nodes[1].id)]
        edges.append(pb.LineageEdge(**{"from": nodes[1].id}, to=nodes[2].id, round=2))
        return pb.Lineage(clock=time.time(), nodes=nodes, edges=edges)

    def _ListAudit(self, request, acting):
        body = b'{"event":"run_submitted","why":"' + self.reason.replace('"', "").encode() + b'"}'
        line = pb.AuditLine(number=7, time=time.time(), body=body, hash="99" * 32, event="run_submitted",
                            run_id=RUN_ID, who="administrator")  # fmt: skip
        return pb.AuditPage(clock=time.time(), entries=[line])

    def _VerifyAudit(self, request, acting):
        return pb.AuditVerdict(clock=time.time(), entries=7, head="99" * 32, sound=True)


class Browser(TestClient):
    """A client that behaves as a browser on the console's own pages: keeps cookies, sends the forms' own token."""

    seed = ""
    clock = staticmethod(time.time)
    """The one by which the console takes codes."""

    def form(self, page, action=None):
        """Hidden fields of a page's form."""
        text = self.get(page).text
        found = re.search(r'name="csrf" value="([^"]+)"', text)
        return {"csrf": found.group(1) if found else ""}

    def submit(self, address, page="/account", **fields):
        """POST with the token of a page of this session."""
        return self.post(address, data=self.form(page) | fields)

    def next_code(self):
        """A code that was not used yet: the one before, the present one, or the one after it (all three are taken)."""
        self.used = max(getattr(self, "used", 0), int(self.clock()) // STEP_S - 2) + 1
        return pyotp.TOTP(self.seed).at(self.used * STEP_S)

    def wrong_codes(self, count):
        """So many that are none of this moment: of any three codes that a test makes up, one is right in 10^5 runs."""
        right = {pyotp.TOTP(self.seed).at(self.clock() + step * STEP_S) for step in (-1, 0, 1)}
        return list(itertools.islice((code for code in (f"{n:06}" for n in range(10**6)) if code not in right), count))


def standing(console: Console) -> Console:
    """With codes of one moment: none ends on its way from the test to the console, however slow they are."""
    now = time.time()
    console.people._clock = lambda: now
    return console


def make_console(folder: Path, coordinator=None, **settings) -> Console:
    """A console on loopback."""
    coordinator = coordinator or MemoryCoordinator()
    return standing(Console(folder, Settings(**settings), coordinator, issuer="Confide example", port=9444))


def browser(console: Console, base_url: str = HOST, **options) -> Browser:
    """Nobody is signed in yet."""
    made = Browser(console.app(), base_url=base_url, follow_redirects=True, **options)
    made.clock = console.people._clock
    return made


def welcome(client: Browser, link: str, name: str) -> Browser:
    """Make the account of a link and stay signed in."""
    page = client.get("/welcome", params={"link": link})
    client.seed = re.search(r'name="seed" value="([A-Z2-7]+)"', page.text).group(1)
    fields = {"link": link, "seed": client.seed, "name": name, "password": PASSWORD, "again": PASSWORD}
    answer = client.post("/welcome", data=fields | {"code": client.next_code()})
    assert answer.status_code == 200, re.search(r'class="wrong"[^>]*>([^<]+)', answer.text)
    return client


def person(console: Console, role: Role, organization: str = "", name: str = "") -> Browser:
    """Somebody of the role, signed in."""
    link = console.people.invite(role, organization)
    return welcome(browser(console), link, name or f"{role.value}-{organization or 'x'}")


@contextlib.contextmanager
def running(console: Console):
    """With its event thread, as uvicorn would run it."""
    with TestClient(console.app(), base_url=HOST):
        yield console
