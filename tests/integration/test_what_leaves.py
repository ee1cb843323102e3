"""Private runs through real processes, and every byte that their nodes sent: counted, constant, or it fails."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide.methods.first_model import first_model
from confide.proto import admin_pb2, sealing_pb2
from confide_simulations.local_federation import LocalFederation, run_command
from confide_simulations.processes import ProcessGroup

from tests import what_leaves
from tests.integration.test_federation import NODES, specification_for, write_shards
from tests.private_runs import (
    EVERY_STEP,
    ONE_STEP,
    ORGANIZATION,
    RECORDING,
    Asked,
    ask_twice,
    check_charged,
    check_left,
    check_noise,
    expected_stddev,
    ledger_of,
    register,
    texts_nowhere,
)
from tests.tiny_models import tiny_llama
from tests.tokenizer_runs import tokenizer_spec
from tests.what_leaves import TABLE, Undeclared, declared, opened

RECORD = {"unit": "record", "epsilon": 0.5, "delta": 1e-3, "clip": 1.0}
USER = {**RECORD, "unit": "user", "user_key": "question"}
SEALED = {"sealing": {"kind": "sealed"}}
RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "organization": ({"privacy": ORGANIZATION, **SEALED}, "skellam"),
    "record": ({"privacy": RECORD, **SEALED}, "sampled_gaussian"),
    "user-unsealed": (
        {"privacy": USER, "adapter": {"aggregation": "ffa"}, "training": ONE_STEP, "federation": {"clip_norm": 64.0}},
        "sampled_gaussian",
    ),
    "words": ({}, "gaussian"),
}
"""By data set: what is asked for, and the kind of event that a slot is charged as."""
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "privacy.md"


class Private(LocalFederation):
    """Nodes that note what they send, and the runs that they did."""

    asked: dict[str, Asked]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    """After every run of RUNS, each asked for twice."""
    folder = tmp_path_factory.mktemp("private")
    made = Private(folder, nodes=write_shards(folder), base=tiny_llama(folder / "llama"), node_program=RECORDING)
    made.set_up()
    with ProcessGroup() as processes:
        made.start(processes)
        made.asked = {}
        for data, (sections, _) in RUNS.items():
            register(made, data)
            federated = {"rounds": 1, "data": data, "clip_norm": 1.0, **sections.get("federation", {})}
            asked = specification_for(made, **{**sections, "federation": federated}) if sections else _words(data)
            made.asked[data] = ask_twice(made, asked)
        _wait_for_receipts(made, [found.run_id for found in made.asked.values()])
        yield made


def _words(data: str) -> Any:
    """A tokenizer run; its noise makes every count of 36 short records invisible, which is as it should be."""
    section = '[privacy]\nunit = "record"\nepsilon = 8.0\ndelta = 1e-3\nclip = 1.0'
    specification = tokenizer_spec(sealing="sealed", rounds=1, privacy=section)
    changes = {"data": data, "exchange_deadline_s": 120.0}
    return specification.model_copy(update={"federation": specification.federation.model_copy(update=changes)})


def _wait_for_receipts(made: LocalFederation, run_ids: list[str], timeout_s: float = 120.0) -> None:
    """Receipts go a few seconds after the slot; the manifest of an export then holds them."""
    deadline = time.monotonic() + timeout_s
    while any(len(made.checkpoint(run_id)[0]["receipts"]) < len(NODES) for run_id in run_ids):
        assert time.monotonic() < deadline, "the receipts of a run did not reach its manifest"
        time.sleep(0.5)


@pytest.mark.parametrize("data", list(RUNS))
def test_a_private_run_is_charged_as_planned_and_a_second_one_is_refused_at_the_budget(
    federation: Private, data: str
) -> None:
    found, (_, kind) = federation.asked[data], RUNS[data]
    check_charged(federation, found)
    for name in NODES:
        cost = ledger_of(federation, name).run(found.run_id).approved.cost
        assert {event.kind for event in cost.slot} == {kind}


def test_the_node_was_told_beforehand_what_it_was_charged(federation: Private) -> None:
    state, found = federation.node_folder(NODES[0]), federation.asked["record"]
    federation.data = "record"
    federation.allow(found.specification)
    said = " ".join(run_command("node", "plan", str(state), found.run_id).split())
    (event,) = ledger_of(federation, NODES[0]).run(found.run_id).approved.cost.slot
    assert f"noise multiplier {event.noise_multiplier:.4g}" in said and f"= {event.sampling_rate:.6g}, " in said
    assert "epsilon 0.500 at delta 0.001" in said


def test_what_the_coordinator_got_is_noised_as_the_ledgers_say(federation: Private) -> None:
    found = federation.asked["user-unsealed"]
    _, model = federation.checkpoint(found.run_id)
    initial, _ = first_model(found.specification, federation.base)
    moved = np.frombuffer(model, "<f4").astype(np.float64) - np.frombuffer(initial, "<f4")
    stddev = expected_stddev(federation, found.specification, {})
    # Eleven users, each of whom moves the sum of 32 by one clip at most: far shorter than the noise.
    assert np.linalg.norm(stddev) > 5 * 11 / 32
    check_noise(moved, stddev, slack=0.05)


def test_the_manifests_receipts_agree_with_the_ledgers(federation: Private, tmp_path: Path) -> None:
    for found in federation.asked.values():
        manifest, _ = federation.checkpoint(found.run_id)
        receipts = manifest["receipts"]
        assert sorted(item["node"] for item in receipts) == sorted(NODES)
        for item in receipts:
            path = tmp_path / "receipts.json"
            path.write_text(json.dumps([item]))
            state = federation.node_folder(item["node"])
            said = run_command("ledger", "verify", "--state", str(state), "--receipts", str(path))
            assert "1 receipts agree" in said


def test_every_field_that_left_is_declared_and_every_upload_charged(federation: Private) -> None:
    steps = check_left(federation, federation.asked.values())
    assert steps == EVERY_STEP, "every kind of answer was seen"
    for name in NODES:
        found, _ = declared(federation.node_folder(name))
        assert "confide.v1.PutReceiptRequest.receipt" in {field for field, _ in found}
    texts_nowhere(federation, ("centimetres", "thick must"))


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
        list(opened(admin_pb2.SubmitRunHeader()))


def test_the_document_says_the_same() -> None:
    text = DOCUMENT.read_text()
    for kind in {
        name.rsplit(".", 1)[0].removeprefix("confide.v1.") for name in TABLE if name.startswith("confide.v1.")
    }:
        assert f"`{kind}`" in text, f"docs/privacy.md, What leaves, does not name {kind}"
