"""How a run ends on this node, also when it missed that: what is erased, and what it may erase on its own.

    finish(node, run_id, end)        the coordinator's word, verified before
    settle_alone(node)               nobody's word: what cannot be needed any more

Guarantee: after a run's end nothing that was made of records for its sake is left in its folder: no encoded text, no
optimizer state, no upload, no reply. What was signed, charged and sent stays in the journals.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from confide.errors import ConfideError
from confide.identity.roster import MAX_CLOCK_SKEW_S
from confide.proto import fleet_pb2
from confide.text import line

from confide_client.data import token_files
from confide_client.runs.offers import parse_offer
from confide_client.runs.records import OfferStatus, Record
from confide_client.runs.replies import ReplyStore
from confide_client.runs.run import Node
from confide_client.state import StateFolder

log = logging.getLogger(__name__)

OPEN = (OfferStatus.WAITING, OfferStatus.PREPARING, OfferStatus.ACCEPTED)
_KEPT_WORK = ("upload*", "model-*")


def unended(state: StateFolder) -> list[str]:
    """Runs that have not ended as far as this node knows, oldest first."""
    return [run_id for run_id in state.run_ids() if _status(state.run(run_id)) in OPEN]


def finish(node: Node, run_id: str, end: fleet_pb2.End) -> None:
    """The run is over: free its budget, erase its work, note it. Needs neither the offer nor the base model any more.

    A crash on the way leaves the run open here, and it is finished at the next connection.
    """
    folder = node.state.run(run_id)
    _close_slot(folder / "member" / "seal-log.jsonl", run_id, end)
    if node.spending.exists:
        node.spending.release(run_id)
    erase_work(folder)
    status = _status(folder)
    _note(
        folder,
        line(end.failure) if status == OfferStatus.ACCEPTED else f"it ended while it was {status or 'unknown'} here",
    )


def settle_alone(node: Node) -> list[str]:
    """Erase what no instruction can ask for; returns the runs that ended by it.

    Those are offers that nobody accepted in time. Of runs that ended or were refused here, what a crash left is erased.
    """
    ended = []
    for run_id in node.state.run_ids():
        folder = node.state.run(run_id)
        status = _status(folder)
        if status in (OfferStatus.WAITING, OfferStatus.PREPARING) and _expired(folder, node.clock()):
            _note(folder, f"nobody accepted it in time; it was {status} here")
            ended.append(run_id)
        if status in (OfferStatus.ENDED, OfferStatus.REFUSED) or run_id in ended:
            erase_work(folder)
    return ended


def forget_text(state: StateFolder, run_ids: Sequence[str]) -> None:
    """Of runs that the coordinator does not know: the encoded text goes, since it can be made again if it must."""
    for run_id in run_ids:
        token_files.erase(state.run(run_id) / "training")


def erase_work(folder: Path) -> None:
    """Remove what was made of records for a run, and its models."""
    shutil.rmtree(folder / "training", ignore_errors=True)
    ReplyStore(folder / "replies").erase()
    for pattern in _KEPT_WORK:
        for path in (folder / "member").glob(pattern):
            path.unlink(missing_ok=True)


def _close_slot(path: Path, run_id: str, end: fleet_pb2.End) -> None:
    if not path.exists():
        return
    from confide.sealing.member.seal_log import SealLog

    log = SealLog(path)
    try:
        if log.unended is not None:
            log.write(
                "ended", run=run_id, slot=log.unended, committed=False, failure=end.failure[:64], contributed=False
            )
    finally:
        log.journal.close()


def _expired(folder: Path, now: float) -> bool:
    try:
        offer = parse_offer((folder / "offer.bin").read_bytes())
    except (ConfideError, OSError):
        return False
    return bool(offer.expires_at) and now > offer.expires_at + MAX_CLOCK_SKEW_S


def _status(folder: Path) -> OfferStatus | None:
    try:
        record = Record.load(folder)
    except ConfideError as error:
        log.warning("%s", error)
        return None
    return None if record is None else record.status


def _note(folder: Path, reason: str) -> None:
    record = Record.load(folder)
    if record is not None:
        record.status, record.reason = OfferStatus.ENDED, reason
        record.save(folder)
