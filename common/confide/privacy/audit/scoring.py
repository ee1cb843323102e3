"""What a trained model says about canaries: their losses, and whether it writes them out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from confide.errors import DataError
from confide.methods.base import Method, mean_loss
from confide.models.chat_template import render
from confide.privacy.audit.canaries import PREFIX_TOKENS, CanarySet
from confide.privacy.audit.membership import MembershipAttack, attack_of
from confide.privacy.audit.one_run import OneRunBound, audit_scores, detectable_epsilon

_SCORED_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Verbatim continuations of canaries' first tokens, by greedy decoding. Left-out ones show what chance gives."""

    included: int
    included_extracted: int
    left_out: int
    left_out_extracted: int


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """An audit of one model. `contradicted` is the verdict on the claim; the rest is what it rests on."""

    claimed_epsilon: float | None
    claimed_delta: float | None
    bound: OneRunBound
    detectable_epsilon: float
    """What this many canaries could have shown at most: a small audit cannot refute a weak claim."""
    loss_attack: MembershipAttack
    calibrated_attack: MembershipAttack
    extraction: Extraction | None
    """None for methods that do not write text."""

    @property
    def contradicted(self) -> bool:
        """Whether the lower bound is above the claimed epsilon."""
        return self.claimed_epsilon is not None and self.bound.epsilon > self.claimed_epsilon

    def document(self) -> dict[str, Any]:
        """For reports: JSON types only."""
        return {**asdict(self), "contradicted": self.contradicted}


def canary_losses(method: Method, model: Any, canaries: CanarySet) -> NDArray[np.float64]:
    """Mean loss of each canary under the model, shape (canaries,)."""
    was_training = model.training
    model.eval()
    losses = [mean_loss(method, model, method.prepare([canary.fields]), 1) for canary in canaries.canaries]
    model.train(was_training)
    values = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("the model gives NaN for a canary; it is damaged, and its privacy cannot be audited")
    return values


def audit(
    canaries: CanarySet,
    *,
    base_losses: NDArray[np.float64],
    trained_losses: NDArray[np.float64],
    extraction: Extraction | None,
    claimed_epsilon: float | None,
    claimed_delta: float | None,
    confidence: float = 0.95,
) -> AuditResult:
    """Set what canaries show against the claim.

    base_losses, trained_losses: shape (canaries,), before and after training. Without a claim (no privacy) the bound is
    for delta 0 and nothing can be contradicted.
    """
    included = np.asarray([canary.included for canary in canaries.canaries])
    delta = claimed_delta or 0.0
    calibrated = base_losses - trained_losses
    return AuditResult(
        claimed_epsilon=claimed_epsilon,
        claimed_delta=claimed_delta,
        bound=audit_scores(calibrated, included.tolist(), delta=delta, confidence=confidence),
        detectable_epsilon=detectable_epsilon(included.size, delta=delta, confidence=confidence),
        loss_attack=attack_of(-trained_losses, included),
        calibrated_attack=attack_of(calibrated, included),
        extraction=extraction,
    )


@torch.no_grad()
def extract(model: Any, tokenizer: Any, canaries: CanarySet) -> Extraction:
    """Ask a causal language model to go on after the first PREFIX_TOKENS tokens of each canary's learned text."""
    model.eval()
    found = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for canary in canaries.canaries:
        text = canary.fields.get("completion") or canary.fields["text"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:_SCORED_TOKENS]
        total[canary.included] += 1
        found[canary.included] += len(ids) > PREFIX_TOKENS and _goes_on(model, _context(tokenizer, canary.fields), ids)
    return Extraction(
        included=total[True],
        included_extracted=found[True],
        left_out=total[False],
        left_out_extracted=found[False],
    )


def _context(tokenizer: Any, fields: dict[str, str]) -> list[int]:
    if "prompt" not in fields:
        return []
    if tokenizer.chat_template is None:
        ids: list[int] = tokenizer(fields["prompt"], add_special_tokens=False)["input_ids"]
        return ids
    turns = [{"role": "user", "content": fields["prompt"]}]
    text = render(tokenizer, turns, generate=True)
    rendered: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return rendered


def _goes_on(model: Any, context: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether greedy decoding after context and prefix writes the rest of `ids`: one forward pass decides."""
    device = next(model.parameters()).device
    row = torch.tensor([[*context, *ids]], device=device)
    best = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].argmax(-1)
    start = len(context) + PREFIX_TOKENS
    return bool((best[start - 1 : -1] == row[0, start:]).all())
