"""A person's answer to a run, kept beside the run and bound to exactly what was offered.

>>> import tempfile; folder = Path(tempfile.mkdtemp())
>>> Approval(decision="approved", offer_sha256="0" * 64, by="operator", at=1.0).save(folder)
>>> decision(folder, "0" * 64), decision(folder, "1" * 64)
('approved', None)
"""

import getpass
import time
from pathlib import Path
from typing import Literal

from confide import canonical
from confide.errors import StateError
from confide.files import write_atomic
from confide.runs.sections import Sha256
from pydantic import BaseModel, ConfigDict, ValidationError

Decision = Literal["approved", "refused"]


class Approval(BaseModel):
    """approval.json in a run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    decision: Decision
    offer_sha256: Sha256
    """Of what was approved: specification, first model and administrator."""
    by: str
    at: float
    reason: str = ""

    def save(self, folder: Path) -> None:
        """Write it durably."""
        write_atomic(folder / "approval.json", canonical.encode(self.model_dump(mode="json")))


def load(folder: Path) -> Approval | None:
    """The stored answer, or None when nobody has answered."""
    path = folder / "approval.json"
    if not path.exists():
        return None
    try:
        return Approval.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StateError(f"{path} is damaged; answer again with `confide node approve` or `refuse`") from error


def decision(folder: Path, offer_sha256: str) -> Decision | None:
    """What was decided about exactly this offer."""
    found = load(folder)
    return found.decision if found is not None and found.offer_sha256 == offer_sha256 else None


def decide(folder: Path, offer_sha256: str, answer: Decision, reason: str = "") -> Approval:
    """Record an operator's answer under their login name."""
    approval = Approval(decision=answer, offer_sha256=offer_sha256, by=getpass.getuser(), at=time.time(), reason=reason)
    approval.save(folder)
    return approval
