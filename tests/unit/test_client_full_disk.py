"""A node on a full disk: refuses by name, stays up, and writes later what happened meanwhile."""

# ruff: noqa: F811 - bench and store are fixtures

import errno
import itertools
import os
from pathlib import Path

import pytest
from confide.errors import RetryableError, TransportError
from confide.journal import Journal
from confide.journal import read as read_journal
from confide_client.agent.agent import Agent
from confide_client.audit.log import MOST_OWED, Audit
from confide_client.state import StateFolder

from tests.node_bench import MODEL, Bench, bench, store  # noqa: F401
from tests.node_worlds import World as NodeWorld
from tests.node_worlds import faq


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A disk that is full while something is in the list."""
    honest, full = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return full


def test_a_full_disk_refuses_by_name_and_is_over_when_there_is_room(bench: Bench, disk: list[str]) -> None:
    disk.append("full")
    answer = bench.offer()
    assert (answer.accepted, answer.waiting, answer.preparing) == (False, True, True), "it is offered again"
    assert answer.reason.startswith("RetryableError: ") and "No space left" in answer.reason
    assert str(bench.node.state.root) not in answer.reason
    assert bench.events() == []
    disk.clear()
    assert bench.offer().accepted, "nobody refused it"
    disk.append("full")
    failure = bench.failure(*bench.run.slot(MODEL))
    assert failure.code == "RetryableError" and "No space left" in failure.message
    disk.clear()
    reply, files = bench.train(slot=2, attempt=2)
    assert files["upload"] and reply.node == "node-a"
    events = [entry["event"] for entry in bench.events()]
    assert events[0] == "step failed" and "No space left" in bench.events()[0]["reason"]
    assert events.index("offer accepted") < events.index("step failed", 1) < events.index("sent", 3)


def test_what_goes_on_also_on_a_full_disk_is_written_later_with_its_time(tmp_path: Path, disk: list[str]) -> None:
    moments = itertools.count()
    audit = Audit(Journal(tmp_path / "audit.log"), clock=lambda: float(next(moments)))
    disk.append("full")
    for number in range(MOST_OWED + 3):
        audit.note_when_there_is_room("busy", number=number)
    with pytest.raises(RetryableError, match="No space left"):
        audit.note("sent")
    disk.clear()
    audit.note("connected")
    audit.close()
    left_out, *kept, last = read_journal(tmp_path / "audit.log")[0]
    assert (left_out["event"], left_out["entries"], last["event"]) == ("entries left out", 3, "connected")
    assert [one["number"] for one in kept] == list(range(3, MOST_OWED + 3))
    assert kept[0]["at"] == "1970-01-01T00:00:03+00:00"


def test_an_agent_stays_up_on_a_full_disk(tmp_path: Path, store: tuple[Path, str], disk: list[str]) -> None:
    world = NodeWorld.make(tmp_path, ("node-a",))
    world.equip("node-a", store[1], store[0], faq(tmp_path / "faq.jsonl", 12, "node-a"))
    agent = Agent(StateFolder.at(tmp_path / "node-a"))
    disk.append("full")
    agent._connected("127.0.0.1:1")
    agent._disconnected(TransportError("away"))
    assert not (tmp_path / "node-a" / "agent.json").exists()
    disk.clear()
    agent._connected("127.0.0.1:1")
    agent._runtime.close()
    agent._audit.close()
    assert [one["event"] for one in read_journal(tmp_path / "node-a" / "audit.log")[0]] == ["connected"] * 2
