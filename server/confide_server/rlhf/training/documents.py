"""The RLHF specification: one validated document that says how a policy is optimised, hashed like a run's.

>>> parse_toml(EXAMPLE).digest == parse_toml(EXAMPLE + "\\n").digest
True
"""

import tomllib
from typing import Annotated, Literal, Self

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import SpecificationError
from confide.runs.sections import Name, Positive, Sha256
from pydantic import Field, ValidationError, model_validator

METHODS_OF_PAIRS = frozenset({"dpo", "kto"})
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class RlhfBase(StoredDocument):
    """What the policy starts from, and is measured against."""

    sha256: Sha256
    """Of the base model's folder."""
    adapter: Digest = ""
    """SHA-256 of the adapter that the run starts from; empty: the base alone."""


class Sources(StoredDocument):
    """What is learned from, by hash."""

    snapshot: Digest = ""
    """dpo, kto: the preference snapshot."""
    prompts: Digest = ""
    """grpo, rloo: the prompt set."""


class Rule(StoredDocument):
    """One verifiable rule: an installed name with its argument, never code."""

    name: Literal["exact_match", "regular_expression", "length"]
    argument: str = ""
    """exact_match: the answer. regular_expression: the pattern. length: the number of characters aimed at."""
    weight: float = Field(default=1.0, allow_inf_nan=False)


class RewardSource(StoredDocument):
    """grpo, rloo: where rewards come from."""

    kind: Literal["none", "model", "rules"] = "none"
    model: Digest = ""
    """SHA-256 of the reward model's head."""
    rules: tuple[Rule, ...] = ()


class RlhfTraining(StoredDocument):
    """The optimisation."""

    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=4, ge=1, le=4096)
    learning_rate: Positive = 1e-4
    beta: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """How strongly the policy is held to its reference."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """dpo."""
    rank: int = Field(default=8, ge=1, le=512)
    alpha: Positive = 16.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    first_layer: int = Field(default=0, ge=0)
    max_prompt_tokens: int = Field(default=256, ge=8)
    max_new_tokens: int = Field(default=64, ge=1)
    generations: int = Field(default=4, ge=2, le=256)
    """grpo, rloo: answers to each prompt."""
    temperature: Positive = 1.0
    save_steps: int = Field(default=50, ge=1)
    cpu: bool = True


class Limits(StoredDocument):
    """Where a run stops by itself, with a name."""

    kl: Positive = 20.0
    """Nats between policy and reference."""
    clipped_share: float = Field(default=1.0, gt=0, le=1)
    """Of answers that the token cap cuts off."""
    equal_batches: int = Field(default=3, ge=1)
    """Batches in a row in which all rewards of each prompt are equal."""
    reward_deadline_s: Positive = 600.0


class RlhfSpecification(StoredDocument):
    """A whole optimisation."""

    version: Literal[1]
    name: Name
    seed: int = Field(default=0, ge=0, lt=2**31)
    method: Literal["dpo", "kto", "grpo", "rloo"]
    base: RlhfBase
    data: Sources = Sources()
    reward: RewardSource = RewardSource()
    training: RlhfTraining
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method in METHODS_OF_PAIRS:
            if not self.data.snapshot or self.data.prompts or self.reward.kind != "none":
                raise ValueError(
                    f'method "{self.method}" learns from data.snapshot, and from no prompts or reward beside it'
                )
        else:
            if self.data.snapshot or not self.data.prompts or self.reward.kind == "none":
                raise ValueError(f'method "{self.method}" needs data.prompts and a reward, and no snapshot')
            if self.training.batch_size % self.training.generations:
                raise ValueError(
                    f"training.batch_size is {self.training.batch_size}, which training.generations = "
                    f"{self.training.generations} does not divide; whole groups are compared"
                )
        if (self.reward.kind == "model") != bool(self.reward.model) or (self.reward.kind == "rules") != bool(
            self.reward.rules
        ):
            raise ValueError('reward.kind "model" goes with reward.model, "rules" with reward.rules')
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, hex."""
        return canonical.digest(self.model_dump(mode="json"))


def parse_toml(text: str, source: str = "the RLHF specification") -> RlhfSpecification:
    """Raises SpecificationError naming each field, value and remedy."""
    try:
        return RlhfSpecification.model_validate_json(canonical.encode(tomllib.loads(text)))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'specification'}: {item['msg'].removeprefix('Value error, ')} "
            f"(got {str(item.get('input'))[:60]!r})"
            for item in error.errors()[:6]
        )
        raise SpecificationError(f"{source} is not valid: {faults}") from error
    except (tomllib.TOMLDecodeError, ValueError, TypeError, RecursionError) as error:
        raise SpecificationError(f"{source} is not valid: {error}") from error


EXAMPLE = """
version = 1
name = "polite"
method = "dpo"

[base]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"

[data]
snapshot = "1111111111111111111111111111111111111111111111111111111111111111"

[training]
steps = 20
"""
