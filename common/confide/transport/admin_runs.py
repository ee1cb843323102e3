"""Runs: they come in with their first models, are listed, watched and changed, and their models go out."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import TransportError
from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.identity.submission import (
    VALID_S,
    SignedSubmission,
    sign_cosignature,
    sign_stop,
    sign_submission,
    verify_submission,
)
from confide.models.sent_coordinates import needs_names
from confide.proto import admin_pb2 as pb
from confide.runs.specification import Specification
from confide.text import cleaned_message
from confide.transport.admin_calls import AdminCalls, new_key
from confide.transport.control import BULK_TIMEOUT_S, CHUNK_BYTES

ENDS = frozenset({"run_finished", "run_failed", "run_stopped", "run_deleted"})
"""Kinds of the events after which nothing more happens in a run."""


class RunCalls(AdminCalls):
    """What is asked and ordered of runs."""

    # --- they come in, and models go out

    def submit_run(
        self,
        specification: Specification,
        initial_model: bytes,
        identity: SigningKey,
        schema: TensorSchema | None = None,
        *,
        valid_s: int = VALID_S,
        key: str = "",
    ) -> str:
        """Sign and submit a run with its first model (raw trainable tensors); returns the run id, drawn here.

        schema: the first model's; needed where what travels depends on the tensors' names.
        valid_s: nodes accept the run for so long.
        """
        document, digest = specification.canonical_bytes(), model_digest(initial_model)
        signed = sign_submission(identity, self._claim.name, document, digest, valid_s=valid_s)
        header = pb.SubmitRunHeader(
            specification=document,
            initial_model_sha256=digest,
            signature=signed.signature,
            run_id=signed.run_id,
            nonce=signed.nonce,
            expires_at=signed.expires_at,
            initial_model_bytes=len(initial_model),
            schema=schema.to_bytes() if schema is not None and needs_names(specification) else b"",
        )
        return self.submit_signed(header, initial_model, key=key).run_id

    def submit_signed(self, header: pb.SubmitRunHeader, initial_model: bytes, *, key: str = "") -> pb.RunLine:
        """Submit what was signed already, perhaps elsewhere."""
        parts = _parts(header, initial_model, key or new_key())
        run = self._ask(self._admin.SubmitRun, parts, pb.RunChanged, timeout_s=BULK_TIMEOUT_S).run
        if run.run_id != header.run_id:
            raise TransportError(f"run {header.run_id} was submitted, and the coordinator calls it {run.run_id[:40]!r}")
        return run

    def export_run(self, run_id: str, round: int | None = None) -> tuple[dict[str, Any], bytes]:
        """(manifest, raw trainable tensors) of a committed round; None is the newest."""
        self._greet()
        request = pb.ExportRunRequest(run_id=run_id, round=round or 0)
        with self._failures():
            parts = self._admin.ExportRun(request, metadata=self._metadata(), timeout=BULK_TIMEOUT_S)
            header = next(parts).header
            data = b"".join(part.chunk for part in parts)
        if len(data) != header.manifest_bytes + header.model_bytes:
            raise TransportError(
                f"{len(data)} bytes of run {run_id} came; {header.manifest_bytes + header.model_bytes} were announced"
            )
        manifest = json.loads(data[: header.manifest_bytes])
        if not isinstance(manifest, dict):
            raise TransportError(f"the manifest of run {run_id} is not an object")
        return manifest, data[header.manifest_bytes :]

    # --- listed and watched

    def list_runs(
        self,
        *,
        statuses: Iterable[str] = (),
        name_contains: str = "",
        organization: str = "",
        administrator: str = "",
        method: str = "",
        parent_run_id: str = "",
        run_id_prefix: str = "",
        limit: int = 50,
        cursor: str = "",
    ) -> pb.RunPage:
        """One page of runs, newest first; `next_cursor` brings the next one."""
        query = pb.ListRunsQuery(
            statuses=list(statuses),
            name_contains=name_contains,
            organization=organization,
            administrator=administrator,
            method=method,
            parent_run_id=parent_run_id,
            run_id_prefix=run_id_prefix,
            limit=limit,
            cursor=cursor,
        )
        return self._ask(self._admin.ListRuns, query, pb.RunPage)

    def all_runs(self, statuses: Iterable[str] = ()) -> Iterator[pb.RunLine]:
        """Every run of these statuses (none: all but deleted ones), newest first, page by page."""
        wanted, cursor = list(statuses), ""
        while True:
            page = self.list_runs(statuses=wanted, limit=200, cursor=cursor)
            yield from page.runs
            cursor = page.next_cursor
            if not cursor:
                return

    def get_run(self, run_id: str) -> pb.RunDetail:
        """Everything about one run but its rounds and events."""
        return self._ask(self._admin.GetRun, pb.GetRunRequest(run_id=run_id), pb.RunDetail)

    def list_rounds(self, run_id: str, *, after: int = 0, limit: int = 100) -> pb.RoundPage:
        """Committed rounds after round `after`."""
        return self._ask(
            self._admin.ListRounds, pb.ListRoundsRequest(run_id=run_id, after_round=after, limit=limit), pb.RoundPage
        )

    def all_rounds(self, run_id: str) -> list[pb.RoundLine]:
        """Every committed round, page by page."""
        rounds: list[pb.RoundLine] = []
        while True:
            page = self.list_rounds(run_id, after=rounds[-1].round if rounds else 0, limit=500)
            rounds += page.rounds
            if not page.more or not page.rounds:
                return rounds

    def stream_events(
        self, run_id: str = "", *, after: int = 0, newest_only: bool = False, past_only: bool = False
    ) -> Iterator[pb.Event]:
        """Events after number `after`, then as they happen; "alive" every few seconds. Close it to leave.

        past_only: it ends once what had happened was told.
        Raises TransportError when the connection is lost: go on from the last event's number.
        """
        self._greet()
        request = pb.StreamEventsRequest(run_id=run_id, after=after, newest_only=newest_only, past_only=past_only)
        with self._failures():
            call = self._admin.StreamEvents(request, metadata=self._metadata())
            try:
                yield from map(cleaned_message, call)
            finally:
                call.cancel()

    def watch(self, run_id: str, *, after: int = 0) -> Iterator[pb.Event]:
        """The same of one run, until it has ended, without "alive"."""
        for event in self.stream_events(run_id, after=after):
            if event.kind != "alive":
                yield event
            if event.kind in ENDS:
                return

    # --- changed

    def pause_run(self, run_id: str, reason: str = "", *, key: str = "") -> pb.RunLine:
        """Let it rest once its open round has ended."""
        request = pb.PauseRunRequest(run_id=run_id, reason=reason, idempotency_key=key or new_key())
        return self._ask(self._admin.PauseRun, request, pb.RunChanged).run

    def resume_run(self, run_id: str, *, key: str = "") -> pb.RunLine:
        """Let it go on."""
        return self._ask(
            self._admin.ResumeRun, pb.ResumeRunRequest(run_id=run_id, idempotency_key=key or new_key()), pb.RunChanged
        ).run

    def set_priority(self, run_id: str, priority: int, *, key: str = "") -> pb.RunLine:
        """From -100 to 100; higher goes first."""
        request = pb.SetPriorityRequest(run_id=run_id, priority=priority, idempotency_key=key or new_key())
        return self._ask(self._admin.SetPriority, request, pb.RunChanged).run

    def order_stop(self, run_id: str, identity: SigningKey, *, key: str = "") -> pb.RunLine:
        """Stop it, by this administrator's signed order."""
        return self.pass_stop(run_id, "", sign_stop(identity, run_id), key=key)

    def pass_stop(self, run_id: str, administrator: str, signature: bytes, *, key: str = "") -> pb.RunLine:
        """Hand over an order that an administrator signed elsewhere."""
        request = pb.OrderStopRequest(
            run_id=run_id, administrator=administrator, signature=signature, idempotency_key=key or new_key()
        )
        return self._ask(self._admin.OrderStop, request, pb.RunChanged).run

    def delete_run(self, run_id: str, *, key: str = "") -> None:
        """Remove what is kept of a run that has ended."""
        self._ask(
            self._admin.DeleteRun, pb.DeleteRunRequest(run_id=run_id, idempotency_key=key or new_key()), pb.RunChanged
        )

    def continue_run(
        self,
        specification: Specification,
        identity: SigningKey,
        *,
        parent_run_id: str,
        parent_round: int,
        model_sha256: bytes,
        valid_s: int = VALID_S,
        key: str = "",
    ) -> pb.RunLine:
        """Sign and submit a run that begins with the model of another run's round (its digest: 32 bytes)."""
        document = specification.canonical_bytes()
        signed = sign_submission(
            identity,
            self._claim.name,
            document,
            model_sha256,
            valid_s=valid_s,
            parent_run_id=parent_run_id,
            parent_round=parent_round,
        )
        request = pb.ContinueRunRequest(
            idempotency_key=key or new_key(),
            specification=document,
            initial_model_sha256=model_sha256,
            signature=signed.signature,
            run_id=signed.run_id,
            nonce=signed.nonce,
            expires_at=signed.expires_at,
            parent_run_id=parent_run_id,
            parent_round=parent_round,
        )
        return self._ask(self._admin.ContinueRun, request, pb.RunChanged).run

    def cosign_run(self, detail: pb.RunDetail, identity: SigningKey, roster: Roster, *, key: str = "") -> pb.RunLine:
        """Sign a draft as this administrator, once the first one's signature holds.

        Guarantee: what is signed is the specification in `detail`, for its run id, nonce, expiry, first model, parent.
        """
        run = detail.run
        signed = SignedSubmission(
            run_id=run.run_id,
            nonce=detail.nonce,
            expires_at=int(detail.expires_at),
            specification=detail.specification,
            initial_model_sha256=bytes.fromhex(detail.initial_model_sha256),
            administrator=run.administrator,
            signature=detail.signature,
            parent_run_id=run.parent_run_id,
            parent_round=run.parent_round,
        )
        verify_submission(roster, signed, complete=False)
        request = pb.CosignRunRequest(
            run_id=run.run_id, signature=sign_cosignature(identity, signed), idempotency_key=key or new_key()
        )
        return self._ask(self._admin.CosignRun, request, pb.RunChanged).run


def event_data(event: pb.Event) -> dict[str, Any]:
    """What is in an event: every field by its name, also one that is empty or 0.

    >>> event_data(pb.Event(kind="run_stopped", run_stopped=pb.RunStopped()))
    {'round': 0}
    """
    which = event.WhichOneof("what")
    return _plain(getattr(event, which)) if which else {}


def _plain(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            said[field.name] = {
                key: _plain(value[key]) if isinstance(value[key], Message) else value[key] for key in value
            }
        elif isinstance(value, Message):
            said[field.name] = _plain(value)
        else:
            said[field.name] = list(value) if field.is_repeated else value
    return said


def _parts(header: pb.SubmitRunHeader, model: bytes, key: str) -> Iterator[pb.SubmitRunRequest]:
    yield pb.SubmitRunRequest(header=header, idempotency_key=key)
    view = memoryview(model)
    for start in range(0, len(model), CHUNK_BYTES):
        yield pb.SubmitRunRequest(chunk=bytes(view[start : start + CHUNK_BYTES]))
