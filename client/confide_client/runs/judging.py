"""Whether this node has something to judge public answers with: asked before a feedback run is accepted."""

from collections.abc import Collection
from pathlib import Path

from confide.errors import ModelError
from confide.runs.fields import check_names
from confide.runs.specification import Specification


def check_judge(specification: Specification, judge: str, fields: Collection[str]) -> None:
    """judge: folder of the node's own reward model, or "". fields: of the data set.

    Raises ModelError REWARD_OF_ANOTHER_BASE for a judge of another base than the run names: its scores would mean
    nothing, and nobody would see it. Raises DataError for a data set without comparisons where there is no judge.
    """
    if not judge:
        check_names(specification.method.name, fields)
        return
    from confide.models.reward_folder import read_reward

    document, _ = read_reward(Path(judge))
    if document.adapter_sha256:
        raise ModelError(
            "JUDGE_WITH_ADAPTER: this node's judge reads through an adapter, and feedback is judged on the base alone; "
            'name a reward model that was trained with adapter.kind = "none"'
        )
    if document.base_sha256 != specification.model.sha256:
        raise ModelError(
            f"REWARD_OF_ANOTHER_BASE: this node judges with a reward model of another base than "
            f"{specification.model.sha256[:16]}, which the run names. Name the base that the nodes' judges have"
        )
