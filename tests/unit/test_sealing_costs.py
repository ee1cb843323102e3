"""The hook through which a privacy ledger is charged: order, refusal, and the ledger whose length peers remember."""

from pathlib import Path

from confide.errors import FailureName, ProtocolFailure
from confide.journal import Journal
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.sealing.member.seal_log import NoCosts
from confide.sealing.roles import Opened

from tests.sealing_harness import Federation, set_context

NODE = "hospital-00"


class Ledger(NoCosts):
    """Writes down what it is told; refuses when `limit` slots were reserved."""

    def __init__(self, path: Path, limit: int = 100) -> None:
        self.journal = Journal(path)
        self.limit = limit

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.journal]

    def reserve(self, **given) -> None:  # type: ignore[no-untyped-def]
        if self.kinds().count("reserve") >= self.limit:
            raise ProtocolFailure(FailureName.BUDGET_EXHAUSTED, "the budget is used up")
        self.journal.append({"kind": "reserve", "slot": given["slot"]})

    def spend(self, **given) -> None:  # type: ignore[no-untyped-def]
        self.journal.append({"kind": "spend", "slot": given["slot"]})

    def ended(self, **given) -> None:  # type: ignore[no-untyped-def]
        self.journal.append({"kind": "ended", "slot": given["slot"], "contributed": given["contributed"]})


class Charged(Federation):
    """Notes in the ledger when training happens."""

    ledger: Ledger

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        if name == NODE:
            self.ledger.journal.append({"kind": "train"})
        return super().contribution(name, plan)


def charged(folder: Path, limit: int = 100) -> Charged:
    federation = Charged(folder, 5)
    federation.ledger = Ledger(folder / "ledger", limit)
    set_context(federation.members[NODE], costs=federation.ledger)
    return federation


def test_reserved_before_training_and_spent_after_it(tmp_path: Path) -> None:
    federation = charged(tmp_path)
    federation.slot()
    assert federation.ledger.kinds() == ["reserve", "train", "spend", "ended"]
    assert list(federation.ledger.journal)[-1]["contributed"] is True
    federation.slot({fleet_pb2.CONFIRM: [NODE, "hospital-01"]})
    assert federation.ledger.kinds()[4:] == ["reserve", "train", "spend", "ended"]
    assert list(federation.ledger.journal)[-1]["contributed"] is False


def test_at_the_limit_nothing_is_trained_and_the_others_go_on(tmp_path: Path) -> None:
    federation = charged(tmp_path, limit=1)
    federation.slot()
    outcome = federation.slot()
    assert isinstance(outcome, Opened) and NODE not in outcome.contributors
    assert outcome.dropped == {NODE: "BUDGET_EXHAUSTED: the budget is used up"}
    assert federation.ledger.kinds().count("train") == 1


def test_the_end_of_a_slot_is_noted_after_a_restart(tmp_path: Path) -> None:
    federation = charged(tmp_path)
    federation.epoch()
    federation.collector.open_slot(federation.plan())
    federation.drive({fleet_pb2.REVEAL: [NODE]})
    federation.restart_member(NODE)
    set_context(federation.members[NODE], costs=federation.ledger)
    federation.end(federation.collector.outcome)  # type: ignore[arg-type]
    assert federation.ledger.kinds() == ["reserve", "train", "spend", "ended"]
    assert list(federation.members[NODE].context.log.journal)[-1]["event"] == "ended"
    federation.members[NODE].slot_ended(fleet_pb2.End(slot=1, committed=True))
    assert federation.ledger.kinds().count("ended") == 1


def test_peers_remember_the_epochs_and_the_node_its_other_ledgers(tmp_path: Path) -> None:
    federation = charged(tmp_path)
    ledger = federation.ledger.journal
    federation.members[NODE].context.heights._ledgers = lambda: {"ledger": ledger}
    federation.slot()
    federation.collector._attendance.renew = True
    federation.slot()
    length, head, _ = federation.members["hospital-01"].context.heights.of(NODE)
    assert (length, head) == federation.members[NODE].context.heights.position() and length == 2
    assert list(federation.members[NODE].context.heights._journal)[-1]["ledgers"] == {"ledger": [4, ledger.head_at(4)]}
    older = Journal(tmp_path / "older")
    federation.members[NODE].context.heights._ledgers = lambda: {"ledger": older}
    federation.collector._attendance.renew = True
    federation.slot()
    failure = federation.failures[NODE, "ADVERTISE"]
    assert failure.code == "ROLLBACK_DETECTED" and "had 4 entries when its last epoch began, and has 0" in str(failure)
