"""A node's disk restored from an older state between two runs: the first peer of the next run stops it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confide.errors import ProtocolFailure, StateError
from confide.identity.keys import SigningKey
from confide.journal import Journal
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.member.heights import Heights
from confide.sealing.member.member import SealedMember
from confide.sealing.primitives import bundles
from confide.sealing.roles import Opened

from tests.sealing_harness import Federation, names

NODES = names(4)
NODE = NODES[0]


class Consortium:
    """Nodes with folders of their own, which last from run to run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {name: SigningKey.generate() for name in NODES}
        self.number = 0

    def run(self, before: Callable[[Federation], None] = lambda federation: None) -> "Federation":
        """Another run of the same nodes: one epoch, one slot."""
        self.number += 1
        federation = InRun(self.folder / f"run-{self.number}", len(NODES), consortium=self)
        before(federation)
        self.outcome = federation.slot()
        for member in federation.members.values():
            member.close()
            member.context.heights.close()
        federation.collector.close()
        return federation

    def heights(self, name: str) -> Path:
        return self.folder / "nodes" / name


class InRun(Federation):
    def __init__(self, *given: object, consortium: Consortium) -> None:
        self.consortium = consortium
        self.run_id = f"{consortium.number:032x}"
        super().__init__(*given)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        generate = SigningKey.generate
        kept = iter(self.consortium.keys.values())
        SigningKey.generate = lambda: next(kept, None) or generate()  # type: ignore[method-assign]
        try:
            super().__post_init__()
        finally:
            SigningKey.generate = generate  # type: ignore[method-assign]

    def start_member(self, name: str) -> SealedMember:
        self.members[name] = SealedMember(
            specification=self.specification,
            roster=self.roster,
            node=name,
            identity_key=self.keys[name],
            folder=self.folder / name,
            run_id=self.run_id,
            schema=self.coordinates.schema,
            initial_model_sha256=self.initial_sha256,
            rules=self.rules,
            heights=Heights(self.consortium.heights(name)),
            clock=lambda: self.now,
        )
        return self.members[name]

    def start_collector(self) -> None:
        self.collector = SealedCollector(
            specification=self.specification,
            roster=self.roster,
            folder=self.folder / "coordinator",
            run_id=self.run_id,
            schema=self.coordinates.schema,
        )


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    yield Consortium(tmp_path)


def restore(consortium: Consortium, state: Path) -> None:
    shutil.rmtree(consortium.heights(NODE))
    if state.exists():
        shutil.copytree(state, consortium.heights(NODE))


@pytest.mark.parametrize("runs_between", [1, 3])
def test_a_disk_restored_between_two_runs_is_noticed_by_the_first_peer(
    consortium: Consortium, tmp_path: Path, runs_between: int
) -> None:
    """What peers heard was kept with each run: the next run knew nothing of it."""
    consortium.run()
    shutil.copytree(consortium.heights(NODE), tmp_path / "backup")
    for _ in range(runs_between):
        consortium.run()
    restore(consortium, tmp_path / "backup")
    federation = consortium.run()
    failure = federation.failures[NODE, "TRAIN"]
    assert failure.code == "ROLLBACK_DETECTED" and "restored from an older state" in str(failure)
    assert isinstance(consortium.outcome, Opened) and NODE not in consortium.outcome.contributors
    later = consortium.run()
    assert later.failures[NODE, "ADVERTISE"].code == "ROLLBACK_DETECTED", "for good, in every run"


def test_a_disk_that_was_emptied_is_noticed_too(consortium: Consortium, tmp_path: Path) -> None:
    for _ in range(2):
        consortium.run()
    restore(consortium, tmp_path / "nothing")
    assert consortium.run().failures[NODE, "TRAIN"].code == "ROLLBACK_DETECTED"


def test_runs_one_after_the_other_go_on(consortium: Consortium) -> None:
    for _ in range(3):
        federation = consortium.run()
        assert not federation.failures and isinstance(consortium.outcome, Opened)
    table = Heights(consortium.heights(NODES[1]))
    assert table.position()[0] == 3 and {table.of(peer)[0] for peer in NODES if peer != NODES[1]} == {3}
    table.close()


def test_what_peers_keep_is_each_nodes_own_word(consortium: Consortium) -> None:
    consortium.run()
    table = Heights(consortium.heights(NODES[1]))
    length, head, signature = table.of(NODE)
    table.close()
    from confide.identity.keys import verify

    verify(
        consortium.keys[NODE].public,
        bundles.LEDGER_DOMAIN,
        bundles.ledger_statement(NODE, length, head),
        bytes.fromhex(signature),
    )


def test_a_journal_that_was_restored_alone_is_noticed_without_a_peer(tmp_path: Path) -> None:
    journals = {"privacy ledger": Journal(tmp_path / "a"), "accepted submissions": Journal(tmp_path / "b")}
    for journal in journals.values():
        journal.append({"event": "one"})
    heights = Heights(tmp_path, lambda: journals)
    heights.begin("0" * 32, 1)
    for journal in journals.values():
        journal.append({"event": "two"})
    heights.begin("0" * 32, 2)
    other = Journal(tmp_path / "c")
    for event in ("one", "another", "three"):
        other.append({"event": event})
    for name in journals:
        for found in (Journal(tmp_path / f"empty {name}"), other):
            swapped = Heights(_copy(heights, tmp_path / f"{name} {len(found)}"), lambda: {**journals, name: found})  # noqa: B023
            with pytest.raises(ProtocolFailure, match=f"ROLLBACK_DETECTED: the node's {name} had 2 entries"):
                swapped.begin("0" * 32, 3)
            swapped.close()
    heights.begin("0" * 32, 3)


def _copy(heights: Heights, to: Path) -> Path:
    to.mkdir()
    shutil.copy(heights._journal.path, to)
    return to


def test_a_table_that_is_damaged_is_said(tmp_path: Path) -> None:
    (tmp_path / "heights.json").write_text('{"a": 1}')
    with pytest.raises(StateError, match="is damaged"):
        Heights(tmp_path)


@pytest.mark.parametrize("asked", [1, 3, 40])
def test_epochs_that_are_asked_for_and_dropped_do_not_make_peers_forget(
    consortium: Consortium, tmp_path: Path, asked: int
) -> None:
    """A restored node's ledger grows with every ADVERTISE: once longest, it took the place of what peers knew."""
    consortium.run()
    shutil.copytree(consortium.heights(NODE), tmp_path / "backup")
    for _ in range(2):
        consortium.run()
    restore(consortium, tmp_path / "backup")

    def grow(federation: Federation) -> None:
        """The coordinator asks for epochs, each shared and given up before anybody trains."""
        for _ in range(asked):
            federation.collector.begin_epoch(NODES)
            while federation.collector.resumable is None and (exchange := federation.collector.exchange()):
                for node, body in exchange.bodies.items():
                    federation.collector.receive(node, *federation.ask(exchange.step, node, body))
                federation.collector.close_exchange()
            federation.collector._attendance.renew = True

    federation = consortium.run(before=grow)
    assert federation.failures[NODE, "TRAIN"].code == "ROLLBACK_DETECTED"
    assert isinstance(consortium.outcome, Opened) and NODE not in consortium.outcome.contributors
