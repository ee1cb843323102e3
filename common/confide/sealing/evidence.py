"""What a committed sum leaves for an auditor: the members' signed list, and everything that its statement is made of.

`of_slot` is the coordinator's half, `check_sum` anybody's who holds the roster (docs/sealing.md, "What a manifest
proves").
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from confide import canonical
from confide.errors import FailureName, IdentityError, ProtocolFailure
from confide.identity.keys import verify
from confide.identity.roster import Role, Roster
from confide.proto import sealing_pb2
from confide.runs.parameters import Parameters
from confide.runs.sections import Name, Sha256
from confide.sealing.collector.state import EpochRecord, SlotRecord
from confide.sealing.primitives import context, wire

Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Number = Annotated[int, Field(ge=0, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Signer(_Strict):
    """One member's signature under the list."""

    node: Name
    anchored: bool
    signature: Signature


class Evidence(_Strict):
    """One opened sum: of a round, or of one group in it."""

    epoch: Number
    slot: Number
    attempt: Number
    evaluate_only: bool
    parent_model_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    roster_sha256: Sha256
    bundles: Sha256
    """Digest of the epoch's bundles."""
    layout: Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]
    n: Number
    c: Number
    q: Number
    t: Number
    d: Number
    survivors: tuple[tuple[Name, Sha256], ...]
    """The list L, in order of the names: node and digest of its upload."""
    signers: tuple[Signer, ...]


def of_slot(epoch: EpochRecord, slot: SlotRecord) -> dict[str, Any]:
    """The evidence of a slot whose sum was opened."""
    parameters, key, layout = epoch.parameters, epoch.key, slot.layout
    assert parameters is not None and key is not None and layout is not None  # noqa: S101 - its sum was opened
    return {
        "epoch": epoch.terms.epoch,
        "slot": slot.plan.slot,
        "attempt": slot.plan.attempt,
        "evaluate_only": slot.plan.evaluate_only,
        "parent_model_sha256": slot.plan.parent_model_sha256.hex(),
        "roster_sha256": epoch.terms.roster_sha256.hex(),
        "bundles": key.bundles.hex(),
        "layout": layout.to_bytes().hex(),
        "n": parameters.members,
        "c": parameters.colluding,
        "q": parameters.quorum,
        "t": parameters.threshold,
        "d": parameters.missing,
        "survivors": [[item.node, item.upload_digest.hex()] for item in slot.survivor_list()],
        "signers": [
            {"node": name, "anchored": item.anchored, "signature": item.signature.hex()}
            for name, item in sorted(slot.confirmations.items())
        ],
    }


def parse(document: object) -> Evidence:
    """Raises MALFORMED."""
    try:
        return Evidence.model_validate_json(canonical.encode(document))
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise wire.malformed(f"the evidence of a round is none: {error}") from error


def check_sum(
    found: Evidence,
    rosters: Mapping[str, Roster],
    *,
    run_id: str,
    specification_sha256: str,
    model_sha256: str,
    round_number: int,
    min_cohort: int,
) -> tuple[str, ...]:
    """The names in the sum, when q of them signed exactly this list for exactly this model and round.

    rosters: by digest, each verified under the root's key. model_sha256: of the model that was trained on, hex.
    Raises ROSTER_STALE, PARAMETERS_IMPOSSIBLE, COHORT_NOT_EPOCH, LIST_TOO_SMALL, DUPLICATE_SIGNER, QUORUM_SHORT or
    CONTEXT_MISMATCH.

    Guarantee: as long as at most c of the n members lie, each honest signer's update was made for this run, round and
    model and its upload is the one that is listed, against a coordinator that altered what it tells.
    """
    roster = rosters.get(found.roster_sha256)
    if roster is None:
        raise ProtocolFailure(
            FailureName.ROSTER_STALE, f"the roster {found.roster_sha256[:16]} of round {round_number} is not there"
        )
    parameters = Parameters(
        members=found.n, colluding=found.c, quorum=found.q, threshold=found.t, missing=found.d, min_cohort=min_cohort
    )
    names = [name for name, _ in found.survivors]
    _check_names(names, roster, parameters, round_number)
    statement = _statement(found, run_id, specification_sha256, model_sha256, round_number)
    signers = [signer.node for signer in found.signers]
    if len(set(signers)) != len(signers):
        raise ProtocolFailure(FailureName.DUPLICATE_SIGNER, f"a signer of round {round_number} stands twice")
    if not set(signers) <= set(names):
        raise ProtocolFailure(
            FailureName.COHORT_NOT_EPOCH, f"somebody signed in round {round_number} who is not listed"
        )
    if len(signers) < parameters.quorum:
        raise ProtocolFailure(
            FailureName.QUORUM_SHORT,
            f"{len(signers)} signed the list of round {round_number}; {parameters.quorum} must",
        )
    for signer in found.signers:
        body = context.list_statement(statement, signer.node, signer.anchored)
        try:
            verify(_key(roster, signer.node), context.LIST_DOMAIN, body, bytes.fromhex(signer.signature))
        except IdentityError as error:
            raise ProtocolFailure(
                FailureName.CONTEXT_MISMATCH,
                f"{signer.node} did not sign this list of round {round_number} for this run, model and epoch",
            ) from error
    return tuple(names)


def _check_names(names: Sequence[str], roster: Roster, parameters: Parameters, round_number: int) -> None:
    if list(names) != sorted(set(names)) or len(names) > parameters.members:
        raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"the list of round {round_number} is not one of the epoch")
    for name in names:
        _key(roster, name)
    if len(names) < parameters.smallest_list:
        raise ProtocolFailure(
            FailureName.LIST_TOO_SMALL,
            f"the sum of round {round_number} is over {len(names)}; it may be over no fewer than "
            f"{parameters.smallest_list}",
        )


def _key(roster: Roster, name: str) -> bytes:
    """Of a node of the roster; that it was revoked later takes nothing back."""
    for member in roster.members:
        if member.name == name and member.role is Role.NODE:
            return bytes.fromhex(member.identity_key)
    raise ProtocolFailure(FailureName.COHORT_NOT_EPOCH, f"{name} is no node of the roster of that round")


def _statement(found: Evidence, run_id: str, specification_sha256: str, model_sha256: str, round_number: int) -> bytes:
    """`context.list_digest` of the slot, from what the evidence says."""
    slot_context = context.context_of(
        run_id=run_id,
        specification_sha256=bytes.fromhex(specification_sha256),
        model_sha256=bytes.fromhex(model_sha256),
        parent_model_sha256=bytes.fromhex(found.parent_model_sha256),
        roster_sha256=bytes.fromhex(found.roster_sha256),
        bundles=bytes.fromhex(found.bundles),
        numbers=(found.epoch, found.slot, round_number, found.attempt, int(found.evaluate_only)),
        layout=bytes.fromhex(found.layout),
        parameters=(found.n, found.c, found.t, found.q),
    )
    survivors = [
        sealing_pb2.Survivor(node=name, upload_digest=bytes.fromhex(digest)) for name, digest in found.survivors
    ]
    return context.list_digest(slot_context, found.slot, survivors)
