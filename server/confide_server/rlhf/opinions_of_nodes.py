"""Nodes' feedback, on the coordinator's side: the run that asks, and what its answer says to best-of-n and the gate.

text = question(candidates, base_sha256, data="preferences", purpose="scores", source="...", privacy=(8.0, 1e-5))
verdict = federated_gate(read_opinions(folder), candidate_sha256, baseline_sha256)
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import DataError, ModelError
from confide.models.opinions import OPINIONS
from confide.runs.feedback import FeedbackSection
from confide.runs.specification import Specification, parse_canonical, parse_document
from confide.runs.toml_text import to_toml

from confide_server.rlhf.annotation.preferences import Candidate

_Z95 = 1.96


def question(
    candidates: Sequence[Candidate], base_sha256: str, *, data: str, purpose: str, source: str,
    privacy: tuple[float, float] | None, candidate: str = "", baseline: str = "", min_cohort: int = 3,
    max_length: int = 256, released: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """TOML of the run. base_sha256: of the judges' base. privacy: (epsilon, delta) of each organization; None: without.

    candidate, baseline: adapter hashes of the gate's two sides among the candidates; "" is the base alone. released:
    the hashes by which releases know both models (gate_subject). Raises DataError for sides without answers to the same
    prompts, SpecificationError for what cannot be asked.
    """
    if purpose == "gate":
        section = _gate_section(candidates, candidate, baseline, released or {})
    else:
        section = {"prompts": [one.prompt for one in candidates], "answers": [one.text for one in candidates]}
    asked = FeedbackSection.model_validate_json(canonical.encode({"purpose": purpose, "source": source, **section}))
    document: dict[str, Any] = {
        "version": 1, "name": f"feedback-{purpose}", "model": {"sha256": base_sha256, "name": "judges"},
        "method": {"name": "feedback", "max_length": max_length}, "feedback": asked.model_dump(mode="json"),
        "federation": {"rounds": 1, "data": data, "clip_norm": asked.longest, "min_cohort": min_cohort},
        "sealing": {"max_attempts": 1},
    }  # fmt: skip
    if privacy is not None:
        epsilon, delta = privacy
        document["privacy"] = {"unit": "organization", "epsilon": epsilon, "delta": delta, "clip": asked.longest}
    return to_toml(parse_document(document, "the feedback run"))


def question_of_pairs(
    manifest: Mapping[str, Any], *, data: str, privacy: tuple[float, float] | None, min_cohort: int = 3
) -> str:
    """TOML of the run that holds a run's model against its base on each node's own comparisons.

    manifest: of the candidate's export. Raises ModelError for a run without LoRA of a causal language model.
    """
    run = parse_canonical(canonical.encode(manifest["specification"]), "the manifest's specification")
    if run.adapter.kind != "lora" or run.method.name not in ("sft", "causal_lm", "dpo"):
        raise ModelError(
            f'the candidate\'s run has method "{run.method.name}" and adapter.kind "{run.adapter.kind}"; nodes hold a '
            "language model with LoRA against its base"
        )
    asked = FeedbackSection(purpose="pairs", candidate_sha256=str(manifest["model_sha256"]))
    document: dict[str, Any] = {
        "version": 1, "name": "feedback-pairs", "seed": run.seed, "model": run.model.model_dump(mode="json"),
        "adapter": run.adapter.model_dump(mode="json"), "feedback": asked.model_dump(mode="json"),
        "method": {"name": "feedback", "max_length": run.method.max_length}, "sealing": {"max_attempts": 1},
        "federation": {"rounds": 1, "data": data, "clip_norm": asked.longest, "min_cohort": min_cohort},
    }  # fmt: skip
    if privacy is not None:
        epsilon, delta = privacy
        document["privacy"] = {"unit": "organization", "epsilon": epsilon, "delta": delta, "clip": asked.longest}
    return to_toml(parse_document(document, "the feedback run"))


def _gate_section(
    candidates: Sequence[Candidate], candidate: str, baseline: str, released: Mapping[str, str]
) -> dict[str, Any]:
    ours = [one for one in candidates if one.adapter == candidate]
    theirs: dict[str, list[str]] = {}
    for one in candidates:
        if one.adapter == baseline and candidate != baseline:
            theirs.setdefault(one.prompt, []).append(one.text)
    pairs = [(one.prompt, one.text, theirs[one.prompt].pop(0)) for one in ours if theirs.get(one.prompt)]
    if not pairs:
        raise DataError(
            f"no prompt has an answer of both {candidate[:12] or 'the base'} and {baseline[:12] or 'the base'}; make "
            "them with `confide rlhf candidates`"
        )
    return {
        "prompts": [prompt for prompt, _, _ in pairs], "answers": [text for _, text, _ in pairs],
        "against": [text for _, _, text in pairs],
        "candidate_sha256": released.get("model_sha256", candidate),
        "baseline_sha256": released.get("baseline_sha256", baseline),
    }  # fmt: skip


def read_opinions(folder: Path) -> dict[str, Any]:
    """What `confide run export` of a feedback run wrote, with how wide its noise is. Raises ModelError."""
    try:
        found: dict[str, Any] = json.loads((folder / OPINIONS).read_bytes())
        manifest = json.loads((folder / "manifest.json").read_bytes())
        specification = parse_canonical(canonical.encode(manifest["specification"]))
        contributors = len(manifest["rounds"][-1]["contributors"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{folder} holds no opinions of nodes: {error}; export a feedback run") from error
    if specification.digest != found.get("specification_sha256"):
        raise ModelError(f"the opinions in {folder} are of another run than its manifest; export it again")
    return found | {"organizations": contributors, "half_width": half_width(specification, contributors)}


def half_width(specification: Specification, organizations: int) -> float:
    """Of the win rate's 95 % interval, by the noise alone."""
    if specification.privacy.unit == "none" or not organizations:
        return 0.0
    from confide.privacy.organization import slot_noise

    noise = slot_noise(specification, specification.feedback.numbers, members=organizations)
    return _Z95 * math.sqrt(organizations * noise.variance) * noise.run.step / organizations


def preferred(opinions: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows {prompt, chosen, rejected}: of each prompt's answers those with the highest and the lowest mean score.

    A function of what was opened: it costs no further privacy. Raises DataError where no prompt has two answers.
    """
    by_prompt: dict[str, list[tuple[float, str]]] = {}
    for row in opinions.get("scores", ()):
        by_prompt.setdefault(row["prompt"], []).append((float(row["score"]), row["answer"]))
    ranked = {prompt: sorted(found) for prompt, found in by_prompt.items() if len(found) > 1}
    rows = [
        {"prompt": prompt, "chosen": found[-1][1], "rejected": found[0][1]}
        for prompt, found in ranked.items()
        if found[-1][0] > found[0][0]
    ]
    if not rows:
        raise DataError("no prompt has two answers with different scores; ask about several answers a prompt")
    return rows


def check_subject(opinions: Mapping[str, Any], candidate: str, baseline: str) -> None:
    """Raise ModelError OPINIONS_OF_ANOTHER_MODEL unless the nodes judged exactly this candidate and baseline."""
    for what, wanted in (("candidate_sha256", candidate), ("baseline_sha256", baseline)):
        found = str(opinions.get(what))
        if found != wanted:
            raise ModelError(
                f"OPINIONS_OF_ANOTHER_MODEL: nodes judged the {what.removesuffix('_sha256')} {found[:16] or 'base'}, "
                f"and this is {wanted[:16] or 'the base'}; ask about this one"
            )


def faults(opinions: Mapping[str, Any], *, win_rate: float = 0.5, below: float = 0.25) -> list[str]:
    """What the nodes' opinions do not bear, in words; none: they pass. A gate that cannot tell does not pass.

    below: largest share of organizations at which the candidate may win less often than the run's threshold.
    """
    gate, half = opinions["gate"], float(opinions["half_width"])
    found = []
    if not gate["win_rate"] - half > win_rate:
        found.append(
            f"nodes' win rate {gate['win_rate']:.3f}, known to within {half:.3f}: its lower end is not above "
            f"{win_rate:g}"
        )
    if not gate["organizations_below"] <= below:
        found.append(f"at {gate['organizations_below']:.0%} of the organizations the candidate wins too seldom")
    return found
