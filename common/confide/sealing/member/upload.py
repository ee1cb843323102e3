"""Step 3 at a node, after training: the update becomes integers, gets its masks, and lies in a file, once."""

import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from confide.codec.seal_vector import ToIntegers, encode_upload
from confide.errors import FailureName, ProtocolFailure
from confide.privacy.metrics import check_unaccounted
from confide.runs.contribution import Contribution
from confide.sealing.member.context import MemberContext
from confide.sealing.member.epoch import MemberEpoch
from confide.sealing.member.slot_state import SlotState
from confide.sealing.plain import clipped, sent_part
from confide.sealing.primitives import context, keys, scalars


class Masking:
    """Encodes one member's contributions; keeps the error feedback between slots."""

    def __init__(self, member: MemberContext) -> None:
        self._member = member
        self._feedback: NDArray[np.float32] | None = None

    def encode(self, epoch: MemberEpoch, state: SlotState, contribution: Contribution, path: Path) -> bytes:
        """Write the masked upload; returns its digest."""
        member, number = self._member, state.plan.round
        check_unaccounted(member.specification, contribution)
        integers = scalars.encode(contribution)
        update = sent_part(contribution.update, member.coordinates, number, state.plan.evaluate_only)
        if contribution.weight != 1.0:
            update = clipped(update, state.layout.clip) * np.float32(contribution.weight)
        feedback = None
        if member.specification.sealing.error_feedback and not state.plan.evaluate_only:
            state.feedback_before = self._feedback
            kept = np.zeros(member.coordinates.size, np.float32) if self._feedback is None else self._feedback.copy()
            feedback = np.ascontiguousarray(member.coordinates.gather(kept, number))
        digest = encode_upload(
            update,
            integers,
            state.layout,
            rounding_key=secrets.token_bytes(32),
            masks=self._masks(epoch, state),
            out=path,
            feedback=feedback,
            to_integers=self._noised(epoch, state),
        )
        if feedback is not None:
            member.coordinates.scatter(feedback, number, kept)
            self._feedback, state.fed_back = kept, True
        return digest

    def roll_back(self, state: SlotState) -> None:
        """The update is not in the sum: its rounding errors are not owed."""
        if state.fed_back:
            self._feedback = state.feedback_before

    def _noised(self, epoch: MemberEpoch, state: SlotState) -> ToIntegers | None:
        """How the update becomes integers with this node's share of the noise, where all nodes add it together."""
        assert epoch.parameters is not None  # noqa: S101 - the slot is open
        noise = context.slot_noise(self._member.specification, epoch.parameters, state.plan, self._member.coordinates)
        if noise is None:
            return None
        from confide.privacy.noise.randomness import SecureRandom

        return noise.to_integers(SecureRandom())

    def _masks(self, epoch: MemberEpoch, state: SlotState) -> list[tuple[bytes, int]]:
        node, own = self._member.node, epoch.own
        seed, secret = own.seeds[state.index], own.mask_secrets[state.index]
        if seed is None or secret is None:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"the keys of slot {state.plan.slot} were dropped")
        pairs = [
            keys.pairwise_mask(secret, bundle.mask_keys[state.index], state.context, node, peer)
            for peer, bundle in epoch.opened.items()
            if peer != node
        ]
        return [keys.self_mask(seed, state.context, node), *pairs]
