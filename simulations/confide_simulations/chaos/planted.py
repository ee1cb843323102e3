"""Bugs planted on purpose, each a guard of the product taken out: a search that finds none of them finds nothing.

Each is in force for one seed in a process of its own (`planted`), never beside real work.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from confide import canonical
from confide.errors import RetryableError
from confide.journal import Journal
from confide.privacy.charging import LedgerCosts
from confide.sealing.collector.slot import SlotMachine
from confide.sealing.collector.uploads import UploadStore
from confide.sealing.member.heights import Heights
from confide.sealing.member.slot import MemberSlots
from confide.sealing.plain import PlainCollector
from confide.sealing.primitives import keys, scalars
from confide.sealing.primitives.bundles import OwnSecrets
from confide_client.runs.replies import ReplyStore
from confide_server.rounds import driver
from confide_server.rounds.exchange import Courier
from confide_server.state.checkpoints import CheckpointStore

Replace = Callable[[Any, str, Any], None]
"""As setattr, until the seed has ended."""


@dataclass(frozen=True)
class Bug:
    """plant: puts it in. what: in words."""

    what: str
    plant: Callable[[Replace], None]


def _uploads_not_synced(replace: Replace) -> None:
    replace(UploadStore, "settle", lambda self, slot: self._unsettled.clear())


def _replies_forgotten(replace: Replace) -> None:
    replace(ReplyStore, "keep", lambda self, *rest, **more: None)


def _two_lists(replace: Replace) -> None:
    """The coordinator lists again without who did not confirm, and nodes sign whatever is asked."""
    close, confirm = SlotMachine._close_confirm, MemberSlots.confirm

    def close_again(self: SlotMachine, slot: Any, parameters: Any) -> None:
        names = sorted(slot.confirmations)
        if len(names) < len(slot.survivors):
            self._recorder.record("list", nodes=names)
            slot.confirmations.clear()
        else:
            close(self, slot, parameters)

    def confirm_anything(self: MemberSlots, body: bytes) -> bytes:
        if self._open is not None:
            self._open.signed_list = b""
        return confirm(self, body)

    replace(SlotMachine, "_close_confirm", close_again)
    replace(MemberSlots, "confirm", confirm_anything)


def _old_uploads_counted(replace: Replace) -> None:
    real = PlainCollector.open_slot

    def keep_them(self: PlainCollector, plan: Any) -> None:
        kept, fresh = dict(self._kept), plan != self._plan
        real(self, plan)
        if fresh:
            self._kept = kept

    replace(PlainCollector, "open_slot", keep_them)


def _masks_repeated(replace: Replace) -> None:
    """An epoch's secrets are drawn once for all, and masks do not depend on the slot's context."""
    real = keys.self_mask
    fresh = functools.lru_cache(maxsize=None)(OwnSecrets.fresh)
    replace(OwnSecrets, "fresh", staticmethod(lambda slots: dataclasses.replace(fresh(slots), **_copied(fresh(slots)))))
    replace(keys, "self_mask", lambda seed, context, node: real(seed, bytes(32), node))


def _copied(own: Any) -> dict[str, Any]:
    lists = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    return {name: list(value) for name, value in lists.items() if isinstance(value, list)}


def _checkpoint_not_synced(replace: Replace) -> None:
    real = CheckpointStore._put

    def put(self: CheckpointStore, data: Any, path: str, temporary: str) -> None:
        self._local = False
        real(self, data, path, temporary)

    replace(CheckpointStore, "_put", put)


def _spent_after_sending(replace: Replace) -> None:
    spend = LedgerCosts.spend
    replace(LedgerCosts, "spend", lambda self, **rest: None)

    def ended(self: LedgerCosts, *, run_id: str, slot: int, **_: Any) -> None:
        spend(self, run_id=run_id, slot=slot, upload_digest="")

    replace(LedgerCosts, "ended", ended)


def _weights_twice(replace: Replace) -> None:
    real = scalars.decode

    def decode(*arguments: Any, **more: Any) -> Any:
        weight, metrics = real(*arguments, **more)
        return 2 * weight, metrics

    replace(scalars, "decode", decode)


def _rollback_ignored(replace: Replace) -> None:
    replace(Heights, "check", lambda self, peer, length, head: None)


def _journals_not_synced(replace: Replace) -> None:
    real = Journal.append
    replace(Journal, "append", lambda self, body, *, durable=True: real(self, body, durable=False))


def _erased_with_the_decision(replace: Replace) -> None:
    real = SlotMachine._decide

    def decide(self: SlotMachine, **decision: Any) -> None:
        slot = self._state.slot
        real(self, **decision)
        if slot is not None:
            self.uploads.erase(slot.plan.slot)

    replace(SlotMachine, "_decide", decide)


def _full_disk_ignored(replace: Replace) -> None:
    real = Journal.append

    def append(self: Journal, body: Any, *, durable: bool = True) -> str:
        try:
            return real(self, body, durable=durable)
        except RetryableError:
            self._bodies.append(canonical.encode(body))
            self.head = canonical.hash_fields("confide/v1/journal", bytes.fromhex(self.head), self._bodies[-1]).hex()
            return self.head

    replace(Journal, "append", append)


def _endless_patience(replace: Replace) -> None:
    real = Courier.ask
    replace(Courier, "ask", lambda self, question: real(self, dataclasses.replace(question, deadline_s=1e9)))


def _silent_failures(replace: Replace) -> None:
    real: Any = vars(driver)["RunFailed"]
    replace(driver, "RunFailed", lambda *, code, reason: real(code="", reason=""))


BUGS: dict[str, Bug] = {
    "uploads-not-synced": Bug("the list is made before its uploads are durable", _uploads_not_synced),
    "erased-with-the-decision": Bug("uploads are erased before the round is committed", _erased_with_the_decision),
    "two-lists": Bug("a second list is made in a slot, and nodes sign it", _two_lists),
    "replies-forgotten": Bug("a node's answers are forgotten when it restarts", _replies_forgotten),
    "old-uploads-counted": Bug("uploads of an abandoned slot are counted in the next", _old_uploads_counted),
    "masks-repeated": Bug("an epoch's secrets and masks serve again", _masks_repeated),
    "checkpoint-not-synced": Bug("a round is committed before its checkpoint is durable", _checkpoint_not_synced),
    "spent-after-sending": Bug("the ledger spends when the slot has ended", _spent_after_sending),
    "weights-twice": Bug("weights are counted twice", _weights_twice),
    "rollback-ignored": Bug("a node with an older disk goes on", _rollback_ignored),
    "journals-not-synced": Bug("journals are not synced", _journals_not_synced),
    "full-disk-ignored": Bug("what a full disk did not take counts as written", _full_disk_ignored),
    "endless-patience": Bug("a silent node is waited for without end", _endless_patience),
    "silent-failures": Bug("a run that fails does not say why", _silent_failures),
}
"""The rarest first: whoever looks for them by turns is then not left with one at the end."""


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Within the block the product has this bug; "" for none."""
    with contextlib.ExitStack() as undo:

        def replace(owner: Any, attribute: str, value: Any) -> None:
            before = owner.__dict__[attribute] if isinstance(owner, type) else getattr(owner, attribute)
            undo.callback(setattr, owner, attribute, before)
            setattr(owner, attribute, value)

        if name:
            BUGS[name].plant(replace)
        yield
