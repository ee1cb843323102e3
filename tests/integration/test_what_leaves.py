"""Two private runs through real processes, and every byte that their nodes sent: counted, constant, or it fails."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confide import journal
from confide.privacy.ledger import LEDGER_NAME, replay
from confide.proto import control_pb2, fleet_pb2, sealing_pb2
from confide.sealing.seal_log import rows
from confide_simulations.local_federation import LocalFederation, run_command
from confide_simulations.processes import ProcessGroup

from tests import what_leaves
from tests.integration.test_federation import NODES, run, specification_for, write_shards
from tests.tiny_models import tiny_llama
from tests.what_leaves import TABLE, Undeclared, Why, declared, opened

ORGANIZATION = {"unit": "organization", "epsilon": 8.0, "delta": 1e-3, "clip": 1.0}
RECORD = {"unit": "record", "epsilon": 0.5, "delta": 1e-3, "clip": 1.0}
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "privacy.md"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Nodes that note what they send. After it: an organization-level and a record-level run, each asked for twice."""
    folder = tmp_path_factory.mktemp("private")
    made = LocalFederation(
        folder, nodes=write_shards(folder), base=tiny_llama(folder / "llama"),
        node_program=("-m", "tests.recording_node"),
    )  # fmt: skip
    made.set_up()
    for name, path in made.nodes.items():
        run_command("data", "add", str(made.node_folder(name)), "notes", str(path))
    with ProcessGroup() as processes:
        made.start(processes)
        made.runs = {}  # type: ignore[attr-defined]
        for data, privacy in (("shard", ORGANIZATION), ("notes", RECORD)):
            made.data = data
            federated = {"rounds": 1, "data": data, "clip_norm": 1.0}
            private = specification_for(made, federation=federated, sealing={"kind": "sealed"}, privacy=privacy)
            run_id, events = run(made, private)
            again = made.submit(private.model_copy(update={"name": "again"}))
            made.runs[data] = run_id, events, list(made.watch(again))  # type: ignore[attr-defined]
        _wait_for_receipts(made, [run_id for run_id, *_ in made.runs.values()])  # type: ignore[attr-defined]
        yield made


def _wait_for_receipts(made: LocalFederation, run_ids: list[str], timeout_s: float = 120.0) -> None:
    """Receipts go a few seconds after the slot; the manifest of an export then holds them."""
    deadline = time.monotonic() + timeout_s
    while any(len(made.checkpoint(run_id)[0]["receipts"]) < len(NODES) for run_id in run_ids):
        assert time.monotonic() < deadline, "the receipts of a run did not reach its manifest"
        time.sleep(0.5)


def ledger_of(made: LocalFederation, name: str) -> Any:
    return replay(journal.read(made.node_folder(name) / LEDGER_NAME)[0])


@pytest.mark.parametrize(("data", "epsilon"), [("shard", 8.0), ("notes", 0.5)])
def test_a_private_run_commits_and_a_second_one_is_refused_at_the_budget(
    federation: LocalFederation, data: str, epsilon: float
) -> None:
    run_id, events, ended = federation.runs[data]  # type: ignore[attr-defined]
    committed = [fields for kind, fields in events if kind == "round_committed"]
    assert [fields["contributors"] for fields in committed] == [sorted(NODES)]
    assert [fields["metrics"] for fields in committed] == [{}]
    assert ended[-1][0] == "run_failed"
    refused = [fields for kind, fields in ended if kind == "offer_answered"]
    assert refused and all("BUDGET_EXHAUSTED" in fields["reason"] for fields in refused), refused
    for name in NODES:
        charged = ledger_of(federation, name).run(run_id)
        assert (charged.approved.unit, charged.spent_slots) == (
            ("organization", 1) if epsilon == 8.0 else ("record", 1)
        )
        kinds = {event.kind for event in charged.approved.cost.slot}
        assert kinds == ({"skellam"} if epsilon == 8.0 else {"sampled_gaussian"})
        run_command("ledger", "verify", "--state", str(federation.node_folder(name)))


def test_the_manifests_receipts_agree_with_the_ledgers(federation: LocalFederation, tmp_path: Path) -> None:
    for run_id, *_ in federation.runs.values():  # type: ignore[attr-defined]
        manifest, _ = federation.checkpoint(run_id)
        receipts = manifest["receipts"]
        assert sorted(item["node"] for item in receipts) == sorted(NODES)
        for item in receipts:
            path = tmp_path / "receipts.json"
            path.write_text(json.dumps([item]))
            state = federation.node_folder(item["node"])
            said = run_command("ledger", "verify", "--state", str(state), "--receipts", str(path))
            assert "1 receipts agree" in said


def test_every_field_that_left_is_declared_and_every_upload_charged(federation: LocalFederation) -> None:
    values: dict[str, set[Any]] = defaultdict(set)
    sizes: dict[str, set[int]] = defaultdict(set)
    for name in NODES:
        state = federation.node_folder(name)
        found, replies = declared(state)
        for field, value in found:
            if TABLE[field] is Why.CONSTANT and isinstance(value, str | int | float | bytes):
                values[field].add(value)
        steps = {reply.step for reply, _ in replies}
        assert steps == set(fleet_pb2.Step.values()) - {fleet_pb2.STEP_UNSPECIFIED}, "every kind of answer was seen"
        assert "confide.v1.PutReceiptRequest.receipt" in {field for field, _ in found}
        ledger = ledger_of(federation, name)
        for reply, payload in replies:
            if payload:
                slot = sealing_pb2.SealedUpload.FromString(reply.body).slot
                sealed = {row["slot"]: row for row in rows(_seal_log(state, reply.run_id))}
                spent = ledger.run(reply.run_id).draws.get(slot) is True
                assert spent or sealed[slot]["reserved"]["evaluate_only"], "an upload left that no ledger line pays for"
                sizes[f"{reply.run_id} {slot}"].add(len(payload["upload"]))
    assert {field: found for field, found in values.items() if len(found) > 1} == {}
    assert sizes and all(len(found) == 1 for found in sizes.values()), "an upload's length tells of its data"


def _seal_log(state: Path, run_id: str) -> Path:
    return next((state / "runs" / run_id).rglob("seal-log.jsonl"))


def test_a_field_that_nobody_declared_fails(federation: LocalFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    for lost in ("confide.v1.Reply.node", "payload.upload", "receipt.group", "http.flwr-timestamp",
                 "confide.v1.DealtShare.share", "flwr.proto.Metadata.ttl", "grpc.confide-release"):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.delitem(what_leaves.TABLE, lost)
            with pytest.raises(Undeclared, match=lost.rsplit(".", 1)[-1]):
                declared(federation.node_folder(NODES[0]))
    newer = sealing_pb2.SealedUpload(version=1).SerializeToString() + b"\x7a\x01\x00"
    with pytest.raises(Undeclared, match="does not know"):
        list(opened(sealing_pb2.SealedUpload.FromString(newer)))
    with pytest.raises(Undeclared, match="MetricValue"):
        list(opened(sealing_pb2.PlainUpload(metrics=[sealing_pb2.MetricValue(name="train_loss", value=1.0)])))
    with pytest.raises(Undeclared):
        list(opened(control_pb2.SubmitRunHeader()))


def test_the_document_says_the_same() -> None:
    text = DOCUMENT.read_text()
    for kind in {
        name.rsplit(".", 1)[0].removeprefix("confide.v1.") for name in TABLE if name.startswith("confide.v1.")
    }:
        assert f"`{kind}`" in text, f"docs/privacy.md, What leaves, does not name {kind}"
