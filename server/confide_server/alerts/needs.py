"""What needs a person now: one line each, with the one page that solves it. The worst first.

Pure: from the admin API's messages, as the coordinator's alerts and the console's first page have them.

>>> found = needs(Seen(status=pb.ServerStatus(trouble="the disk is full")), now=0.0)
>>> [(need.level, need.text) for need in found]
[('bad', 'needs.trouble')]
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from confide.proto import admin_pb2 as pb

from confide_server.alerts.words import TEXTS

DAY_S = 86400.0
CERTIFICATE_S = 14 * DAY_S
ROSTER_S = 7 * DAY_S
DISK_FREE = 0.1
LIVE = ("draft", "submitted", "offering", "running", "paused", "waiting")
ENDED = ("finished", "finished_with_fewer", "failed", "stopped")


@dataclass(frozen=True)
class Need:
    """level: bad (something stands still or broke) or warn. text, button: keys of the catalogue."""

    level: str
    text: str
    button: str
    address: str
    said: Mapping[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What it is about, in one word: the end of its text's key."""
        return self.text.rpartition(".")[2]

    @property
    def same(self) -> str:
        """Equal for what is the same matter, whatever number of days or reason it is told with."""
        about = [f"{name}={self.said[name]}" for name in ("run", "who", "what") if name in self.said]
        return "|".join([self.kind, self.address, *about])


@dataclass(frozen=True)
class Seen:
    """What is looked at; what the visitor may not see is empty."""

    status: pb.ServerStatus | None = None
    live: Sequence[pb.RunLine] = ()
    ended: Sequence[pb.RunLine] = ()
    members: Sequence[pb.MemberLine] = ()
    enrolments: Sequence[pb.EnrolmentLine] = ()
    releases: Sequence[pb.Release] = ()
    spent: Sequence[pb.PrivacyLine] = ()
    silent_since: float = 0.0
    """Unix seconds since when the coordinator has not answered, as a console noticed; 0: it answers."""


def needs(seen: Seen, *, now: float) -> list[Need]:
    """now: the coordinator's clock."""
    found = [*_of_silence(seen.silent_since), *_of_server(seen, now), *_of_runs(seen, now), *_of_budgets(seen),
             *_of_members(seen, now), *_of_releases(seen.releases)]  # fmt: skip
    return sorted(found, key=lambda need: need.level != "bad")


def _of_silence(since: float) -> Iterator[Need]:
    if since:
        at = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M UTC")
        yield Need("bad", "needs.silent", "button.overview", "/", {"since": at})


def _of_server(seen: Seen, now: float) -> Iterator[Need]:
    status = seen.status
    if status is None:
        return
    if status.trouble:
        yield Need("bad", "needs.trouble", "button.audit", "/audit", {"why": status.trouble})
    for thread in status.threads:
        if not thread.alive:
            yield Need("bad", "needs.thread", "button.audit", "/audit", {"what": thread.name})
    for disk in status.disks:
        if disk.total_bytes and disk.free_bytes < DISK_FREE * disk.total_bytes:
            share = round(100 * disk.free_bytes / disk.total_bytes)
            yield Need("bad" if share < 3 else "warn", "needs.disk", "button.models", "/models",
                       {"what": disk.what, "share": share})  # fmt: skip
    if status.roster_expires_at and status.roster_expires_at - now < ROSTER_S:
        level = "bad" if status.roster_expires_at < now else "warn"
        yield Need(level, "needs.roster", "button.members", "/members", {"days": _days(status.roster_expires_at, now)})
    if status.certificate_expires_at and status.certificate_expires_at - now < CERTIFICATE_S:
        yield Need("warn", "needs.own_certificate", "button.members", "/members",
                   {"days": _days(status.certificate_expires_at, now)})  # fmt: skip


def _of_runs(seen: Seen, now: float) -> Iterator[Need]:
    for run in seen.live:
        said: dict[str, object] = {"run": run.name or run.run_id[:8], "who": listed(run.waits_for)}
        address = f"/runs/{run.run_id}"
        if run.status == "waiting" or run.waits_for:
            yield Need("bad" if run.status == "waiting" else "warn", "needs.waits", "button.run", address, said)
        elif run.status == "paused":
            yield Need("warn", "needs.paused", "button.run", address, said | {"who": run.paused_by or "?"})
        elif run.status == "draft":
            yield Need("warn", "needs.draft", "button.run", address, said)
    for run in seen.ended:
        if run.status == "failed" and now - run.ended_at < DAY_S:
            said = {"run": run.name or run.run_id[:8], "why": run.detail}
            yield Need("bad", "needs.failed", "button.run", f"/runs/{run.run_id}", said)


def _of_budgets(seen: Seen) -> Iterator[Need]:
    # Only slots are known here: the limit itself stands at the organization (docs/privacy.md).
    live = {run.run_id: run for run in seen.live if run.status != "draft"}
    for line in seen.spent:
        run, left = live.get(line.run_id), line.approved_slots - line.spent_slots
        if run is None or not line.approved_slots or left >= run.rounds - run.round:
            continue
        said = {"run": run.name or run.run_id[:8], "who": line.organization, "what": line.group, "count": left,
                "round": run.round + left}  # fmt: skip
        yield Need("warn" if left else "bad", "needs.budget", "button.privacy", "/privacy", said)


def _of_members(seen: Seen, now: float) -> Iterator[Need]:
    away = [member.name for member in seen.members if member.role == "node" and member.state == "offline"]
    awaited = {name for run in seen.live if run.status in {"running", "waiting"} for name in run.cohort}
    if away:
        level = "bad" if awaited & set(away) else "warn"
        yield Need(level, "needs.away", "button.members", "/members", {"count": len(away), "who": listed(away)})
    ending = [one.name for one in seen.members if 0 < one.certificate_expires_at < now + CERTIFICATE_S
              and not one.revoked_at]  # fmt: skip
    if ending:
        yield Need("warn", "needs.certificates", "button.members", "/members",
                   {"count": len(ending), "who": listed(ending)})  # fmt: skip
    if seen.enrolments:
        names = [one.name for one in seen.enrolments]
        yield Need("warn", "needs.enrolments", "button.members", "/members#enrolments",
                   {"count": len(names), "who": listed(names)})  # fmt: skip


def _of_releases(releases: Iterable[pb.Release]) -> Iterator[Need]:
    for release in releases:
        if release.status in {"created", "signed"}:
            key = "needs.release_unsigned" if release.status == "created" else "needs.release_unpublished"
            yield Need("warn", key, "button.models", "/models", {"what": f"{release.name} {release.number}"})


def _days(until: float, now: float) -> int:
    return max(0, int((until - now) // DAY_S))


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names in a sentence.

    >>> listed(["a", "b"]), listed("abcdef", most=3)
    ('a, b', 'a, b, c and 3 more')
    """
    every = list(names)
    shown = ", ".join(every[:most])
    return TEXTS("list.more", shown=shown, left=len(every) - most) if len(every) > most else shown
