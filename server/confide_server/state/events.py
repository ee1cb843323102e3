"""What happens in a run: one frozen class for each kind of event, in the order in which a run brings them.

>>> event = Dropped(round=2, node="hospital-a", code="TransportError", reason="it went away")
>>> event.kind, data_of(event)["round"]
('dropped', 2)

They are stored as JSON objects and travel as messages of the same fields (protos/confide/v1/admin.proto). A field that
a later release adds has a default, so that stored events stay readable.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class RunSubmitted:
    """An administrator's signed run was stored."""

    kind: ClassVar[str] = "run_submitted"
    name: str
    administrator: str
    parent_run_id: str = ""
    parent_round: int = 0


@dataclass(frozen=True, kw_only=True)
class RunCosigned:
    """A further administrator signed it; complete: that were enough."""

    kind: ClassVar[str] = "run_cosigned"
    by: str
    complete: bool


@dataclass(frozen=True, kw_only=True)
class OfferAnswered:
    """A node's answer to the offer, where it differs from its last one."""

    kind: ClassVar[str] = "offer_answered"
    node: str
    accepted: bool
    waiting: bool = False
    preparing: bool = False
    reason: str = ""
    round_s: float = 0.0
    """As it measured; 0: it did not."""
    precision: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    """As far as its policy lets it tell: cores, memory_gib, vector_units, accelerator."""


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """Enough accepted."""

    kind: ClassVar[str] = "run_started"
    nodes: list[str]
    rounds: int
    sealing: str
    name: str
    differences: str = ""


@dataclass(frozen=True, kw_only=True)
class EpochStarted:
    """Members exchanged keys for so many slots."""

    kind: ClassVar[str] = "epoch_started"
    members: list[str]
    slots: int


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """A slot was opened."""

    kind: ClassVar[str] = "round_started"
    round: int
    attempt: int
    slot: int
    deadline_s: float


@dataclass(frozen=True, kw_only=True)
class Contributed:
    """A node's update is durable here."""

    kind: ClassVar[str] = "contributed"
    round: int
    node: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A node did not contribute, or missed a step."""

    kind: ClassVar[str] = "dropped"
    round: int
    node: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SlotAbandoned:
    """An attempt opened nothing."""

    kind: ClassVar[str] = "slot_abandoned"
    round: int
    attempt: int
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundCommitted:
    """A round is durable. metrics: {name: {"mean", "count"}}; dropped: {node: why}."""

    kind: ClassVar[str] = "round_committed"
    round: int
    metrics: dict[str, dict[str, float]]
    contributors: list[str]
    dropped: dict[str, str]
    seconds: float
    model_sha256: str
    update_norm: float


@dataclass(frozen=True, kw_only=True)
class WaitingForMembers:
    """The run waits by itself: a sum without these would show an update (docs/sealing.md)."""

    kind: ClassVar[str] = "paused"
    round: int
    missing: list[str]


@dataclass(frozen=True, kw_only=True)
class MembersReturned:
    """Everybody who was waited for is there."""

    kind: ClassVar[str] = "resumed"
    round: int


@dataclass(frozen=True, kw_only=True)
class RunWaits:
    """The run waits, for whom or for what; with an empty reason it does not wait any more."""

    kind: ClassVar[str] = "run_waits"
    waits_for: list[str] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PausedByOperator:
    """A person lets the run rest; an open round is brought to its end first."""

    kind: ClassVar[str] = "run_paused"
    by: str
    reason: str
    round: int


@dataclass(frozen=True, kw_only=True)
class ResumedByOperator:
    """And go on."""

    kind: ClassVar[str] = "run_resumed"
    by: str
    round: int


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """All rounds are committed."""

    kind: ClassVar[str] = "run_finished"
    rounds: int
    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class RunFailed:
    """It cannot go on."""

    kind: ClassVar[str] = "run_failed"
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunStopped:
    """An administrator stopped it after this round."""

    kind: ClassVar[str] = "run_stopped"
    round: int


@dataclass(frozen=True, kw_only=True)
class RunDeleted:
    """What was kept of it was removed; of its events this one is left."""

    kind: ClassVar[str] = "run_deleted"
    by: str


Happening = (
    RunSubmitted
    | RunCosigned
    | OfferAnswered
    | RunStarted
    | EpochStarted
    | RoundStarted
    | Contributed
    | Dropped
    | SlotAbandoned
    | RoundCommitted
    | WaitingForMembers
    | MembersReturned
    | RunWaits
    | PausedByOperator
    | ResumedByOperator
    | RunFinished
    | RunFailed
    | RunStopped
    | RunDeleted
)
END_KINDS = frozenset({RunFinished.kind, RunFailed.kind, RunStopped.kind})


def data_of(event: Happening) -> dict[str, Any]:
    """The event as a JSON object."""
    return asdict(event)


def seen_by(organization: str, kind: str, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an organization may see of an event of its run: nothing of other organizations; None for no event at all."""
    if data.get("node", organization) != organization:
        return None
    own = dict(data)
    for key in ("nodes", "members", "contributors", "missing", "waits_for"):
        if key in own:
            own[key] = [name for name in own[key] if name == organization]
    if "dropped" in own:
        own["dropped"] = {name: why for name, why in own["dropped"].items() if name == organization}
    if kind in (SlotAbandoned.kind, RunFailed.kind, RunWaits.kind) and own.get("reason"):
        own["reason"] = "the administrators see why"  # reasons name organizations
    return own
