"""Named moments between writing and sending, for tests that kill a process exactly there.

A process started with CONFIDE_CRASH_AT=member.spent (or member.spent:3 for the third time) ends itself by SIGKILL at
that moment, as a power cut would. Nothing else can be done from here: no check is skipped and nothing is revealed.
The names, in the order of the protocol:

    member.epoch_written      the epoch number is durable, the bundle was not sent
    member.bundle_ready       the signed bundle exists, was not sent
    member.dealt              the dealings exist, were not sent
    member.reserved           RESERVED is durable, training has not begun
    member.trained            training has ended, nothing was masked
    member.upload_written     the masked upload is durable, SPENT is not
    member.spent              SPENT is durable, no byte was sent
    member.list_written       the signed list is durable, the signature was not sent
    member.memory_written     the node-wide memory of the reveal is durable, the reveal is not noted
    member.reveal_written     the reveal is noted, was not sent
    member.ended              the slot's end is durable
    collector.epoch_written   the epoch's number and members are durable, nobody was asked
    collector.bundle_kept     one member's bundle is durable
    collector.dealing_kept    one member's dealings are durable
    collector.epoch_stands    the epoch's key material is complete and durable
    collector.slot_written    the slot is durable, nobody was asked
    collector.upload_kept     one upload is durable
    collector.list_written    the list of survivors is durable, nobody was asked to confirm
    collector.confirmation_kept  one confirmation is durable
    collector.quorum_written  the quorum is durable, nobody was asked to reveal
    collector.reveal_kept     one reveal is durable
    collector.decided         the outcome is durable, the round is not committed
    collector.ended           the slot's end is durable, its uploads are erased
"""

import os
import signal

VARIABLE = "CONFIDE_CRASH_AT"
_passed: dict[str, int] = {}


def reached(name: str) -> None:
    """Nothing, unless the environment names this moment."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    moment, _, count = wanted.partition(":")
    if moment == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
