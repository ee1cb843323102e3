"""Every error that Confide raises on purpose.

    ConfideError
    |- SpecificationError    a run specification is malformed, unknown, or changed
    |- IdentityError         a key, certificate, roster or signature does not hold
    |- PolicyRefusal         this node's policy does not allow what was asked
    |  `- NotNow            it may at another time: nothing failed, and the same may be asked again then
    |- DataError             a data set is unreadable, malformed, or empty
    |- ModelError            a base model or adapter is missing, altered, or unfit
    |- UpdateError           an update has a wrong name, shape, dtype, size, or value
    |- TrainingError         local training failed: NaN, exploding loss, out of memory
    |- TransportError        the other side cannot be reached or answered out of turn
    |- StateError            a state folder, journal or database is damaged or in use
    |  `- RetryableError     a disk is full, a database busy: the same may be tried again, and nothing was lost
    |- LedgerError           the privacy ledger does not verify or does not allow the spend
    `- ProtocolFailure       a sealing rule was broken; carries its FailureName

A message names the thing, the value received, what is allowed, and the remedy.
"""

from enum import StrEnum


class ConfideError(Exception):
    """Base of all deliberate errors; its text is meant for the person who can act on it."""

    @property
    def code(self) -> str:
        """A stable name for reports: the failure's own name, else the class name."""
        return type(self).__name__

    @property
    def coded(self) -> str:
        """The text with the code before it, once: that of a ProtocolFailure begins with it."""
        text = str(self)
        return text if text.startswith(f"{self.code}: ") else f"{self.code}: {text}"


class SpecificationError(ConfideError):
    """A run specification is malformed, asks for something unknown, or was changed."""


class IdentityError(ConfideError):
    """A key, certificate, roster or signature does not hold."""


class PolicyRefusal(ConfideError):
    """This node's policy does not allow what was asked."""


class NotNow(PolicyRefusal):
    """The policy does not allow it at this moment: out of training hours, or its file is to be corrected first."""

    def __init__(self, message: str, *, seconds: int) -> None:
        """seconds: after which it is worth asking again."""
        super().__init__(message)
        self.seconds = seconds


class DataError(ConfideError):
    """A data set is unreadable, malformed, or empty."""


class ModelError(ConfideError):
    """A base model or adapter is missing, altered, or unfit for the run."""


class UpdateError(ConfideError):
    """An update has a wrong name, shape, dtype, size, or value."""


class TrainingError(ConfideError):
    """Local training failed; nothing of it is sent."""


class TransportError(ConfideError):
    """The other side cannot be reached, or answered out of turn."""


class StateError(ConfideError):
    """A state folder, journal or database is damaged or in use."""


class RetryableError(StateError):
    """What was asked cannot be done now: the disk is full, the database busy, a connection lapsed.

    Nothing was lost, and the same may be tried again soon. A StateError of any other kind is damage or a mistake that
    does not pass by itself.
    """


class LedgerError(ConfideError):
    """The privacy ledger does not verify, or does not allow the spend."""


class FailureName(StrEnum):
    """The sealing protocol's failures, the same on both sides (docs/sealing.md says when each is raised)."""

    TWO_LISTS = "TWO_LISTS"
    TWO_HEADS = "TWO_HEADS"
    LIST_TOO_SMALL = "LIST_TOO_SMALL"
    QUORUM_SHORT = "QUORUM_SHORT"
    DUPLICATE_SIGNER = "DUPLICATE_SIGNER"
    BOTH_KINDS = "BOTH_KINDS"
    OWN_SECRET_ASKED = "OWN_SECRET_ASKED"
    OMITTED_SELF = "OMITTED_SELF"
    LATE_UPLOAD = "LATE_UPLOAD"
    SLOT_REUSED = "SLOT_REUSED"
    EPOCH_REPLAYED = "EPOCH_REPLAYED"
    MODEL_REPEATED = "MODEL_REPEATED"
    MODEL_REVEALED = "MODEL_REVEALED"
    ATTEMPT_WRONG = "ATTEMPT_WRONG"
    BLOCK_SPLIT = "BLOCK_SPLIT"
    MODEL_CHAIN_BROKEN = "MODEL_CHAIN_BROKEN"
    SUBMISSION_REPLAYED = "SUBMISSION_REPLAYED"
    SUBMISSION_EXPIRED = "SUBMISSION_EXPIRED"
    SPEC_CHANGED = "SPEC_CHANGED"
    CONTEXT_MISMATCH = "CONTEXT_MISMATCH"
    BUNDLE_EQUIVOCATION = "BUNDLE_EQUIVOCATION"
    COHORT_NOT_EPOCH = "COHORT_NOT_EPOCH"
    ROSTER_STALE = "ROSTER_STALE"
    REVOKED = "REVOKED"
    ROLLBACK_DETECTED = "ROLLBACK_DETECTED"
    BAD_SHARE = "BAD_SHARE"
    BAD_DEALING = "BAD_DEALING"
    LOW_ORDER_KEY = "LOW_ORDER_KEY"
    SUM_OUT_OF_RANGE = "SUM_OUT_OF_RANGE"
    METRIC_NOT_ALLOWED = "METRIC_NOT_ALLOWED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    NOISE_INSUFFICIENT = "NOISE_INSUFFICIENT"
    PARAMETERS_IMPOSSIBLE = "PARAMETERS_IMPOSSIBLE"
    MALFORMED = "MALFORMED"


class ProtocolFailure(ConfideError):
    """A sealing rule was broken. `name` says which; `culprit` names a member when there is proof."""

    def __init__(self, name: FailureName, detail: str, *, culprit: str | None = None) -> None:
        super().__init__(f"{name.value}: {detail}")
        self.name = name
        self.detail = detail
        self.culprit = culprit

    @property
    def code(self) -> str:
        return self.name.value
