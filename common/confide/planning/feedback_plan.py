"""What a feedback run can tell, said before anybody answers: with few organizations the noise decides, not they."""

import math

from confide.privacy.organization import OrganizationPlan
from confide.runs.specification import Specification

_Z95 = 1.96


def describe_question(specification: Specification) -> str:
    """What is asked, in a sentence."""
    asked = specification.feedback
    if asked.purpose == "pairs":
        return (
            f"the candidate {asked.candidate_sha256[:16]} is held against its base on each node's own comparisons; "
            "three numbers leave each node, inside one sealed sum"
        )
    if asked.purpose == "gate":
        return (
            f"{len(asked.answers)} answers of a candidate are judged against a baseline's; three numbers leave each "
            f"node, inside one sealed sum; prompts: {asked.source}"
        )
    return (
        f"{len(asked.answers)} public answers are judged; a number between -1 and 1 for each leaves each node, inside "
        f"one sealed sum; prompts: {asked.source}"
    )


def question_lines(specification: Specification, nodes: int) -> list[str]:
    """For `confide run plan`."""
    clip, longest = specification.federation.clip_norm, specification.feedback.longest
    lines = [
        f"feedback, asked once of {nodes} nodes (never fewer than {specification.federation.min_cohort} in the sum)",
        describe_question(specification),
        f"base {specification.model.name} ({specification.model.sha256[:16]}); by each node's comparisons "
        f"{specification.federation.data!r}, or a reward model of its own; a node's policy needs [feedback]",
        "what was answered once is refused in any later run; best-of-n, pairs and training on the opened sum cost "
        "nothing more",
    ]
    if clip is not None and clip < longest * (1 - 1e-6):
        lines.append(f"WARNING: clip_norm {clip:g} shortens opinions, which are up to {longest:.4g} long")
    return lines


def noise_of_mean(plan: OrganizationPlan) -> float:
    """Standard deviation of each number's mean over the organizations, when all of them answer."""
    slot = plan.slot
    return math.sqrt(slot.members * slot.variance) * slot.run.step / slot.members


def describe_certainty(specification: Specification, plan: OrganizationPlan) -> tuple[list[str], list[str]]:
    """(lines, warnings); public, as they depend on no data."""
    half = _Z95 * noise_of_mean(plan)
    gate = specification.feedback.purpose != "scores"
    most = 0.5 if gate else 1.0
    what = "the win rate" if gate else "each answer's mean score"
    lines = [
        f"privacy of each organization's opinion: spend epsilon {plan.epsilon:.3f} at delta {plan.delta:g}; beside "
        f"other runs of the same group it takes {plan.epsilon_beside_others:.3f}; with fewer than "
        f"{plan.slot.least_survivors} in the sum it is not opened (NOISE_INSUFFICIENT)",
        f"noise: {what} will be known to within {half:.2g} (95 %), where {most:g} from the middle is all there is",
    ]
    if half < most:
        return lines, []
    wanted = math.ceil(plan.slot.members * half / (most / 2))
    return lines, [
        f"THE {'GATE' if gate else 'SUM'} CANNOT DECIDE: with {plan.slot.members} organizations the noise is as large "
        f"as anything that they could say together, so it would {'never pass' if gate else 'rank by chance'}. About "
        f"{wanted} organizations are needed at this epsilon, or a larger one"
    ]
