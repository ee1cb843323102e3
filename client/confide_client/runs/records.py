"""What a node remembers of a run across restarts: where it stands, and the newest link of its model chain."""

import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import FailureName, ProtocolFailure, StateError
from confide.files import private_folder, write_atomic
from confide.proto import fleet_pb2

from confide_client.state import read_json


class OfferStatus(StrEnum):
    """Where an offered run stands on this node."""

    WAITING = "waiting"
    """For a person."""
    PREPARING = "preparing"
    """Allowed; the base model is loaded and timed."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass
class Record:
    """run.json: where the run stands on this node, for its operator."""

    status: OfferStatus
    name: str
    administrator: str
    offer_sha256: str
    rounds: int
    sealing: str
    offered_at: float
    reason: str = ""
    links: dict[str, Any] = field(default_factory=dict)
    """The newest link of the model chain (Links)."""
    uploads: int = 0
    bytes_sent: int = 0
    updated_at: float = field(default=0.0)

    def save(self, folder: Path) -> None:
        """Write it durably."""
        self.updated_at = time.time()
        write_atomic(private_folder(folder) / "run.json", canonical.encode(vars(self)))

    @classmethod
    def load(cls, folder: Path) -> "Record | None":
        """The stored record, or None. Raises StateError when damaged."""
        document: dict[str, Any] = read_json(folder / "run.json")
        if not document:
            return None
        try:
            return cls(**{**document, "status": OfferStatus(document["status"])})
        except (TypeError, KeyError, ValueError) as error:
            raise StateError(f"{folder / 'run.json'} is damaged: {error}") from error


@dataclass(frozen=True)
class Links:
    """The newest model that was trained on. Sealed transport also bounds how far a model may move from it."""

    round: int = 0
    model: str = ""
    """SHA-256, hex."""
    attempts: int = 0
    """Slots in which it was trained on."""
    slot: int = 0

    def check(self, slot: fleet_pb2.SlotOpen, initial: bytes, max_attempts: int) -> None:
        """Raise MODEL_CHAIN_BROKEN or MODEL_REPEATED unless the slot's model may come next.

        initial: SHA-256 of the first model, as the administrator signed it.
        """
        name = slot.model_sha256.hex()
        if slot.round == 1 and slot.model_sha256 != initial:
            raise _broken("round 1 does not start from the model that the administrator signed")
        if slot.round < self.round:
            raise _broken(f"round {slot.round} came after round {self.round}")
        if slot.round == self.round and name != self.model:
            raise _broken(f"round {slot.round} came before with another model")
        if slot.round == self.round + 1 and self.model and slot.parent_model_sha256.hex() != self.model:
            raise _broken(f"the model of round {slot.round} does not name that of round {self.round} as its parent")
        if slot.round == self.round and slot.slot != self.slot and self.attempts >= max_attempts:
            raise ProtocolFailure(
                FailureName.MODEL_REPEATED,
                f"the model of round {slot.round} was trained on in {self.attempts} slots here; "
                f"the specification allows {max_attempts}",
            )

    def followed_by(self, slot: fleet_pb2.SlotOpen) -> "Links":
        """After training in this slot. A training that a crash interrupted counts once with its repetition."""
        again = slot.round == self.round
        attempts = self.attempts + (slot.slot != self.slot) if again else 1
        return Links(slot.round, slot.model_sha256.hex(), attempts, slot.slot)


def _broken(detail: str) -> ProtocolFailure:
    return ProtocolFailure(FailureName.MODEL_CHAIN_BROKEN, detail)
