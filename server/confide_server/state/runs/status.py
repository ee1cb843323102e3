"""Where a run stands: what is stored, and what people are shown, which says more."""

from enum import StrEnum


class RunStatus(StrEnum):
    """The first seven are stored; the last four are shown in place of them."""

    DRAFT = "draft"
    """Fewer administrators signed it than the roster's rules ask."""
    SUBMITTED = "submitted"
    OFFERING = "offering"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    PAUSED = "paused"
    """Open, and resting at an operator's wish."""
    WAITING = "waiting"
    """Open, and waiting by itself: for members, people, a roster, space on a disk."""
    FINISHED_WITH_FEWER = "finished_with_fewer"
    """Finished, and some round lacks somebody who had accepted."""
    DELETED = "deleted"
    """It was there; who removed it, and when, is what is left."""


OPEN = (RunStatus.SUBMITTED, RunStatus.OFFERING, RunStatus.RUNNING)
ENDED = (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED)
