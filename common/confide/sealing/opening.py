"""Opening a slot: reconstruct what the signed list allows, take the masks away, check the sum.

Guarantee: a wrong secret is noticed before it is used, and names its dealer by the dealer's own signatures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.codec.seal_vector import RunningSum
from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.proto import sealing_pb2
from confide.sealing import dealing, keys, scalars, shamir
from confide.sealing.collector_state import EpochBook, SlotBook
from confide.sealing.plain import l2_norm
from confide.sealing.roles import Metric

# Float32 sums of many coordinates round; this is far above that and far below any attack.
_NORM_SLACK = 1e-3


def open_sum(
    epoch: EpochBook, slot: SlotBook, uploads: Mapping[str, Path]
) -> tuple[NDArray[np.float32], float, dict[Metric, tuple[float, int]]]:
    """(update sum, weight sum, metrics) over the slot's list.

    Raises QUORUM_SHORT, BAD_DEALING (with its culprit) or SUM_OUT_OF_RANGE; nothing is then opened.
    """
    layout = slot.layout
    assert layout is not None and epoch.key is not None  # noqa: S101 - the slot is sealed
    total = RunningSum(layout)
    for seed, sign in masks_to_remove(epoch, slot):
        total.remove_mask(seed, sign)
    for name in slot.survivors:
        total.add(uploads[name], slot.uploads[name])
    try:
        update, integers = total.open(len(slot.survivors))
    except UpdateError as error:
        raise ProtocolFailure(FailureName.SUM_OUT_OF_RANGE, f"{error}; nothing of it is used") from error
    largest = len(slot.survivors) * layout.clip * (1 + layout.reach / layout.levels) * (1 + _NORM_SLACK)
    norm = l2_norm(update)
    if not norm <= largest:
        raise ProtocolFailure(
            FailureName.SUM_OUT_OF_RANGE,
            f"the opened sum has norm {norm:.6g}; {len(slot.survivors)} updates of norm {layout.clip:g} make at most "
            f"{largest:.6g}. Nothing of it is used",
        )
    weight, metrics = scalars.decode(integers, len(slot.survivors))
    return update, weight, metrics


def masks_to_remove(epoch: EpochBook, slot: SlotBook) -> list[tuple[bytes, int]]:
    """(seed, sign) of every mask that does not cancel in the sum over the list."""
    masks: list[tuple[bytes, int]] = []
    index = slot.plan.slot - epoch.terms.first_slot
    for name in epoch.members:
        secret = reconstruct(epoch, slot, name)
        bundle = epoch.bundle(name)
        if name in slot.survivors:
            stated = keys.commitment(secret, epoch.terms.run_id, epoch.terms.epoch, slot.plan.slot, name)
            _require_match(stated == bundle.seed_commitments[index], name, "self-mask seed")
            masks.append(keys.self_mask(secret, slot.context, name))
        else:
            _require_match(keys.public_of(secret) == bundle.mask_keys[index], name, "mask secret")
            for survivor in slot.survivors:
                seed, sign = keys.pairwise_mask(
                    secret, epoch.bundle(survivor).mask_keys[index], slot.context, name, survivor
                )
                masks.append((seed, -sign))
    return masks


def reconstruct(epoch: EpochBook, slot: SlotBook, dealer: str) -> bytes:
    """A member's secret of the kind that the list allows. Raises QUORUM_SHORT or BAD_DEALING."""
    assert epoch.key is not None  # noqa: S101 - the slot is sealed
    shares = {
        epoch.key.number(holder): share.share
        for holder, reveal in slot.reveals.items()
        for share in reveal.shares
        if share.dealer == dealer
    }
    try:
        return shamir.reconstruct(shares, threshold=epoch.key.threshold)
    except ProtocolFailure as error:
        culprit = dealer if error.name is FailureName.BAD_DEALING else None
        raise ProtocolFailure(error.name, f"of {dealer}: {error.detail}", culprit=culprit) from error


def check_reveal(
    epoch: EpochBook, slot: SlotBook, holder: str, reveal: sealing_pb2.Reveal, roster_keys: Mapping[str, str]
) -> None:
    """Raise BOTH_KINDS unless there is one share a member of the kind the list says, BAD_SHARE for an unsigned one."""
    assert epoch.key is not None  # noqa: S101 - the slot is sealed
    wanted = [(name, dealing.SELF_MASK if name in slot.survivors else dealing.MASK_SECRET) for name in epoch.members]
    if [(item.dealer, item.kind) for item in reveal.shares] != wanted:
        raise ProtocolFailure(
            FailureName.BOTH_KINDS, f"{holder} did not reveal exactly one share of each member, of the list's kind"
        )
    for item in reveal.shares:
        share = sealing_pb2.DealtShare(share=item.share, signature=item.signature)
        identity = bytes.fromhex(roster_keys[item.dealer])
        try:
            dealing.check_share(epoch.key, slot.plan.slot, item.kind, item.dealer, holder, share, identity)
        except ProtocolFailure as error:
            raise ProtocolFailure(error.name, error.detail, culprit=holder) from error


def evidence(epoch: EpochBook, slot: SlotBook, dealer: str) -> list[dict[str, str]]:
    """The dealer's signed shares, which anyone can check against its bundle."""
    return [
        {"holder": holder, "share": item.share.hex(), "signature": item.signature.hex()}
        for holder, reveal in sorted(slot.reveals.items())
        for item in reveal.shares
        if item.dealer == dealer
    ]


def _require_match(holds: bool, dealer: str, what: str) -> None:
    if not holds:
        raise ProtocolFailure(
            FailureName.BAD_DEALING,
            f"the shares that {dealer} signed make another {what} than it advertised",
            culprit=dealer,
        )
