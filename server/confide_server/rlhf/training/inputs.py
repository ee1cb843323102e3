"""What an RLHF specification names by hash, found in the files that were given; anything else is refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import DataError, ModelError
from confide.files import sha256_file
from confide.methods.preference import Turns, turns_of
from confide.models.architecture import load_tokenizer
from confide.models.store import folder_digest

from confide_server.rlhf.annotation.snapshots import Snapshot, unpaired
from confide_server.rlhf.candidates import adapter_digest, prompt_set
from confide_server.rlhf.reward_model import RewardModel
from confide_server.rlhf.training.documents import METHODS_OF_PAIRS, RlhfSpecification
from confide_server.rlhf.training.rules import rules_reward
from confide_server.rlhf.training.trl_adapter import RewardFunction

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
            rows = snapshot.preferences()
            if self._converses and all(row.get("prompt") or not isinstance(row["chosen"], str) for row in rows):
                rows = [_conversation(row) for row in rows]
            return (rows if specification.method == "dpo" else unpaired(rows)), None
        if self.prompts is None:
            raise DataError(f"method {specification.method!r} answers prompts: --prompts FILE")
        asked, digest = prompt_set(self.prompts)
        _same("the prompt set", digest, specification.data.prompts)
        records = [{"prompt": _asked(prompt) if self._converses else prompt} for prompt in asked]
        return records, self._reward(specification)

    @property
    def _converses(self) -> bool:
        """Whether the base has a chat template, in which it is asked and served, and has to be trained."""
        return load_tokenizer(self.base).chat_template is not None

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


def _asked(prompt: str) -> Turns:
    return [{"role": "user", "content": prompt}]


def _conversation(row: Mapping[str, Any]) -> dict[str, Turns]:
    """A preference in TRL's conversational form, to which it applies the chat template; to plain texts it does not."""
    prompt, *answers = turns_of(row.get("prompt"), row["chosen"], row["rejected"])
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _same(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelError(
            f"{what} has the hash {found[:16] or 'none'}, and the specification names {wanted[:16] or 'none'}; give "
            "the one that is named, or write another specification"
        )
