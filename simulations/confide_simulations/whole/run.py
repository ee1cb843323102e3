"""All stages of `confide demo whole` in order."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confide.errors import TrainingError
from confide.files import write_atomic
from confide.identity.member import load_member
from confide.models.store import folder_digest
from confide.rag.embedder import Embedder
from rich.console import Console

from confide_simulations import assets
from confide_simulations.demo import shards
from confide_simulations.forks import shared
from confide_simulations.processes import ProcessGroup
from confide_simulations.rlhf import comparisons
from confide_simulations.rlhf.align import Aligned
from confide_simulations.whole import aligned, federated, ledgers, page, served
from confide_simulations.whole.federated import FinishedRun, Say
from confide_simulations.whole.lineage import Lineage, Step

NAMES = shards.NAMES
RELEASE = "support"


@dataclass
class Result:
    """What was measured; `to_json` is the document of `confide demo whole --json`."""

    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    tuned: FinishedRun | None = None
    reward: FinishedRun | None = None
    policy: Aligned | None = None
    release: dict[str, Any] = field(default_factory=dict)
    let_out: aligned.LetOut | None = None
    asked: served.Asked | None = None
    spent: list[ledgers.Spent] = field(default_factory=list)
    lineage: str = ""

    def to_json(self) -> dict[str, Any]:
        """Seconds by phase, runs, gate, release, what was asked and answered, one row a ledger's group."""
        runs = {
            name: None if run is None else {
                "run": run.run_id, "seconds": round(run.seconds, 1), "rounds": run.specification.federation.rounds,
                "sealing": run.specification.sealing.kind.value, "epsilon": run.specification.privacy.epsilon,
            }
            for name, run in (("fine_tuning", self.tuned), ("reward", self.reward))
        }  # fmt: skip
        policy, let_out = self.policy, self.let_out
        gate = None if policy is None else {
            "passed": policy.verdict.passed, "failed": list(policy.verdict.failed),
            "win_rate": policy.figures.win_rate, "interval": list(policy.figures.interval), "kl": policy.figures.kl,
            "perplexity": policy.figures.perplexity and list(policy.figures.perplexity), "pairs": policy.pairs,
        }  # fmt: skip
        return {
            "seconds": round(self.seconds, 1),
            "phases": {name: round(value, 1) for name, value in self.phases.items()},
            "runs": runs,
            "gate": gate,
            "release": {name: str(value) for name, value in self.release.items()},
            "served": let_out and {"adapter": let_out.sha256, "aligned": let_out.aligned},
            "asked": None if self.asked is None else asdict(self.asked),
            "ledgers": [asdict(one) for one in self.spent],
            "lineage": self.lineage,
        }


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the demo is made of, and how much of it. base: for the policy; reward_base: embeds."""

    base: Path
    reward_base: Path
    records: Sequence[shards.Record]
    found: Sequence[comparisons.Snippet]
    held_out: int = 40
    snippets_each: int = 400
    pairs_each: int = 500
    judge_snippets: int = 600
    unused_snippets: int = 400
    unused_pairs: int = 50


def run(console: Console, output: Path, *, keep: bool = False) -> Result:
    """Everything; raises ConfideError when a part failed."""

    def say(text: str) -> None:
        console.print(f"[dim]{text}[/dim]", highlight=False)

    material = Material(
        base=assets.smollm2(say), reward_base=assets.minilm(say), records=assets.construction_faq(say),
        found=comparisons.snippets(say),
    )  # fmt: skip
    work = Path(tempfile.mkdtemp(prefix="confide-whole-"))
    try:
        return stages(material, work, output, say)
    finally:
        if keep:
            console.print(f"state folders and logs are kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def stages(material: Material, work: Path, output: Path, say: Say) -> Result:
    """One after the other. work: an empty folder; output: where the lineage page goes."""
    result, began, base, reward_base = Result(), time.monotonic(), material.base, material.reward_base
    phase = _phases(result)
    split = shards.split_by_category(material.records, nodes=len(NAMES), held_out=material.held_out)
    pairs = comparisons.split(
        material.found, NAMES, snippets_each=material.snippets_each, pairs_each=material.pairs_each,
        judge_snippets=material.judge_snippets, test_snippets=material.unused_snippets,
        test_pairs=material.unused_pairs, seed=7,
    )  # fmt: skip
    shared().prepare()
    say("one consortium: a root, a coordinator, an administrator, " + ", ".join(NAMES))
    federation = federated.consortium(work, base, reward_base, dict(split.shards), pairs)
    tuning = federated.tuning(federation, len(NAMES))
    reward = federated.reward(folder_digest(reward_base), len(NAMES))
    federated.allow(federation, [tuning, reward])
    phase("set up")
    with ProcessGroup() as processes:
        federation.start(processes)
        result.tuned = federated.train(federation, processes, tuning, base, say)
        phase("fine-tuning")
        result.reward = federated.train(federation, processes, reward, reward_base, say)
        phase("reward")
        result.release = federated.publish(federation, result.tuned, RELEASE)
    result.spent = ledgers.spent(federation)
    admin = load_member(federation.admin_folder)
    adapter = aligned.exported(result.tuned, base, work / "adapter")
    result.policy = aligned.aligned_policy(
        adapter, result.tuned, result.reward, base, reward_base, pairs, admin, work / "policy", say
    )
    result.let_out = aligned.let_out(result.policy, adapter, admin, RELEASE)
    phase("aligning and gate")
    result.asked = _served(work, base, reward_base, split, result.let_out, federation.root_public, say)
    phase("serving")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "lineage.html"
    write_atomic(path, page.render(lineage_of(result, base, reward_base, admin.name)).encode(), mode=0o644)
    result.lineage, result.seconds = str(path), time.monotonic() - began
    return result


def _phases(result: Result) -> Callable[[str], None]:
    began = time.monotonic()

    def phase(name: str) -> None:
        result.phases[name] = time.monotonic() - began - sum(result.phases.values())

    return phase


def _served(
    work: Path, base: Path, embedder: Path, split: shards.Split, let_out: aligned.LetOut, root: str, say: Say
) -> served.Asked:
    organizations = NAMES[:2]
    documents, state = work / "library", work / "serving"
    questions = served.library(documents, Embedder(embedder), {n: split.shards[n] for n in organizations}, say)
    served.point(state, base, let_out, root)
    keys = {name: served.key(state, name) for name in organizations}
    with ProcessGroup() as processes:
        url = served.start(processes, state, base, documents, embedder, work / "endpoint.log")
        say(f"the endpoint answers at {url}; OpenAI's client asks")
        asked = served.ask(url, keys, organizations[0], questions[organizations[0]])
    if not asked.others_refused:
        raise TrainingError("a key of one organization read another one's documents")
    return asked


def lineage_of(result: Result, base: Path, reward_base: Path, administrator: str) -> Lineage:
    """What the page shows of a finished demo."""
    tuned, reward, policy, let_out, asked = result.tuned, result.reward, result.policy, result.let_out, result.asked
    assert tuned and reward and policy and let_out and asked  # noqa: S101 - every stage is done
    verdict = "passed" if policy.verdict.passed else "did not pass: " + "; ".join(policy.verdict.failed)
    organizations, (low, high) = ", ".join(NAMES), policy.figures.interval
    gate_facts = [
        (
            "win rate",
            f"{policy.figures.win_rate:.2f}, 95 % {low:.2f} to {high:.2f}",
        ),
        ("perplexity", _perplexity(policy.figures.perplexity)),
        ("verdict", verdict),
        ("evidence", f"signed by {administrator}"),
    ]
    out_facts = [("adapter", let_out.sha256[:24]), ("signed by", administrator)]
    if not let_out.aligned:
        out_facts.append(("aligned policy", "held back by the gate; the release before it answers"))
    rows = [
        [
            Step("base model", "base", "SmolLM2-135M-Instruct", [("sha-256", folder_digest(base)[:24])]),
            Step("sentence model", "base", "all-MiniLM-L6-v2", [("sha-256", folder_digest(reward_base)[:24])]),
        ],
        [
            _run_step("fine-tuning", "Federated fine-tuning", tuned, organizations, "each record", ["base model"]),
            _run_step("reward", "Federated reward", reward, organizations, "each comparison", ["sentence model"]),
        ],
        [
            Step(
                "release", "release", f"{RELEASE}/1",
                [("model", str(tuned.manifest["model_sha256"])[:24]), ("status", str(result.release.get("status", ""))),
                 ("signed by", administrator)],
                ["fine-tuning"],
            ),
            Step(
                "aligned policy", "policy", "Aligned by the private reward",
                [("method", f"DPO on {policy.pairs} pairs that the reward ranked, public prompts"),
                 ("privacy", "nothing more is spent: a function of what was released")],
                ["fine-tuning", "reward"],
            ),
        ],
        [Step("gate", "gate", "Is it better, and has it forgotten nothing?", gate_facts, ["aligned policy", "release"],
              policy.verdict.passed)],
        [
            Step("endpoint", "served", f"Alias {RELEASE}", out_facts, ["gate" if let_out.aligned else "release"]),
            Step("documents", "documents", f"{NAMES[0]}/{served.COLLECTION}",
                 [("read by", f"keys of {NAMES[0]} only"), ("of another's key", "refused")]),
        ],
        [
            Step(
                "answer", "answer", "Asked by OpenAI's client",
                [("system fingerprint", asked.fingerprint), *((f"citation {n}", f"{one['title']} {one['url']}")
                                                             for n, one in enumerate(asked.citations, start=1))],
                ["endpoint", "documents"],
            )
        ],
    ]  # fmt: skip
    table = [
        {
            "organization": one.organization, "data": one.group, "protects": one.protects, "runs": str(one.runs),
            "epsilon": f"{one.epsilon:.2f} at delta {one.delta:g}",
            "ledger": f"{one.lines} lines, head {one.head[:12]}",
        }
        for one in result.spent
    ]  # fmt: skip
    notes = ["All on one machine is one trust domain: this root is a demo's, which production nodes refuse."]
    return Lineage(rows, table, asked.question, asked.base, asked.answer, asked.quoted, notes)


def _perplexity(found: tuple[float, float] | None) -> str:
    return "not known" if found is None else f"{found[0]:.1f} on general text; of the release {found[1]:.1f}"


def _run_step(key: str, title: str, run: FinishedRun, who: str, unit: str, made_from: list[str]) -> Step:
    privacy = run.specification.privacy
    return Step(
        key, "run", title,
        [("run", run.run_id[:16]), ("of", who),
         ("sealed", f"{run.specification.federation.rounds} rounds; the coordinator saw sums only"),
         ("private", f"{unit}: epsilon {privacy.epsilon:g}, delta {privacy.delta:g}"),
         ("model", str(run.manifest["model_sha256"])[:24])],
        made_from,
    )  # fmt: skip


def print_report(console: Console, result: Result) -> None:
    """What a person wants to know, in lines."""
    document = result.to_json()
    for name in ("runs", "gate", "served"):
        console.print(name, document[name], highlight=False)
    if result.asked is not None:
        console.print(f"asked: {result.asked.question}", highlight=False, markup=False)
        console.print(f"base: {result.asked.base}", highlight=False, markup=False)
        console.print(f"model: {result.asked.answer}", highlight=False, markup=False)
        console.print(f"documents: {result.asked.quoted}", highlight=False, markup=False)
    for one in result.spent:
        console.print(
            f"{one.organization:12} {one.group:12} epsilon {one.epsilon:.2f} ({one.protects})", highlight=False
        )
    console.print(f"lineage: {result.lineage}   {result.seconds:.0f} s", highlight=False)
