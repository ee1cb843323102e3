"""Checkpoints, releases, and where models come from."""

import re

from confide.errors import TransportError
from confide.proto import admin_pb2 as pb
from confide.text import paragraph

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import AdminParts, limited
from confide_server.api.grpc.control import checked_run_id
from confide_server.state.releases import Release

_CURSOR = re.compile(r"([0-9]{1,12}\.[0-9]{1,9})/([a-z0-9][a-z0-9._-]{0,63})/([0-9]{1,9})")


class ModelMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._releases = parts.releases

    def list_checkpoints(self, caller: Caller, request: pb.ListCheckpointsRequest) -> pb.CheckpointPage:
        """Models after the rounds of one run, first to last."""
        run_id = checked_run_id(request.run_id)
        if caller.scope and not self._parts.views.in_cohort(run_id, caller.scope):
            caller.check_sees(run_id)
        limit = limited(request.limit, default=100, most=500)
        after = -1 if request.from_first else request.after_round
        rows, more, released = self._parts.views.checkpoints(run_id, after=after, limit=limit)
        lines = [
            pb.CheckpointLine(
                run_id=run_id,
                round=row.round,
                model_sha256=row.model_sha256.hex(),
                bytes=row.size,
                committed_at=row.committed_at or 0.0,
                releases=released.get(row.round, []),
            )
            for row in rows
        ]
        return pb.CheckpointPage(checkpoints=lines, more=more)

    def create_release(self, caller: Caller, request: pb.CreateReleaseRequest) -> pb.Release:
        """A document that administrators sign."""
        notes = paragraph(request.notes)
        if request.aligned:
            if request.run_id or request.round:
                raise TransportError("a release is of a run's round or of an aligned adapter; name one of the two")
            return self._told(self._releases.create_aligned(request.name, request.aligned, notes, caller.by))
        run_id = checked_run_id(request.run_id)
        return self._told(self._releases.create(request.name, run_id, request.round, notes, caller.by))

    def sign_release(self, caller: Caller, request: pb.SignReleaseRequest) -> pb.Release:
        """Keep an administrator's signature over a release's document."""
        signer = request.administrator or caller.name
        return self._told(self._releases.sign(request.name, request.number, signer, request.signature))

    def attach_evidence(self, caller: Caller, request: pb.AttachEvidenceRequest) -> pb.Release:
        """Keep evidence that a release's model passed the gate."""
        signer = request.signer or caller.name
        return self._told(self._releases.attach(request.name, request.number, signer, request.evidence))

    def override_gate(self, caller: Caller, request: pb.OverrideGateRequest) -> pb.Release:
        """Keep one administrator's signature that a release goes without."""
        signer, reason = request.administrator or caller.name, paragraph(request.reason)
        if reason != request.reason:
            raise TransportError("the reason holds characters that are not shown, so that what is signed would not be")
        return self._told(self._releases.override(request.name, request.number, signer, reason, request.signature))

    def publish_release(self, caller: Caller, request: pb.PublishReleaseRequest) -> pb.Release:
        """Let the name stand for it."""
        return self._told(self._releases.publish(request.name, request.number, caller.by))

    def roll_back_release(self, caller: Caller, request: pb.RollBackReleaseRequest) -> pb.Release:
        """Let the name stand for an earlier one again."""
        reason = paragraph(request.reason)
        return self._told(self._releases.roll_back(request.name, request.number, reason, caller.by))

    def list_releases(self, caller: Caller, request: pb.ListReleasesRequest) -> pb.ReleasePage:
        """Newest first."""
        limit, before = limited(request.limit, default=50, most=200), None
        if request.cursor:
            parsed = _CURSOR.fullmatch(request.cursor)
            if parsed is None:
                raise TransportError(f"{request.cursor[:40]!r} is no cursor of a page of releases; begin without one")
            before = (float(parsed[1]), parsed[2], int(parsed[3]))
        found = self._releases.list(name=request.name, limit=limit + 1, before=before)
        page = pb.ReleasePage(releases=[self._told(one) for one in found[:limit]])
        if len(found) > limit:
            last = found[limit - 1]
            page.next_cursor = f"{last.created_at:.9f}/{last.name}/{last.number}"
        return page

    def get_lineage(self, caller: Caller, request: pb.GetLineageRequest) -> pb.Lineage:
        """A graph of base models, runs and releases."""
        found = self._parts.views.lineage(checked_run_id(request.run_id) if request.run_id else "")
        nodes = [
            pb.LineageNode(id=name, kind=kind, label=label, status=status)
            for name, (kind, label, status) in found.nodes.items()
        ]
        edges = [pb.LineageEdge(to=end, round=round, **{"from": begin}) for begin, end, round in found.edges]
        return pb.Lineage(nodes=nodes, edges=edges)

    def _told(self, release: Release) -> pb.Release:
        said = release.said
        return pb.Release(
            name=release.name,
            number=release.number,
            status=release.status,
            document=release.document,
            sha256=release.sha256,
            run_id=release.run_id,
            round=release.round,
            model_sha256=said["model_sha256"],
            notes=said["notes"],
            created_by=release.created_by,
            created_at=release.created_at,
            signatures=[pb.ReleaseSignature(administrator=a, signature=s, at=at) for a, s, at in release.signatures],
            signatures_needed=self._releases.signatures_needed,
            published_at=release.published_at or 0.0,
            published_by=release.published_by,
            current=release.status == "published",
            gate=release.gate.status.value,
            evidence_sha256=release.gate.evidence_sha256,
            evidence_by=release.gate.evidence_by,
            overridden_by=release.gate.overridden_by,
        )
