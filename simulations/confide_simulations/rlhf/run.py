"""The RLHF demo from end to end: comparisons, four federated runs, baselines, an aligned policy, its gate."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from confide.errors import TrainingError
from confide.models.store import folder_digest
from confide.privacy.plan import planned_slots
from confide_client.runs.records import Record
from confide_server.rlhf.reward_model import FeatureReader
from numpy.typing import NDArray
from rich.console import Console

from confide_simulations import assets
from confide_simulations.demo.shards import NAMES, write_jsonl
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup
from confide_simulations.rlhf import comparisons, heads, job
from confide_simulations.rlhf.align import PROMPTS, STEPS, Aligned, Head, align

Vectors = NDArray[np.float64]
SEEDS = (0, 1, 2, 3, 4)
BUDGET_EPSILON = 24.0
"""Of each organization over all three private runs: they share their data, so what they cost adds up."""
ALIGNED_BY = "eps8"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line may vary."""

    snippets_each: int = 500
    pairs_each: int = 914
    test_snippets: int = 2400
    test_pairs: int = 900
    judge_snippets: int = 800
    prompts: int = PROMPTS
    steps: int = STEPS
    policy: bool = True
    seed: int = 7
    keep: bool = False


@dataclass
class Result:
    """Everything that was measured; accuracy is of test pairs that no two share a snippet."""

    seconds: float = 0.0
    accuracy: dict[str, Any] = field(default_factory=dict)
    differences: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """By name: (mean, 95 % interval) of a difference in accuracy on the same pairs."""
    bytes_per_node_round: int = 0
    test_pairs: int = 0
    alpha: float = 0.0
    aligned: Aligned | None = None
    phases: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document of `confide demo rlhf --json`."""
        aligned = self.aligned
        policy = None if aligned is None else {
            "win_rate": aligned.figures.win_rate, "interval": list(aligned.figures.interval), "kl": aligned.figures.kl,
            "prompts": aligned.figures.prompts, "answers": aligned.figures.answers, "pairs": aligned.pairs,
            "stopped": aligned.stopped, "training_rewards_best_worst": list(aligned.rewards),
        }  # fmt: skip
        gate = None if aligned is None else {
            "passed": aligned.verdict.passed, "failed": list(aligned.verdict.failed),
            "not_known": list(aligned.verdict.unknown), "perplexity": aligned.figures.perplexity,
            "length_ratio": aligned.figures.length_ratio, "repetition": aligned.figures.repetition,
        }  # fmt: skip
        return {
            "seconds": round(self.seconds, 1),
            "accuracy": self.accuracy,
            "differences": {name: list(value) for name, value in self.differences.items()},
            "bytes_per_node_round": self.bytes_per_node_round,
            "test_pairs": self.test_pairs,
            "krippendorff_alpha": round(self.alpha, 3),
            "policy": policy,
            "gate": gate,
            "seeds": {"data": 7, "alone_eps1": list(SEEDS)},
            "phases": {name: round(value, 1) for name, value in self.phases.items()},
        }


def run(options: Options, console: Console) -> Result:
    """Raises ConfideError when anything failed."""
    say = _say(console)
    base = assets.minilm(say)
    smollm = assets.smollm2(say) if options.policy else None
    result, began = Result(), time.monotonic()
    found = comparisons.snippets(say)
    result.alpha = comparisons.agreement(found)
    split = comparisons.split(
        found, NAMES, snippets_each=options.snippets_each, pairs_each=options.pairs_each,
        judge_snippets=options.judge_snippets, test_snippets=options.test_snippets, test_pairs=options.test_pairs,
        seed=options.seed,
    )  # fmt: skip
    work = Path(tempfile.mkdtemp(prefix="confide-rlhf-"))
    try:
        federated, result.bytes_per_node_round = _federate(split, base, work, result, console)
        _phase(result, "federated", began)
        reader = FeatureReader(base, "mean", job.MAX_LENGTH)
        vectors = _differences(reader, split)
        _accuracies(result, vectors, federated, base)
        _phase(result, "baselines", began)
        if smollm is not None:
            judge = Head(reader, heads.train([vectors["judge"]]))
            reward = Head(reader, federated[ALIGNED_BY])
            lineage = {
                "base": folder_digest(smollm),
                "reward_base": folder_digest(base),
                "reward": ALIGNED_BY,
                "privacy": "epsilon 8 for each comparison; prompts are public, so that nothing more is spent",
            }
            result.aligned = align(
                smollm, folder_digest(smollm), reward, judge, work, lineage=lineage, steps=options.steps,
                count=options.prompts, say=say, seed=options.seed,
            )  # fmt: skip
            _phase(result, "policy", began)
    finally:
        if options.keep:
            console.print(f"state folders and logs are kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    result.seconds = time.monotonic() - began
    return result


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"[dim]{text}[/dim]", highlight=False)


def _phase(result: Result, name: str, began: float) -> None:
    result.phases[name] = time.monotonic() - began - sum(result.phases.values())


def _federate(
    split: comparisons.Split, base: Path, work: Path, result: Result, console: Console
) -> tuple[dict[str, Vectors], int]:
    """Heads by name ("federated", "eps1", ...), and bytes that a node sent in a round of a private run."""
    say = _say(console)
    files = {}
    for name, pairs in split.organizations.items():
        files[name] = work / f"{name}.jsonl"
        write_jsonl(files[name], pairs)
    say("making keys, admissions and policies: a root, a coordinator, an administrator, " + ", ".join(files))
    federation = LocalFederation(work / "federation", nodes=files, base=base, model_name="all-minilm-l6-v2")
    federation.set_up()
    found: dict[str, Vectors] = {}
    sent = 0
    with ProcessGroup() as processes:
        first = job.specification(federation.model_sha256, nodes=len(files), epsilon=None)
        federation.allow(first)
        federation.start(processes)
        # From the least to the most that is spent: what is spent does not come back.
        for epsilon in (None, *sorted(job.EPSILONS)):
            specification = job.specification(federation.model_sha256, nodes=len(files), epsilon=epsilon)
            federation.allow(specification, budget_epsilon=BUDGET_EPSILON)
            name = "federated" if epsilon is None else f"eps{epsilon:g}"
            began = time.monotonic()
            run_id = federation.submit(specification)
            for event, data in federation.watch(run_id):
                processes.check_alive()
                if event in {"run_failed", "run_stopped"}:
                    raise TrainingError(f"the run {name} did not finish: {data.get('reason', event)}")
            _, model = federation.checkpoint(run_id)
            found[name] = np.frombuffer(model, "<f4").astype(np.float64)
            say(f"  {name}: {job.ROUNDS} sealed rounds in {time.monotonic() - began:.0f} s")
            sent = _sent(federation, run_id)
    return found, sent


def _sent(federation: LocalFederation, run_id: str) -> int:
    """Bytes that a node sent in a round, all exchanges together, the most of any node."""
    counts = []
    for name in federation.nodes:
        record = Record.load(federation.node_folder(name) / "runs" / run_id)
        counts.append(0 if record is None else record.bytes_sent)
    return max(counts) // job.ROUNDS


def _differences(reader: FeatureReader, split: comparisons.Split) -> dict[str, Vectors]:
    """(N, D) by organization, "test" and "judge"; each text is read once."""
    sets = {**split.organizations, "test": split.test, "judge": split.judge}
    texts = sorted({pair[side] for pairs in sets.values() for pair in pairs for side in ("chosen", "rejected")})
    features = dict(zip(texts, reader.of(["" for _ in texts], texts).astype(np.float64), strict=True))
    return {
        name: np.stack([features[pair["chosen"]] - features[pair["rejected"]] for pair in pairs])
        for name, pairs in sets.items()
    }


def _accuracies(result: Result, vectors: Mapping[str, Vectors], federated: Mapping[str, Vectors], base: Path) -> None:
    test, shards = vectors["test"], {name: vectors[name] for name in NAMES}
    result.test_pairs = len(test)
    slots = planned_slots(job.specification("0" * 63 + "1", nodes=len(shards), epsilon=1.0))
    right = {name: heads.right(weight, test) for name, weight in federated.items()}
    right["central"] = heads.right(heads.train([np.concatenate(list(shards.values()))]), test)
    alone = {name: heads.right(heads.train([shard]), test) for name, shard in shards.items()}
    private = {
        name: np.mean([heads.right(heads.alone_private(shard, 1.0, slots=slots, seed=s), test) for s in SEEDS], axis=0)
        for name, shard in shards.items()
    }
    result.accuracy = {
        **{name: float(values.mean()) for name, values in right.items()},
        "alone": {name: float(values.mean()) for name, values in alone.items()},
        "alone_eps1": {name: float(values.mean()) for name, values in private.items()},
    }
    result.differences = {
        "federated - central": heads.paired_interval(right["federated"], right["central"]),
        **{
            f"{name} - federated": heads.paired_interval(right[name], right["federated"])
            for name in ("eps8", "eps3", "eps1")
        },
        **{
            f"alone_eps1 {name} - eps1": heads.paired_interval(values, right["eps1"])
            for name, values in private.items()
        },
    }
