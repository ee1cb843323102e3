"""The slot that is open at a node, in memory."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.codec.layout import VectorLayout
from confide.errors import ConfideError, FailureName, ProtocolFailure
from confide.proto import sealing_pb2
from confide.sealing.primitives import wire
from confide.sealing.roles import Answer, SlotPlan


@dataclass(repr=False)
class SlotState:
    """What was asked and answered in it."""

    plan: SlotPlan
    request: bytes
    context: bytes
    layout: VectorLayout
    index: int
    """Of the slot in its epoch."""
    answer: Answer | None = None
    upload_digest: bytes = b""
    refused: ConfideError | None = None
    """Why training failed; the slot is used up all the same."""
    signed_list: bytes = b""
    confirmation: bytes = b""
    reveal: bytes = b""
    fed_back: bool = False
    feedback_before: NDArray[np.float32] | None = field(default=None)

    def same_answer(self) -> Answer:
        """To the same TRAIN again: the same bytes, or the same failure."""
        if self.refused is not None:
            raise self.refused
        if self.answer is None:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {self.plan.slot} was given up")
        return self.answer

    def two_lists(self) -> ProtocolFailure:
        """Another list than the signed one is asked for."""
        return ProtocolFailure(
            FailureName.TWO_LISTS,
            f"slot {self.plan.slot} has another list than the one that this node signed, or signed none of",
        )


def plan_of_open(message: sealing_pb2.SealedOpen) -> SlotPlan:
    """The plan in a TRAIN message. Raises MALFORMED for values out of range."""
    wire.require_length("model_sha256", message.model_sha256, wire.DIGEST_BYTES)
    if message.parent_model_sha256:
        wire.require_length("parent_model_sha256", message.parent_model_sha256, wire.DIGEST_BYTES)
    if not (message.slot >= 1 and message.round >= 1 and message.attempt >= 1):
        raise wire.malformed(f"slot {message.slot}, round {message.round}, attempt {message.attempt}; all count from 1")
    return SlotPlan.of(message)
