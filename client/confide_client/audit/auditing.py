"""Audits on the node: a rehearsal that trains here and shows nobody, and the scoring of a released model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from confide import canonical
from confide.errors import ModelError, SpecificationError
from confide.files import private_folder, write_atomic
from confide.methods import base as methods
from confide.models import aggregation
from confide.models.architecture import load_base, load_tokenizer
from confide.models.arithmetic import precision
from confide.models.trainable import build, initial_state, load_trainable
from confide.privacy.audit.canaries import CanarySet
from confide.privacy.audit.scoring import AuditResult, audit, canary_losses, extract
from confide.proto import fleet_pb2
from confide.runs.specification import Specification

from confide_client.audit.canaries import with_canaries
from confide_client.data import token_files
from confide_client.data.datasets import LocalData
from confide_client.state import read_json
from confide_client.training import LocalTrainer

AUDIT_FILE = "audit.json"
"""In a run's folder: {"kind", "at", "result"} of its newest audit, for its report."""
_WRITES = frozenset({"sft", "causal_lm"})


def rehearse(
    specification: Specification,
    base: Path,
    data: LocalData,
    canaries: CanarySet,
    *,
    folder: Path,
    say: Callable[[str], None],
    threads: int | None = None,
) -> AuditResult:
    """Train all rounds of a run on this node's shard alone, with canaries among it, and audit the result.

    The auditor sees this node's own update in the clear, which nobody sees in a sealed run: what it finds is more than
    the coordinator or a peer could. Nothing leaves the node and nothing is charged; the model is thrown away.
    """
    if specification.privacy.shared:
        raise SpecificationError(
            "the noise of this run is added by all nodes together inside sealing, so one node "
            "cannot rehearse it; audit the released model with `confide audit score`"
        )
    trainer = LocalTrainer(specification, base, node="rehearsal", folder=private_folder(folder), threads=threads)
    shard = LocalData(train=with_canaries(data, canaries, specification).train, evaluation=[])
    model = trainer.schema.flatten(initial_state(specification, base))
    try:
        for number in range(1, specification.federation.rounds + 1):
            say(f"rehearsing round {number} of {specification.federation.rounds}")
            slot = fleet_pb2.SlotOpen(slot=number, round=number, attempt=1)
            model = model + trainer.contribute(model, shard, slot).update
            tensors = aggregation.after_round(specification, trainer.schema.unflatten(model))
            model = trainer.schema.flatten(tensors)
    finally:
        token_files.erase(folder)
    trained = build(specification, base)
    load_trainable(trained, trainer.schema.unflatten(model))
    return _score(specification, base, canaries, trained)


def score_release(specification: Specification, base: Path, canaries: CanarySet, release: Path) -> AuditResult:
    """Audit an exported model (a PEFT adapter folder or a whole model folder) with the canaries of its run."""
    return _score(specification, base, canaries, load_release(specification, base, release))


def load_release(specification: Specification, base: Path, release: Path) -> Any:
    """The exported model of a run. Raises ModelError when the folder is not a release of this specification."""
    manifest = read_json(release / "manifest.json")
    if manifest.get("specification_sha256") != specification.digest:
        raise ModelError(f"{release} is not a release of this run: its manifest names another specification, or none")
    dtype = precision.base_dtype(specification)
    if not (release / "adapter_config.json").exists():
        return load_base(specification, release, dtype)
    return peft.PeftModel.from_pretrained(load_base(specification, base, dtype), release).get_base_model()


def _score(specification: Specification, base: Path, canaries: CanarySet, trained: Any) -> AuditResult:
    tokenizer = load_tokenizer(base)
    method = methods.create(specification, tokenizer)
    start = build(specification, base)
    load_trainable(start, initial_state(specification, base))
    privacy = specification.privacy
    with torch.no_grad():
        return audit(
            canaries,
            base_losses=canary_losses(method, start, canaries),
            trained_losses=canary_losses(method, trained, canaries),
            extraction=extract(trained, tokenizer, canaries) if specification.method.name in _WRITES else None,
            claimed_epsilon=privacy.epsilon,
            claimed_delta=privacy.delta,
        )


def keep_result(folder: Path, kind: str, result: AuditResult) -> None:
    """Store the newest audit of a run in its folder, for its report. kind: rehearsal | release."""
    write_atomic(
        folder / AUDIT_FILE, canonical.encode({"kind": kind, "at": int(time.time()), "result": result.document()})
    )
