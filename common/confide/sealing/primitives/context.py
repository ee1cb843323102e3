"""The context of a slot: one hash over everything that all members of it must agree on.

Guarantee: members with different contexts derive unrelated masks and sign unrelated statements, so that showing
different things to different nodes yields garbage and no quorum (Pasquini et al. 2022), as far as SHA-256 holds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from confide import canonical
from confide.codec.layout import VectorLayout
from confide.models.travel import Travel
from confide.proto import sealing_pb2
from confide.runs.parameters import Parameters
from confide.runs.schedule import clip_norm
from confide.runs.specification import Specification
from confide.sealing.primitives import scalars, wire
from confide.sealing.primitives.bundles import EpochTerms
from confide.sealing.roles import SlotPlan

if TYPE_CHECKING:
    from confide.privacy.shared import SlotNoise

LIST_DOMAIN = "sealing/list"


def slot_layout(
    specification: Specification, parameters: Parameters, bundles: bytes, plan: SlotPlan, travel: Travel
) -> VectorLayout:
    """How what travels in this slot becomes integers. The rotation's seed follows from the bundles alone."""
    seed = canonical.hash_fields("confide/v1/sealing/rotation", bundles, _number(plan.slot))
    noise = slot_noise(specification, parameters, plan, travel)
    if noise is not None:
        return noise.layout(specification, travel.most, scalars=scalars.COUNT, rotation_seed=seed)
    return VectorLayout(
        parameters=0 if plan.evaluate_only else travel.count(plan.round),
        scalars=scalars.COUNT,
        bits=specification.sealing.bits,
        members=parameters.members,
        clip=clip_norm(specification, plan.round),
        rotation_seed=seed,
    )


def slot_noise(
    specification: Specification, parameters: Parameters, plan: SlotPlan, travel: Travel
) -> "SlotNoise | None":
    """What every member adds to its update in this slot; None where no update travels or privacy is not shared."""
    if not specification.privacy.shared or plan.evaluate_only:
        return None
    from confide.privacy import shared  # the accountants are slow to import, and few runs need them

    return shared.slot_noise(specification, travel.most, members=parameters.members)


def slot_context(
    terms: EpochTerms, parameters: Parameters, bundles: bytes, plan: SlotPlan, layout: VectorLayout
) -> bytes:
    """32 bytes that stand for the slot in every key, mask and signature."""
    return context_of(
        run_id=terms.run_id,
        specification_sha256=terms.specification_sha256,
        model_sha256=plan.model_sha256,
        parent_model_sha256=plan.parent_model_sha256,
        roster_sha256=terms.roster_sha256,
        bundles=bundles,
        numbers=(terms.epoch, plan.slot, plan.round, plan.attempt, int(plan.evaluate_only)),
        layout=layout.to_bytes(),
        parameters=(parameters.members, parameters.colluding, parameters.threshold, parameters.quorum),
    )


def context_of(
    *,
    run_id: str,
    specification_sha256: bytes,
    model_sha256: bytes,
    parent_model_sha256: bytes,
    roster_sha256: bytes,
    bundles: bytes,
    numbers: tuple[int, int, int, int, int],
    layout: bytes,
    parameters: tuple[int, int, int, int],
) -> bytes:
    """`slot_context` from its parts. numbers: epoch, slot, round, attempt, evaluate_only; parameters: n, c, t, q."""
    return canonical.hash_fields(
        "confide/v1/sealing/context",
        _number(wire.VERSION),
        run_id.encode(),
        specification_sha256,
        model_sha256,
        parent_model_sha256,
        roster_sha256,
        bundles,
        *map(_number, numbers),
        layout,
        *map(_number, parameters),
    )


def list_digest(context: bytes, slot: int, survivors: Sequence[sealing_pb2.Survivor]) -> bytes:
    """Names one list of survivors with their uploads in one slot."""
    fields = [field for item in survivors for field in (item.node.encode(), item.upload_digest)]
    return canonical.hash_fields("confide/v1/sealing/survivors", context, _number(slot), *fields)


def list_statement(survivors: bytes, signer: str, anchored: bool) -> bytes:
    """What `signer` signs about a list (its `list_digest`), domain LIST_DOMAIN."""
    return canonical.hash_fields("confide/v1/sealing/list", survivors, signer.encode(), _number(int(anchored)))


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")
