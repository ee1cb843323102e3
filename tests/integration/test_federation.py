"""The real thing, small: a coordinator and nodes as processes, against an independent computation of the same run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from confide.codec.tensors import TensorSchema
from confide.models.export import write_adapter
from confide.models.trainable import build, initial_state, load_trainable
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide_client.data.datasets import DataSets
from confide_client.training import LocalTrainer
from confide_simulations.local_federation import LocalFederation, policy_text, run_command
from confide_simulations.processes import ProcessGroup
from numpy.typing import NDArray

from tests.open_files import open_to_others
from tests.tiny_models import tiny_llama
from tests.training_specs import specification as make_specification

NODES = ("hospital-a", "bank-b", "law-firm-c")
RECORDS = [
    {"question": f"How thick must wall {i} be?", "answer": f"Wall {i} must be {i + 3} centimetres thick."}
    for i in range(36)
]


def write_shards(folder: Path) -> dict[str, Path]:
    files = {}
    for index, name in enumerate(NODES):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(record) + "\n" for record in RECORDS[index::3]))
    return files


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[tuple[LocalFederation, ProcessGroup]]:
    folder = tmp_path_factory.mktemp("federation")
    made = LocalFederation(folder, nodes=write_shards(folder), base=base)
    made.set_up()
    before = os.umask(0o022)  # of most systems; the commands of set_up have made this process's stricter
    with ProcessGroup() as processes:
        made.start(processes)
        yield made, processes
    os.umask(before)


def specification_for(made: LocalFederation, /, **sections: object) -> Specification:
    """A run of everybody. On a busy machine the processes take their time to import torch for the first offer."""
    federation: dict[str, object] = {"rounds": 2, "data": made.data, "clip_norm": 4.0}
    given = sections.pop("federation", federation)
    patient = {"exchange_deadline_s": 120.0, **given}  # type: ignore[dict-item]
    return make_specification(**{"model": {"sha256": made.model_sha256}, "federation": patient, **sections})


def run(federation: LocalFederation, specification: Specification) -> tuple[str, list[tuple[str, dict]]]:
    federation.allow(specification)
    run_id = federation.submit(specification)
    events = list(federation.watch(run_id))
    assert events[-1][0] == "run_finished", events[-3:]
    return run_id, events


def fedavg(federation: LocalFederation, specification: Specification, folder: Path) -> NDArray[np.float64]:
    """FedAvg in this process, in float64, over the nodes' own shards and splits."""
    state = initial_state(specification, federation.base)
    schema = TensorSchema.of(state)
    model = schema.flatten(state).astype(np.float64)
    for number in range(1, specification.federation.rounds + 1):
        total = np.zeros_like(model)
        for name in federation.nodes:
            trainer = LocalTrainer(specification, federation.base, node=name, folder=folder / name, threads=1)
            data = DataSets(federation.node_folder(name)).load(federation.data)
            slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
            total += trainer.contribute(model.astype(np.float32), data, slot).update
        model = model + total / len(federation.nodes)
    return model


def distance(left: NDArray[np.floating], right: NDArray[np.floating], start: NDArray[np.floating]) -> float:
    """Relative to how far training moved the model."""
    return float(np.linalg.norm(left - right) / np.linalg.norm(right - start))


def test_the_federated_adapter_is_fedavg_and_loads_in_peft(
    federation: tuple[LocalFederation, ProcessGroup], tmp_path: Path
) -> None:
    made, _ = federation
    specification = specification_for(made)
    run_id, events = run(made, specification)
    manifest, raw = made.checkpoint(run_id)
    expected = fedavg(made, specification, tmp_path)
    schema_state = initial_state(specification, made.base)
    schema = TensorSchema.of(schema_state)
    start = schema.flatten(schema_state)
    # Nodes and test share sums among threads as they are free, and Adam makes much of small gradients' last digits:
    # 2e-5 was seen on a busy machine. Another seed is beyond 1e-2.
    assert distance(np.frombuffer(raw, "<f4"), expected, start) < 1e-3
    assert distance(np.frombuffer(raw, "<f4"), fedavg(made, make_other_seed(specification), tmp_path), start) > 1e-2
    committed = [data for kind, data in events if kind == "round_committed"]
    assert [sorted(data["contributors"]) for data in committed] == [sorted(NODES)] * 2
    assert manifest["specification_sha256"] == specification.digest
    assert manifest["sealing"] == "none"
    assert len(manifest["chain"]) == 3
    check_peft(specification, made.base, schema, raw, manifest, tmp_path / "adapter")


def make_other_seed(specification: Specification) -> Specification:
    return specification.model_copy(update={"seed": specification.seed + 1})


def check_peft(
    specification: Specification, base: Path, schema: TensorSchema, raw: bytes, manifest: dict, folder: Path
) -> None:
    """What PEFT makes of the exported adapter computes the same as our own model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tensors = schema.unflatten(np.frombuffer(raw, "<f4"))
    write_adapter(folder, tensors, manifest, specification, base)
    ours = build(specification, base, "cpu")
    load_trainable(ours, tensors)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.allclose(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits, atol=1e-5)
    assert json.loads((folder / "manifest.json").read_text())["specification_sha256"] == specification.digest


def test_sealed_agrees_with_the_open_sum_within_quantisation(
    federation: tuple[LocalFederation, ProcessGroup], tmp_path: Path
) -> None:
    made, _ = federation
    sealed = specification_for(made, sealing={"kind": "sealed", "bits": 16})
    run_id, events = run(made, sealed)
    manifest, _ = made.checkpoint(run_id)
    # After one round: what rounding changed there, the optimizer of later rounds would blow up.
    _, raw = made.checkpoint(run_id, 1)
    sections = {"federation": {"rounds": 1, "data": made.data, "clip_norm": 4.0}}
    plain = specification_for(made, **sections)
    state = initial_state(plain, made.base)
    start = TensorSchema.of(state).flatten(state)
    assert distance(np.frombuffer(raw, "<f4"), fedavg(made, plain, tmp_path), start) < 1e-3
    assert manifest["sealing"] == "sealed"
    metrics = [data["metrics"]["train_loss"] for kind, data in events if kind == "round_committed"]
    assert len(metrics) == 2
    told = run_command("node", "verify-run", str(made.node_folder(NODES[0])), run_id)
    assert "one log of 2 rounds" in told and "in the sum of rounds 1-2" in told and "outer step" in told
    assert all(metric["count"] == 3 and 0 < metric["mean"] < 20 for metric in metrics)


def test_a_node_that_dies_is_left_out_by_name_and_comes_back(federation: tuple[LocalFederation, ProcessGroup]) -> None:
    made, processes = federation
    specification = specification_for(
        made,
        federation={
            "rounds": 3,
            "data": made.data,
            "clip_norm": 4.0,
            "min_cohort": 2,
            "step_deadline_s": 120.0,
            # How long the dead one's heartbeats may stay away.
            "exchange_deadline_s": 15.0,
        },
    )
    made.allow(specification)
    run_id = made.submit(specification)
    events = []
    for kind, data in made.watch(run_id):
        events.append((kind, data))
        if kind == "round_committed" and data["round"] == 1:
            processes.children["law-firm-c"].send_signal(signal.SIGKILL)
            processes.children.pop("law-firm-c").wait()
        if kind == "dropped" and "law-firm-c" not in processes.children:
            made.start_node(processes, "law-firm-c")
    assert events[-1][0] == "run_finished", events[-1]
    assert any(kind == "dropped" and data["node"] == "law-firm-c" and data["reason"] for kind, data in events)
    contributors = [data["contributors"] for kind, data in events if kind == "round_committed"]
    assert contributors[0] == sorted(NODES) and sorted(NODES[:2]) in contributors


def test_a_node_that_was_dead_when_the_run_ended_erases_its_text_on_return(
    federation: tuple[LocalFederation, ProcessGroup], tmp_path: Path
) -> None:
    made, processes = federation
    node = "law-firm-c"
    specification = specification_for(
        made,
        method={"name": "causal_lm"},
        federation={"rounds": 50, "data": "texts", "min_cohort": 2, "clip_norm": 4.0, "exchange_deadline_s": 15.0},
    )
    for name in NODES:
        text = tmp_path / f"{name}.jsonl"
        text.write_text("".join(json.dumps({"text": record["answer"]}) + "\n" for record in RECORDS))
        DataSets(made.node_folder(name)).add("texts", text)
        policy = policy_text(specification, root_public=made.root_public, data="texts")
        (made.node_folder(name) / "policy.toml").write_text(policy)
    run_id = made.submit(specification)
    folder = made.node_folder(node) / "runs" / run_id
    for kind, data in made.watch(run_id):
        if kind == "round_committed" and data["round"] == 1:
            processes.children[node].send_signal(signal.SIGKILL)
            processes.children.pop(node).wait()
            assert list(folder.glob("training/tokens-*.bin")), "the test needs text that is there to be erased"
            run_command("run", "stop", run_id, "--admin", str(made.admin_folder))
    assert kind == "run_stopped"
    assert json.loads((folder / "run.json").read_bytes())["status"] == "accepted"
    made.start_node(processes, node)
    deadline = time.monotonic() + 120
    while (record := json.loads((folder / "run.json").read_bytes()))["status"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert record["reason"] == "STOPPED"
    assert not (folder / "training").exists() and not list(folder.glob("member/upload*"))


def test_a_private_run_is_charged_noised_and_refused_at_the_limit(
    federation: tuple[LocalFederation, ProcessGroup],
) -> None:
    made, _ = federation
    private = specification_for(
        made,
        federation={"rounds": 1, "data": made.data, "clip_norm": 4.0},
        sealing={"kind": "sealed"},
        privacy={"unit": "record", "epsilon": 0.5, "delta": 1e-3, "clip": 1.0},
    )
    run_id, events = run(made, private)
    committed = [data for kind, data in events if kind == "round_committed"]
    assert [data["metrics"] for data in committed] == [{}]
    manifest, _ = made.checkpoint(run_id)
    assert manifest["specification"]["privacy"]["epsilon"] == 0.5
    for name in NODES:
        exported = run_command("ledger", "export", "--state", str(made.node_folder(name)))
        assert run_id in exported and "spent" in exported
        assert "verif" in run_command("ledger", "verify", "--state", str(made.node_folder(name)))
    # The policies allow 0.5 in all: the same cost a second time is refused before any work.
    again = made.submit(private.model_copy(update={"name": "again"}))
    ended = list(made.watch(again))
    assert ended[-1][0] == "run_failed"
    refused = [data for kind, data in ended if kind == "offer_answered"]
    assert all(not data["accepted"] and "BUDGET_EXHAUSTED" in data["reason"] for data in refused), refused


def test_no_file_of_a_state_folder_is_readable_by_others(federation: tuple[LocalFederation, ProcessGroup]) -> None:
    made, processes = federation
    folders = [made.server_folder, made.admin_folder, made.folder / "consortium", *map(made.node_folder, NODES)]
    assert [found for folder in folders for found in open_to_others(folder)] == []
    for child in processes.children.values():
        if child.poll() is None:
            assert psutil.Process(child.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)


def _demo(folder: Path, base: Path, *extra: str) -> list[str]:
    data = folder / "faq.jsonl"
    data.write_text("".join(json.dumps({**r, "category": str(i % 6)}) + "\n" for i, r in enumerate(RECORDS)))
    options = ["--data", str(data), "--model", str(base), "--held-out", "6", "--output", str(folder / "out")]
    return [sys.executable, "-m", "confide", "demo", *options, *extra]


def test_the_demo_command_writes_what_it_promises(base: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = _demo(tmp_path, base, "--rounds", "1", "--nodes", "3", "--json", str(figures))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(figures.read_text())
    assert set(document) == {"seconds", "peak_memory_mib", "sealing", "rounds", "nll", "adapter"}
    assert document["sealing"] == "sealed"
    assert [entry["round"] for entry in document["rounds"]] == [1]
    assert len(document["nll"]["alone"]) == 3
    assert document["rounds"][0]["nll"] == document["nll"]["federated"]
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (Path(document["adapter"]) / "adapter_model.safetensors").exists()
    assert "federated, 3 organizations" in done.stdout


def test_ctrl_c_leaves_no_process_behind(base: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen(_demo(tmp_path, base, "--rounds", "50"), stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(family := psutil.Process(demo.pid).children(recursive=True)) < 5:
            assert time.monotonic() < deadline and demo.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        time.sleep(1.0)
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(60) != 0
    finally:
        demo.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_bad_data_ends_the_demo_with_a_clear_error(base: Path, tmp_path: Path) -> None:
    command = _demo(tmp_path, base)
    (tmp_path / "faq.jsonl").write_text('{"question": "only"}\n')
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "line 1" in done.stderr and "answer" in done.stderr
    assert "Traceback" not in done.stderr
