"""From a private reward head to a policy: best-of-n on public prompts, DPO, and the gate. All of it post-processing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide.identity.keys import SigningKey
from confide_server.rlhf import best_of_n, gate
from confide_server.rlhf.policy import Policy, Sampling
from confide_server.rlhf.reward_model import FeatureReader
from confide_server.rlhf.training import trl_adapter
from confide_server.rlhf.training.documents import RlhfSpecification
from numpy.typing import NDArray

from confide_simulations.rlhf import prompts

ANSWERS, PAIRS_EACH, NEW_TOKENS = 8, 2, 20
"""Best against worst of eight and second best against second worst."""
PROMPTS, STEPS = 40, 20
"""Public prompts of training, all there are; in batches of four pairs each pair is seen once."""
GATE_PROMPTS, GATE_ANSWERS = 64, 4
"""Of about 0.25 standard deviation each: the interval is then about 0.06 to either side, so that 0.57 passes."""


@dataclass(frozen=True)
class Head:
    """A head over a loaded reader of features: what RewardModel is, without a folder."""

    reader: FeatureReader
    weight: NDArray[np.float64]

    def scores(self, asked: Any, answers: Any) -> NDArray[np.float64]:
        """(N,); the reward is of the answer by itself, as the snippets were rated."""
        return self.reader.of(["" for _ in answers], list(answers)).astype(np.float64) @ self.weight


@dataclass(frozen=True)
class Aligned:
    """figures and evidence of the gate; pairs: how many DPO learned from."""

    figures: gate.Figures
    verdict: gate.Verdict
    evidence: bytes
    pairs: int
    stopped: str
    rewards: tuple[float, float]
    """Mean of best and of worst answers in training, by the private reward."""
    adapter: Path
    """Of the candidate."""


def align(
    base: Path, base_sha256: str, reward: Head, judge: Head, folder: Path, *, lineage: dict[str, Any], steps: int,
    count: int, say: Callable[[str], None], seed: int = 7, gate_prompts: int = GATE_PROMPTS,
    adapter: Path | None = None, signer: SigningKey | None = None,
) -> Aligned:  # fmt: skip
    """count: of training prompts. gate_prompts: fewer than gate.Thresholds().prompts never pass.

    adapter: what is aligned, and what the gate compares with; None: the base. signer: of the gate's evidence; None: a
    key made for it.
    """
    best_of_n.check_public("public")
    asked, gated = prompts.training(count), prompts.gate(gate_prompts)
    gate.check_no_leak(asked, gated)
    policy = Policy(base, adapter=adapter)
    say(f"the base writes {ANSWERS} answers to each of {len(asked)} public prompts; the private reward ranks them")
    drawn = policy.sample(
        asked, count=ANSWERS, sampling=Sampling(max_new_tokens=NEW_TOKENS, temperature=1.0, seed=seed)
    )
    ranking = best_of_n.ranked(drawn, reward)
    pairs = best_of_n.pairs(ranking, each=PAIRS_EACH)
    say(f"DPO on {len(pairs)} pairs of better and worse answers, {steps} steps")
    specification = _specification(base_sha256, policy, pairs, steps, seed)
    trained = trl_adapter.train(
        specification, base=base, folder=folder / "dpo",
        records=[_conversation(pair) for pair in pairs], adapter=adapter,
    )  # fmt: skip
    say("the gate: both models answer prompts that were never trained on, and a judge that nobody trained on decides")
    candidate = Policy(base, adapter=trained.adapter)
    sides = []
    for number, model in enumerate((candidate, policy), start=1):
        sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=1.0, seed=seed + number)
        drawn = model.sample(gated, count=GATE_ANSWERS, sampling=sampling)
        sides.append([[one.text for one in group] for group in drawn])
    figures = gate.measure(
        candidate, policy, gate.RewardJudge(judge), gated, (sides[0], sides[1]), general=prompts.GENERAL,
        tokens=policy.counted, seed=seed,
    )  # fmt: skip
    verdict = gate.decide(figures, gate.Thresholds())
    evidence = gate.evidence_of(
        figures,
        gate.Thresholds(),
        verdict,
        lineage={**lineage, "specification": specification.digest},
        made_at=time.time(),
    )
    best = float(np.mean([group[0][0] for group in ranking]))
    worst = float(np.mean([group[-1][0] for group in ranking]))
    signed = gate.sign_evidence(evidence, signer or SigningKey.generate())
    return Aligned(figures, verdict, signed, len(pairs), trained.stopped or "", (best, worst), trained.adapter)


def _conversation(pair: best_of_n.SyntheticPair) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": pair.prompt}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def _specification(
    base_sha256: str, policy: Policy, pairs: list[best_of_n.SyntheticPair], steps: int, seed: int
) -> RlhfSpecification:
    from confide import canonical

    layers = int(policy.model.config.get_text_config().num_hidden_layers)
    snapshot = canonical.digest([[pair.prompt, pair.chosen, pair.rejected] for pair in pairs])
    document = {
        "version": 1, "name": "demo", "method": "dpo", "seed": seed, "base": {"sha256": base_sha256},
        "data": {"snapshot": snapshot},
        "training": {
            "steps": steps, "batch_size": 4, "learning_rate": 5e-4, "beta": 0.1, "rank": 8, "alpha": 16.0,
            "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], "first_layer": round(0.6 * layers),
            "max_prompt_tokens": 64, "max_new_tokens": NEW_TOKENS + 4, "save_steps": 1000,
        },
    }  # fmt: skip
    return RlhfSpecification.model_validate_json(canonical.encode(document))
