"""How a run ends at a node: told, missed, or never heard of; what is erased then."""

# ruff: noqa: F811 - bench and store are fixtures

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from confide.proto import fleet_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.node_bench import Bench, bench, store  # noqa: F401


def test_the_end_of_a_run_that_was_never_offered_leaves_nothing(bench: Bench) -> None:
    before = bench.events()
    end = fleet_pb2.End(run_ended=True, failure="\x1b[2J[red]nonsense")
    bench.ask(bench.run.make(fleet_pb2.END, end.SerializeToString()))
    assert [entry for entry in bench.events()[len(before) :] if entry["event"] == "run ended"] == []
    assert bench.node.state.run_ids() == []


def test_the_words_of_an_end_are_kept_clean_and_short(bench: Bench) -> None:
    bench.offer()
    bench.end("\x1b[2J" + "x" * 40_000)
    record = bench.record()
    assert record.reason.isprintable() and len(record.reason) == 500
    reasons = [entry["reason"] for entry in bench.events() if entry["event"] == "run ended"]
    assert len(reasons) == 1 and reasons[0].isprintable() and len(reasons[0]) == 500


def test_an_end_of_fifty_megabytes_is_refused(bench: Bench) -> None:
    bench.offer()
    end = fleet_pb2.End(run_ended=True, failure="x" * (50 << 20))
    reply, _ = bench.ask(bench.run.make(fleet_pb2.END, end.SerializeToString()))
    assert "at most 65536 are read" in reply.failure.message


# --- ends that were missed


def told(bench: Bench, *ends: fleet_pb2.RunEnd, unknown: tuple[str, ...] = ()) -> list[list[str]]:
    """Reconcile with a coordinator that answers so; returns what it was asked."""
    asked: list[list[str]] = []

    def answer(run_ids: list[str]) -> fleet_pb2.RunEnds:
        asked.append(run_ids)
        return fleet_pb2.RunEnds(ends=ends, unknown=unknown)

    bench.runtime.reconcile(answer)
    return asked


def with_work(bench: Bench) -> list[Path]:
    """Files as training leaves them in the run's folder."""
    folder = bench.node.state.run(bench.run.run_id)
    names = ("training/tokens-train.bin", "training/optimizer-000001.safetensors", "training/slot.safetensors")
    files = [folder / name for name in (*names, "member/upload-1", "replies/9.reply")]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"made of private text")
    (folder / "replies" / "9.json").write_text('{"slot": 1}')
    return files


def ended(bench: Bench, **changes: Any) -> fleet_pb2.RunEnd:
    end = bench.world.end(bench.run.run_id, **{k: v for k, v in changes.items() if k in ("failure", "stopped_by")})
    for name in set(changes) - {"failure", "stopped_by"}:
        setattr(end, name, changes[name])
    return fleet_pb2.RunEnd(run_id=bench.run.run_id, end=end)


def test_a_run_whose_end_was_missed_is_ended_and_erased_at_the_next_connection(bench: Bench) -> None:
    bench.offer()
    bench.train()
    files = with_work(bench)
    bench = bench.again()  # killed, and started again: the run is not in memory
    assert told(bench, ended(bench, failure="STOPPED", stopped_by="admin")) == [[bench.run.run_id]]
    assert bench.record().status == "ended"
    assert [path for path in files if path.exists()] == []
    assert [entry["stopped_by"] for entry in bench.events() if entry["event"] == "run ended"] == ["admin"]
    assert told(bench) == []
    assert "SUBMISSION_REPLAYED" in bench.offer().reason


def test_a_missed_end_needs_neither_the_administrator_nor_the_base_model(bench: Bench) -> None:
    bench.offer()
    files = with_work(bench)
    end = ended(bench)
    bench.world.consortium.revoke("admin")
    bench.node.member.roster.accept(bench.world.consortium.roster.signed)
    bench = bench.again()
    told(bench, end)
    assert (bench.record().status, [path for path in files if path.exists()]) == ("ended", [])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"signature": bytes(64)}, "a signature that is none"),
        ({"failure": "STOPPED"}, "stopped by nobody"),
        ({"coordinator": "node-b"}, "said by a node"),
        ({"run_ended": False}, "the end of a slot"),
        ({"stop_signature": bytes(64)}, "changed behind the signature"),
    ],
)
def test_a_missed_end_that_nobody_signed_ends_nothing(bench: Bench, changes: dict[str, Any], name: str) -> None:
    bench.offer()
    files = with_work(bench)
    told(bench, ended(bench, **changes))
    assert bench.record().status == "accepted" and all(path.exists() for path in files), name
    assert [entry["step"] for entry in bench.events() if entry["event"] == "step failed"] == ["END"]


def test_the_end_of_another_run_ends_nothing(bench: Bench) -> None:
    bench.offer()
    other = bench.world.end("ab" * 16)
    told(bench, fleet_pb2.RunEnd(run_id=bench.run.run_id, end=other), fleet_pb2.RunEnd(run_id="ab" * 16, end=other))
    assert bench.record().status == "accepted"


def test_of_a_run_that_the_coordinator_does_not_know_only_the_text_goes(bench: Bench) -> None:
    bench.offer()
    files = with_work(bench)
    told(bench, unknown=(bench.run.run_id, "cd" * 16))
    assert bench.record().status == "accepted"
    assert [path.name for path in files if not path.exists()] == ["tokens-train.bin"]
    assert bench.train()[1]


def test_an_offer_that_nobody_accepted_in_time_ends_by_itself(bench: Bench) -> None:
    bench.policy('approval = "auto"', 'approval = "ask"')
    assert bench.offer().waiting
    later = bench.runtime._node = dataclasses.replace(bench.node, clock=lambda: time.time() + 8 * 86400)
    assert told(bench) == []
    assert bench.record().status == "ended"
    bench.runtime._node, _ = bench.node, later


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_ends_end_nothing(bench: Bench, data: bytes, ended_flag: bool) -> None:
    bench.offer()
    try:
        end = fleet_pb2.End.FromString(data)
    except Exception:
        return
    end.run_ended = ended_flag
    told(bench, fleet_pb2.RunEnd(run_id=bench.run.run_id, end=end))
    assert bench.record().status == "accepted"
