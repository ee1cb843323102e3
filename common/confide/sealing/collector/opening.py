"""Opening a slot: reconstruct what the signed list allows, take the masks away, check the sum.

Guarantee: a wrong secret is noticed before it is used, and names its dealer by the dealer's own signatures.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.codec.seal_vector import UploadSum
from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.proto import sealing_pb2
from confide.runs.metrics import Metric
from confide.sealing.collector.state import Books, EpochBook, SlotBook
from confide.sealing.plain import l2_norm
from confide.sealing.primitives import context, dealing, keys, scalars, shamir

# Float32 sums of many coordinates round; this is far above that and far below any attack.
_NORM_SLACK = 1e-3


class Reveals:
    """What those who revealed hold of each dealer's secret, parsed once; secrets are computed once, when asked for."""

    def __init__(self, epoch: EpochBook, slot: SlotBook) -> None:
        """Raises QUORUM_SHORT when fewer than t revealed."""
        assert epoch.key is not None  # noqa: S101 - the slot is sealed
        self._epoch, self._slot, self._key = epoch, slot, epoch.key
        self._index = slot.plan.slot - epoch.terms.first_slot
        self._held: dict[str, dict[int, int]] = {name: {} for name in epoch.members}
        for holder, reveal in slot.reveals.items():
            number = epoch.key.number(holder)
            for share in reveal.shares:
                # An element of the field: `check_reveal` has looked.
                self._held[share.dealer][number] = int.from_bytes(share.share, "big")
        holders = map(epoch.key.number, slot.reveals)
        self._interpolation = shamir.Interpolation(holders, threshold=epoch.key.threshold)
        self._secrets: dict[str, bytes] = {}

    def secret(self, dealer: str) -> bytes:
        """The dealer's secret of the kind that the list allows. Raises BAD_DEALING when it is not as advertised."""
        if dealer not in self._secrets:
            self._secrets[dealer] = self._advertised(dealer)
        return self._secrets[dealer]

    def _advertised(self, dealer: str) -> bytes:
        slot, terms, bundle = self._slot.plan.slot, self._epoch.terms, self._epoch.opened[dealer]
        try:
            secret = self._interpolation.secret(self._held[dealer])
        except ProtocolFailure as error:
            raise ProtocolFailure(error.name, f"of {dealer}: {error.detail}", culprit=dealer) from error
        if dealer in self._slot.survivors:
            stated = keys.commitment(secret, terms.run_id, terms.epoch, slot, dealer)
            _require_match(stated == bundle.seed_commitments[self._index], dealer, "self-mask seed")
        else:
            _require_match(keys.public_of(secret) == bundle.mask_keys[self._index], dealer, "mask secret")
        return secret

    def masks(self) -> list[tuple[bytes, int]]:
        """(seed, sign) of every mask that does not cancel in the sum over the list. Raises BAD_DEALING."""
        masks: list[tuple[bytes, int]] = []
        epoch, slot = self._epoch, self._slot
        for name in epoch.members:
            secret = self.secret(name)
            if name in slot.survivors:
                masks.append(keys.self_mask(secret, slot.context, name))
                continue
            for survivor in slot.survivors:
                public = epoch.opened[survivor].mask_keys[self._index]
                seed, sign = keys.pairwise_mask(secret, public, slot.context, name, survivor)
                masks.append((seed, -sign))
        return masks

    def unsigned(self, identity: Callable[[str], bytes]) -> dict[str, list[str]]:
        """Holders who revealed shares that the dealers did not sign, with those dealers. `identity`: a member's key.

        Signatures are verified only of dealers whose shares do not all lie on one polynomial, or make another secret
        than was advertised. Where they do, the secret is right by the dealer's own signed commitment, and every share
        is the one that this polynomial gives its holder.
        """
        found: dict[str, list[str]] = {}
        for dealer in self._epoch.members:
            for holder in () if self._sound(dealer) else sorted(self._slot.reveals):
                item = next(item for item in self._slot.reveals[holder].shares if item.dealer == dealer)
                share = sealing_pb2.DealtShare(share=item.share, signature=item.signature)
                try:
                    dealing.check_share(
                        self._key, self._slot.plan.slot, item.kind, dealer, holder, share, identity(dealer)
                    )
                except ProtocolFailure:
                    found.setdefault(holder, []).append(dealer)
        return found

    def _sound(self, dealer: str) -> bool:
        try:
            self.secret(dealer)
        except ProtocolFailure:
            return False
        return self._interpolation.consistent(self._held[dealer])


def open_sum(
    books: Books, reveals: Reveals, uploads: Mapping[str, tuple[Path, bytes | None]]
) -> tuple[NDArray[np.float32], float, dict[Metric, tuple[float, int]]]:
    """(update sum, weight sum, metrics) over the open slot's list.

    uploads: by name the file and, unless this process has checked it already, the digest that it must have.
    Raises NOISE_INSUFFICIENT, BAD_DEALING (with its culprit) or SUM_OUT_OF_RANGE; nothing is then opened.
    """
    epoch, slot = books.epoch, books.slot
    assert epoch is not None and slot is not None and slot.layout is not None  # noqa: S101 - the slot is sealed
    layout, largest = slot.layout, _largest_norm(books, epoch, slot)
    total = UploadSum(layout)
    for seed, sign in reveals.masks():
        total.remove_mask(seed, sign)
    for name in slot.survivors:
        total.add(*uploads[name])
    try:
        update, integers = total.open(len(slot.survivors))
    except UpdateError as error:
        raise ProtocolFailure(FailureName.SUM_OUT_OF_RANGE, f"{error}; nothing of it is used") from error
    norm = l2_norm(update)
    if not norm <= largest:
        raise ProtocolFailure(
            FailureName.SUM_OUT_OF_RANGE,
            f"the opened sum has norm {norm:.6g}; {len(slot.survivors)} updates of norm {layout.clip:g} make at most "
            f"{largest:.6g}{', noise included' if layout.noised else ''}. Nothing of it is used",
        )
    uniform = books.specification.federation.weights == "uniform"
    weight, metrics = scalars.decode(integers, len(slot.survivors), uniform=uniform)
    return update, weight, metrics


def _largest_norm(books: Books, epoch: EpochBook, slot: SlotBook) -> float:
    """What the sum of the list's updates cannot exceed, noise included. Raises NOISE_INSUFFICIENT."""
    layout, contributors = slot.layout, len(slot.survivors)
    assert layout is not None and epoch.parameters is not None  # noqa: S101 - the slot is sealed
    noise = context.slot_noise(books.specification, epoch.parameters, slot.plan, books.travel)
    if noise is None:
        return contributors * layout.clip * (1 + layout.reach / layout.levels) * (1 + _NORM_SLACK)
    noise.check(contributors)
    return noise.largest_sum(contributors) * (1 + _NORM_SLACK)


def check_reveal(epoch: EpochBook, slot: SlotBook, holder: str, reveal: sealing_pb2.Reveal) -> None:
    """Raise BOTH_KINDS unless there is one share a member of the kind the list says, BAD_SHARE for what is no share.

    Whether the dealers signed the shares is left to `Reveals.unsigned`, which asks only when something does not fit.
    """
    survivors = set(slot.survivors)
    wanted = [(name, dealing.SELF_MASK if name in survivors else dealing.MASK_SECRET) for name in epoch.members]
    if [(item.dealer, item.kind) for item in reveal.shares] != wanted:
        raise ProtocolFailure(
            FailureName.BOTH_KINDS, f"{holder} did not reveal exactly one share of each member, of the list's kind"
        )
    for item in reveal.shares:
        try:
            shamir.check_share(item.share)
        except ProtocolFailure as error:
            raise ProtocolFailure(error.name, f"of {item.dealer}: {error.detail}", culprit=holder) from error


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
