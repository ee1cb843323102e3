"""Answers that annotators compare, and their judgements: handed over, checked, kept once."""

from collections.abc import Sequence
from typing import TypeVar

from confide import canonical
from confide.errors import DataError, IdentityError, TransportError
from confide.proto import admin_pb2 as pb
from confide.text import line
from pydantic import ValidationError

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.admin.parts import AdminParts, limited
from confide_server.rlhf.annotation.preferences import Candidate, Comparison, check_candidates
from confide_server.state.preference_tables import Judged

MOST_AT_ONCE = 500
D = TypeVar("D", Candidate, Comparison)


class PreferenceMethods:
    """One method each."""

    def __init__(self, parts: AdminParts) -> None:
        self._store = parts.preferences

    def put_candidates(self, caller: Caller, request: pb.PutCandidatesRequest) -> pb.PreferencesKept:
        """Answers of one prompt set; the same again changes nothing."""
        known = check_candidates(_read(request.candidates, Candidate))
        asked = sorted({one.prompt for one in known.values()})
        name, source, licence = line(request.name, 64), line(request.source, 256), line(request.licence, 64)
        prompts = self._store.add_prompts(asked, name=name, source=source, licence=licence)
        documents = {key: canonical.encode(one.model_dump(mode="json")) for key, one in known.items()}
        return pb.PreferencesKept(kept=self._store.add_candidates(prompts, documents))

    def put_ratings(self, caller: Caller, request: pb.PutRatingsRequest) -> pb.PreferencesKept:
        """The caller's own judgements, all or none. Raises IdentityError ANNOTATOR_OTHER, or RATING_REPLAYED."""
        own = caller.acting.user or caller.name
        made = _read(request.ratings, Comparison)
        others = sorted({one.annotator for one in made} - {own})
        if others:
            raise IdentityError(
                f"ANNOTATOR_OTHER: {own} handed over judgements of {others[0]}; each annotator uploads their own"
            )
        judged = [Judged(one.pair, one.annotator, _bytes(one), one.undone) for one in made]
        return pb.PreferencesKept(kept=self._store.take(judged, by=caller.by))

    def list_ratings(self, caller: Caller, request: pb.ListRatingsRequest) -> pb.RatingPage:
        """Those that stand, in the order in which they came."""
        limit = limited(request.limit, default=MOST_AT_ONCE, most=MOST_AT_ONCE)
        rows, more = self._store.page(after=request.after, limit=limit)
        last = rows[-1][0] if rows else request.after
        return pb.RatingPage(ratings=[document for _, document in rows], last=last, more=more)


def _bytes(document: Comparison) -> bytes:
    return canonical.encode(document.model_dump(mode="json"))


def _read(documents: Sequence[bytes], kind: type[D]) -> list[D]:
    """Raises TransportError for too many, DataError for what is none."""
    if not 1 <= len(documents) <= MOST_AT_ONCE:
        raise TransportError(f"{len(documents)} documents came; from 1 to {MOST_AT_ONCE} are taken at once")
    found: list[D] = []
    for number, data in enumerate(documents, start=1):
        try:
            found.append(kind.model_validate_json(data))
        except (ValidationError, ValueError, RecursionError) as error:
            raise DataError(f"document {number} is no {kind.__name__}; send what `confide rlhf` wrote") from error
    return found
