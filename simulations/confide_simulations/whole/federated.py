"""One consortium of four organizations and two sealed, private runs on different data of theirs."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import TrainingError
from confide.files import write_atomic
from confide.methods.first_model import first_model
from confide.models.architecture import load_config
from confide.models.store import ModelStore
from confide.runs.specification import Specification

from confide_simulations.demo import job as tuning_job
from confide_simulations.demo.shards import Record, write_jsonl
from confide_simulations.local_federation import LocalFederation, policy_text, run_command
from confide_simulations.processes import ProcessGroup
from confide_simulations.rlhf import comparisons
from confide_simulations.rlhf import job as reward_job

Say = Callable[[str], None]
TUNING_EPSILON, DELTA, CLIP = 8.0, 1e-5, 1.0
REWARD_EPSILON = 8.0
ROUNDS, LOCAL_STEPS = 2, 3
PREFERENCES = "preferences"


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended: its specification, manifest and last model (raw tensors)."""

    run_id: str
    specification: Specification
    manifest: dict[str, Any]
    model: bytes
    seconds: float


def consortium(
    folder: Path, base: Path, reward_base: Path, records: dict[str, Sequence[Record]], split: comparisons.Split
) -> LocalFederation:
    """Keys, admissions, both data sets and both models of every organization; no process yet."""
    files = {}
    for name, own in records.items():
        files[name] = folder / f"{name}.jsonl"
        write_jsonl(files[name], own)
    federation = LocalFederation(folder / "federation", nodes=files, base=base, model_name="smollm2-135m-instruct")
    federation.set_up()
    ModelStore(federation.models).add(str(reward_base), "all-minilm-l6-v2")
    for name, pairs in split.organizations.items():
        path = folder / f"{name}-{PREFERENCES}.jsonl"
        write_jsonl(path, pairs)
        run_command("data", "add", str(federation.node_folder(name)), PREFERENCES, str(path))
    return federation


def tuning(federation: LocalFederation, nodes: int) -> Specification:
    """Supervised fine-tuning of an adapter; each record is protected."""
    config = load_config(federation.base)
    return tuning_job.specification(
        sha256=federation.model_sha256,
        name=federation.model_name,
        dtype="bfloat16" if "bfloat16" in str(config.dtype) else "float32",
        layers=int(config.num_hidden_layers),
        rounds=ROUNDS,
        nodes=nodes,
        sealing="sealed",
        local_steps=LOCAL_STEPS,
        privacy=f'[privacy]\nunit = "record"\nepsilon = {TUNING_EPSILON}\ndelta = {DELTA}\nclip = {CLIP}\n',
    )


def reward(reward_base_sha256: str, nodes: int) -> Specification:
    """A reward head from comparisons; each comparison is protected."""
    return reward_job.specification(reward_base_sha256, nodes=nodes, epsilon=REWARD_EPSILON, data=PREFERENCES)


def allow(federation: LocalFederation, runs: Sequence[Specification]) -> None:
    """Every node's policy allows exactly these runs."""
    texts = [policy_text(one, root_public=federation.root_public, data=one.federation.data) for one in runs]
    for name in federation.nodes:
        write_atomic(federation.node_folder(name) / "policy.toml", _together(texts).encode())


def _together(texts: Sequence[str]) -> str:
    """One policy for several runs: lists of what each needs, the largest limits, every budget."""
    lines: dict[str, str] = {}
    for text in texts:
        head, _, _ = text.partition("[budgets.")
        for line in head.splitlines():
            key, _, value = line.partition(" = ")
            lines[key] = _wider(key, lines.get(key), value)
    budgets = ["[budgets." + text.partition("[budgets.")[2] for text in texts]
    return "\n".join([*(f"{key} = {value}" for key, value in lines.items()), *budgets]) + "\n"


def _wider(key: str, known: str | None, value: str) -> str:
    if known is None or known == value:
        return value
    if value.startswith("["):
        return json.dumps(sorted({*json.loads(known), *json.loads(value)}))
    if value in ("true", "false"):
        return "true" if "true" in (known, value) else "false"
    return str((min if key == "min_cohort" else max)(int(known), int(value)))


def train(
    federation: LocalFederation, processes: ProcessGroup, specification: Specification, base: Path, say: Say
) -> FinishedRun:
    """Submit, wait, and fetch the last model. Raises TrainingError when the run did not finish."""
    began = time.monotonic()
    initial, _ = first_model(specification, base)
    run_id = federation.submit(specification, initial)
    for event, data in federation.watch(run_id):
        processes.check_alive()
        if event in {"run_failed", "run_stopped"}:
            raise TrainingError(f"the run {specification.name} did not finish: {data.get('reason', event)}")
    manifest, model = federation.checkpoint(run_id)
    seconds = time.monotonic() - began
    say(f"  {specification.name}: {specification.federation.rounds} sealed, private rounds in {seconds:.0f} s")
    return FinishedRun(run_id, specification, manifest, model, seconds)


def publish(federation: LocalFederation, run: FinishedRun, name: str) -> dict[str, Any]:
    """Release a run's model under a name: created, signed by the administrator, published. As it is told afterwards."""
    admin = ("--admin", str(federation.admin_folder), "--coordinator", f"127.0.0.1:{federation.control_port}")
    run_command("release", "create", name, "--run", run.run_id, *admin)
    run_command("release", "sign", name, "1", "--yes", *admin)
    run_command("release", "publish", name, "1", *admin)
    [told] = [json.loads(line) for line in run_command("release", "list", name, "--json", *admin).splitlines() if line]
    return dict(told)
