"""From the federated adapter and the private reward to a policy, its gate, and which model is let out."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide import canonical
from confide.identity.member import LocalMember
from confide.identity.submission import sign_release, verify_release
from confide.models.adapter_hash import content_hash
from confide.models.export import write_adapter
from confide.models.store import folder_digest
from confide.models.trainable import schema_of
from confide_server.rlhf.reward_model import FeatureReader

from confide_simulations.rlhf import comparisons, heads
from confide_simulations.rlhf import job as reward_job
from confide_simulations.rlhf.align import PROMPTS, STEPS, Aligned, Head, align
from confide_simulations.whole.federated import FinishedRun, Say


@dataclass(frozen=True)
class LetOut:
    """The model that is served: the aligned policy where it passed the gate, else the released one from before.

    document, signature: the aligned policy's release by the administrator; empty where it did not pass.
    """

    folder: Path
    sha256: str
    aligned: bool
    document: bytes
    signature: bytes


def exported(run: FinishedRun, base: Path, folder: Path) -> Path:
    """The run's adapter in PEFT's format, with its signed manifest."""
    schema = schema_of(run.specification, base)
    tensors = schema.unflatten(np.frombuffer(run.model, "<f4"))
    return write_adapter(folder, tensors, run.manifest, run.specification, base)


def aligned_policy(
    adapter: Path, tuned: FinishedRun, reward: FinishedRun, base: Path, reward_base: Path, split: comparisons.Split,
    admin: LocalMember, folder: Path, say: Say,
) -> Aligned:  # fmt: skip
    """DPO from the federated adapter on answers that the private reward ranked, and the gate against that adapter."""
    reader = FeatureReader(reward_base, "mean", reward_job.MAX_LENGTH)
    judged = _differences(reader, split.judge)
    lineage = {
        "base": folder_digest(base),
        "adapter": content_hash(adapter),
        "fine_tuning_run": tuned.run_id,
        "reward_base": folder_digest(reward_base),
        "reward_run": reward.run_id,
        "privacy": "of both runs; prompts are public, so that nothing more is spent",
    }
    return align(
        base, folder_digest(base), Head(reader, np.frombuffer(reward.model, "<f4").astype(np.float64)),
        Head(reader, heads.train([judged])), folder, lineage=lineage, steps=STEPS, count=PROMPTS, say=say,
        adapter=adapter, signer=admin.identity,
    )  # fmt: skip


def _differences(reader: FeatureReader, pairs: Any) -> Any:
    sides = [reader.of(["" for _ in pairs], [pair[side] for pair in pairs]) for side in ("chosen", "rejected")]
    return sides[0].astype(np.float64) - sides[1].astype(np.float64)


def let_out(policy: Aligned, released: Path, admin: LocalMember, name: str) -> LetOut:
    """What the endpoint may serve. An aligned policy that did not pass the gate is not released."""
    if not policy.verdict.passed:
        return LetOut(released, content_hash(released), False, b"", b"")
    sha256 = content_hash(policy.adapter)
    document = canonical.encode(
        {
            "name": name,
            "adapter_sha256": sha256,
            "evidence_sha256": hashlib.sha256(policy.evidence).hexdigest(),
            "made_at": int(time.time()),
        }
    )
    signature = sign_release(admin.identity, document)
    verify_release(admin.roster.current, admin.name, document, signature)
    return LetOut(policy.adapter, sha256, True, document, signature)
