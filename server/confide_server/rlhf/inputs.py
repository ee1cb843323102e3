"""What an RLHF specification names by hash, found in the files that were given; anything else is refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import DataError, ModelError
from confide.files import sha256_file
from confide.models.store import folder_digest

from confide_server.rlhf.candidates import adapter_digest, prompt_set
from confide_server.rlhf.documents import METHODS_OF_PAIRS, RlhfSpecification
from confide_server.rlhf.reward_model import RewardModel
from confide_server.rlhf.rules import rules_reward
from confide_server.rlhf.snapshots import Snapshot
from confide_server.rlhf.trl_adapter import RewardFunction

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files and folders, as a command line names them."""

    base: Path
    snapshot: Path | None = None
    prompts: Path | None = None
    adapter: Path | None = None
    reward_model: Path | None = None
    reward_base: Path | None = None

    def of(self, specification: RlhfSpecification) -> tuple[Records, RewardFunction | None]:
        """(records, reward). Raises DataError or ModelError for what is missing, or is not what the hash says."""
        _same("the base model", folder_digest(self.base), specification.base.sha256)
        _same("the adapter that the run starts from", adapter_digest(self.adapter), specification.base.adapter)
        if specification.method in METHODS_OF_PAIRS:
            if self.snapshot is None:
                raise DataError(f"method {specification.method!r} learns from a snapshot: --snapshot FILE")
            snapshot = Snapshot.read(self.snapshot)
            _same("the snapshot", snapshot.sha256, specification.data.snapshot)
            return (snapshot.preferences() if specification.method == "dpo" else snapshot.unpaired()), None
        if self.prompts is None:
            raise DataError(f"method {specification.method!r} answers prompts: --prompts FILE")
        asked, digest = prompt_set(self.prompts)
        _same("the prompt set", digest, specification.data.prompts)
        records = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in asked]
        return records, self._reward(specification)

    def _reward(self, specification: RlhfSpecification) -> RewardFunction:
        if specification.reward.kind == "rules":
            return rules_reward(specification.reward.rules)
        if self.reward_model is None:
            raise DataError("reward.kind is model: name its folder with --reward-model")
        _same(
            "the reward model", sha256_file(self.reward_model / "reward_head.safetensors"), specification.reward.model
        )
        base = self.reward_base or self.base
        model = RewardModel(self.reward_model, base, folder_digest(base))
        return lambda prompts, answers: model.scores(prompts, [answer or " " for answer in answers]).tolist()


def _same(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelError(
            f"{what} has the hash {found[:16] or 'none'}, and the specification names {wanted[:16] or 'none'}; give "
            "the one that is named, or write another specification"
        )
