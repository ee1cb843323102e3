"""Runs come in with their first models, and their models go out: both in chunks, never whole in memory."""

import itertools
from collections.abc import Callable, Iterator

from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import SpecificationError, TransportError
from confide.identity.submission import SignedSubmission, verify_submission
from confide.proto import admin_pb2 as pb
from confide.sealing.manifest import sign_manifest

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import AdminParts
from confide_server.api.grpc.admin.runs import run_line
from confide_server.api.grpc.control import checked_run_id
from confide_server.api.grpc.incoming_model import CHUNK_BYTES
from confide_server.state.runs.service import RunService, Submission


class SubmissionMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._runs: RunService = parts.journal

    def submit_run(
        self, caller: Caller, first: pb.SubmitRunRequest, rest: Iterator[pb.SubmitRunRequest]
    ) -> pb.RunChanged:
        """Check what the administrator signed, take the model, and queue the run."""
        if first.WhichOneof("part") != "header":
            raise TransportError("a submission must begin with its header")
        header = first.header
        # Before the model is read: a forged or repeated submission costs the coordinator one small message.
        signed = SignedSubmission(
            run_id=header.run_id,
            nonce=header.nonce,
            expires_at=header.expires_at,
            specification=header.specification,
            initial_model_sha256=header.initial_model_sha256,
            administrator=header.administrator or caller.name,
            signature=header.signature,
            parent_run_id=header.parent_run_id,
            parent_round=header.parent_round,
        )
        verify_submission(self._parts.member.roster.current, signed, complete=False)
        self._runs.check_new(signed)
        # Of anything but a chunk it is empty, which is refused.
        model = self._parts.incoming.receive(header.initial_model_bytes, (part.chunk for part in rest))
        found = model_digest(model)
        if found != header.initial_model_sha256:
            raise SpecificationError(
                f"the first model that came has the digest {found.hex()[:16]}, and "
                f"{header.initial_model_sha256.hex()[:16]} was signed; submit again"
            )
        run_id = self._runs.submit(Submission(signed=signed, initial_model=model, schema=header.schema))
        return pb.RunChanged(run=run_line(self._parts.views.line(run_id), ""))

    def export_run(
        self, caller: Caller, request: pb.ExportRunRequest, active: Callable[[], bool]
    ) -> Iterator[pb.ExportRunReply]:
        """A committed round's manifest, over the coordinator's signature, and its tensors."""
        member = self._parts.member
        model = self._runs.stored_model(checked_run_id(request.run_id), request.round or None)
        document = canonical.encode(sign_manifest(model.manifest, member.name, member.identity))
        yield pb.ExportRunReply(header=pb.ExportRunHeader(manifest_bytes=len(document), model_bytes=model.model_bytes))
        starts = range(0, len(document), CHUNK_BYTES)
        for chunk in itertools.chain((document[at : at + CHUNK_BYTES] for at in starts), model.chunks(CHUNK_BYTES)):
            if not active():
                return
            yield pb.ExportRunReply(chunk=chunk)
