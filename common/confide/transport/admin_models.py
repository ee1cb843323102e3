"""Models after rounds, releases, where models come from, and what people prefer."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from confide.errors import IdentityError
from confide.identity.keys import SigningKey
from confide.identity.submission import sign_override, sign_release
from confide.proto import admin_pb2 as pb
from confide.transport.admin_calls import AdminCalls, new_key


class ModelCalls(AdminCalls):
    """What is asked and signed of models."""

    def list_checkpoints(
        self, run_id: str, *, after: int = 0, from_first: bool = False, limit: int = 100
    ) -> pb.CheckpointPage:
        """Models after a run's rounds."""
        request = pb.ListCheckpointsRequest(run_id=run_id, after_round=after, from_first=from_first, limit=limit)
        return self._ask(self._admin.ListCheckpoints, request, pb.CheckpointPage)

    def create_release(self, name: str, run_id: str, round: int = 0, notes: str = "", *, key: str = "") -> pb.Release:
        """A document that administrators sign next."""
        request = pb.CreateReleaseRequest(
            name=name, run_id=run_id, round=round, notes=notes, idempotency_key=key or new_key()
        )
        return self._ask(self._admin.CreateRelease, request, pb.Release)

    def create_aligned_release(self, name: str, aligned: bytes, notes: str = "", *, key: str = "") -> pb.Release:
        """The same of an adapter that was optimised centrally. aligned: its document, as `rlhf train` wrote it."""
        request = pb.CreateReleaseRequest(name=name, aligned=aligned, notes=notes, idempotency_key=key or new_key())
        return self._ask(self._admin.CreateRelease, request, pb.Release)

    def sign_release(self, release: pb.Release, identity: SigningKey, *, key: str = "") -> pb.Release:
        """Sign a release's document as this administrator. Raises IdentityError when it says something else.

        Guarantee: what is signed names the model, run and round that `release` shows, whoever passed it on.
        """
        check_document(release)
        return self.pass_signature(release, "", sign_release(identity, release.document), key=key)

    def pass_signature(self, release: pb.Release, administrator: str, signature: bytes, *, key: str = "") -> pb.Release:
        """Hand over a signature that an administrator made elsewhere."""
        request = pb.SignReleaseRequest(
            name=release.name,
            number=release.number,
            administrator=administrator,
            signature=signature,
            idempotency_key=key or new_key(),
        )
        return self._ask(self._admin.SignRelease, request, pb.Release)

    def attach_evidence(
        self, name: str, number: int, evidence: bytes, *, signer: str = "", key: str = ""
    ) -> pb.Release:
        """Hand over the gate's evidence of a release's model. signer: who signed it; empty: this member."""
        request = pb.AttachEvidenceRequest(
            name=name, number=number, signer=signer, evidence=evidence, idempotency_key=key or new_key()
        )
        return self._ask(self._admin.AttachEvidence, request, pb.Release)

    def override_gate(self, release: pb.Release, reason: str, identity: SigningKey, *, key: str = "") -> pb.Release:
        """Sign as this administrator that a release goes without the gate's evidence. Raises as `sign_release`."""
        check_document(release)
        request = pb.OverrideGateRequest(
            name=release.name, number=release.number, reason=reason,
            signature=sign_override(identity, release.document, reason), idempotency_key=key or new_key(),
        )  # fmt: skip
        return self._ask(self._admin.OverrideGate, request, pb.Release)

    def publish_release(self, name: str, number: int, *, key: str = "") -> pb.Release:
        """Let the name stand for it."""
        request = pb.PublishReleaseRequest(name=name, number=number, idempotency_key=key or new_key())
        return self._ask(self._admin.PublishRelease, request, pb.Release)

    def roll_back_release(self, name: str, number: int, reason: str = "", *, key: str = "") -> pb.Release:
        """Let the name stand for an earlier one again."""
        request = pb.RollBackReleaseRequest(name=name, number=number, reason=reason, idempotency_key=key or new_key())
        return self._ask(self._admin.RollBackRelease, request, pb.Release)

    def list_releases(self, name: str = "", *, limit: int = 50, cursor: str = "") -> pb.ReleasePage:
        """Newest first."""
        request = pb.ListReleasesRequest(name=name, limit=limit, cursor=cursor)
        return self._ask(self._admin.ListReleases, request, pb.ReleasePage)

    def get_lineage(self, run_id: str = "") -> pb.Lineage:
        """Base models, runs and releases."""
        return self._ask(self._admin.GetLineage, pb.GetLineageRequest(run_id=run_id), pb.Lineage)

    def put_candidates(
        self, name: str, candidates: Sequence[bytes], *, source: str, licence: str, key: str = ""
    ) -> pb.PreferencesKept:
        """Hand over answers that annotators are to compare; at most 500 at once."""
        request = pb.PutCandidatesRequest(
            name=name, source=source, licence=licence, candidates=candidates, idempotency_key=key or new_key()
        )
        return self._ask(self._admin.PutCandidates, request, pb.PreferencesKept)

    def put_ratings(self, ratings: Sequence[bytes], *, key: str = "") -> pb.PreferencesKept:
        """Hand over this annotator's own judgements, all or none; at most 500 at once."""
        request = pb.PutRatingsRequest(ratings=ratings, idempotency_key=key or new_key())
        return self._ask(self._admin.PutRatings, request, pb.PreferencesKept)

    def list_ratings(self, *, after: int = 0, limit: int = 500) -> pb.RatingPage:
        """Judgements that stand, in order."""
        request = pb.ListRatingsRequest(after=after, limit=limit)
        return self._ask(self._admin.ListRatings, request, pb.RatingPage)


def check_document(release: pb.Release) -> dict[str, Any]:
    """A release's document. Raises IdentityError when the document says something else than the message beside it."""
    try:
        said = json.loads(release.document)
        shown = {"name": release.name, "number": release.number, "run_id": release.run_id, "round": release.round}
        shown["model_sha256"] = release.model_sha256
        same = all(said[key] == value for key, value in shown.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same or hashlib.sha256(release.document).hexdigest() != release.sha256:
        raise IdentityError(
            f"the document of release {release.name}/{release.number} says something else than what is shown of it; "
            "do not sign it, and tell the coordinator's operator"
        )
    found: dict[str, Any] = said
    return found
