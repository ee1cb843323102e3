"""The sections of a run's specification: each field with its range, and what must hold within a section.

What must hold between sections is `specification`'s.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from confide.documents import StoredDocument
from confide.runs.budget import LARGEST_DELTA, LARGEST_EPSILON

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Model(StoredDocument):
    """The base model, which every node holds already. It never travels."""

    sha256: Sha256
    """Hash of the model's folder as `confide model add` printed it."""
    name: Name = "base"
    """For people; nodes go by the hash."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base. What is trained is always float32."""
    initial: Literal["pretrained", "random"] = "pretrained"
    """`random` trains from scratch: only the folder's configuration and tokenizer are used."""


class Adapter(StoredDocument):
    """Which parameters are trained: LoRA matrices (Hu et al. 2021); kind = "full": all; kind = "none": a head."""

    kind: Literal["lora", "full", "none"] = "lora"
    """"none": the base stays as it is, and only the head that the method brings is trained (reward)."""
    rank: int = Field(default=8, ge=1, le=512)
    alpha: Positive = 16.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of linear layers."""
    first_layer: int = Field(default=0, ge=0)
    """LoRA is put on layers first_layer, ..., last: the earlier ones stay as they are."""
    aggregation: Literal["average", "ffa", "rolora", "fedsvd", "fedsb"] = "average"
    """How A and B are aggregated. "average" is FedIT's baseline: mean A and mean B, which is not the mean of BA."""
    quantize_base: Literal["none", "4bit"] = "none"
    """QLoRA: a 4-bit base, on nodes with a GPU only."""


class Method(StoredDocument):
    """What is learned from a record."""

    name: Literal[
        "sft",
        "causal_lm",
        "masked_lm",
        "classification",
        "contrastive",
        "in_context",
        "tokenizer",
        "reward",
        "dpo",
        "feedback",
    ] = "sft"
    max_length: int = Field(default=256, ge=8, le=131072)
    """Tokens. A longer text is cut (or packed, in pre-training)."""
    labels: tuple[str, ...] = ()
    """Classification: the label set, in order."""
    class_weights: Literal["none", "balanced"] = "none"
    """Classification: "balanced" weighs rare classes more, by each node's own counts. Not under privacy."""
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """masked_lm (Devlin et al. 2019)."""
    temperature: Positive = 0.05
    """contrastive: of the softmax over similarities."""
    shots: int = Field(default=4, ge=0, le=64)
    """in_context: examples put before each question."""
    shot_selection: Literal["random", "nearest"] = "random"
    """in_context: how they are chosen from the node's own training split."""
    prompt: str = ""
    """in_context: template with {input} and {output}; empty is the built-in one."""
    pooling: Literal["mean", "last"] = "mean"
    """reward: which of an answer's final hidden states make its feature."""
    beta: Positive = 0.1
    """dpo: how far the policy may move from the reference (Rafailov et al. 2023)."""
    preference_loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """dpo: "sigmoid" is DPO's own; "ipo" is Azar et al. 2023, which does not chase ever larger margins."""


class TokenRoles(StoredDocument):
    """Which special token has which part in the finished tokenizer; empty: none has it."""

    pad_token: str = "<pad>"
    eos_token: str = "<eos>"
    bos_token: str = ""
    cls_token: str = ""
    sep_token: str = ""
    mask_token: str = ""


class TokenizerSection(StoredDocument):
    """method "tokenizer": byte-level BPE learned from counts of pairs, docs/tokenizer.md."""

    vocabulary: int = Field(default=4096, ge=257, le=262144)
    """Tokens of the finished tokenizer: special ones, 256 bytes, and as many merges as there is room and evidence."""
    special_tokens: tuple[str, ...] = ("<pad>", "<eos>")
    """In order of their numbers, from 0."""
    roles: TokenRoles = TokenRoles()
    candidates: int = Field(default=65536, ge=65536, le=1 << 20)
    """Most pairs that are counted in a round: the length of an upload. The first round counts all pairs of bytes."""
    max_token_bytes: int = Field(default=32, ge=2, le=256)
    min_count: int = Field(default=2, ge=1)
    """Of a pair in all contributors' text together before it becomes a token. Under privacy the noise asks for more."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        special = self.special_tokens
        if len(set(special)) != len(special) or not all(re.fullmatch(r"[!-~]{2,64}", token) for token in special):
            raise ValueError(f"special_tokens are {special}; each has 2 to 64 visible ASCII characters and stands once")
        for role, token in self.roles:
            if token and token not in special:
                raise ValueError(f"roles.{role} is {token!r}, which is not among special_tokens {special}")
        if bool(self.roles.cls_token) != bool(self.roles.sep_token):
            raise ValueError("roles.cls_token and roles.sep_token frame a text together; name both or neither")
        if self.vocabulary <= 256 + len(special):
            raise ValueError(
                f"vocabulary is {self.vocabulary}; {len(special)} special tokens and 256 bytes leave no merge"
            )
        return self


class Training(StoredDocument):
    """The local step on every node."""

    local_steps: int = Field(ge=0, le=1_000_000)
    """Optimizer steps a round (H)."""
    batch_size: int = Field(ge=1, le=65536)
    """Records an optimizer step; under record-level privacy the expected size of a Poisson batch."""
    micro_batch_size: int = Field(default=8, ge=1, le=65536)
    """Records in memory at once; never changes the result beyond rounding."""
    learning_rate: Positive
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """0 turns clipping of the gradient of a step off. Not the clip of privacy."""
    schedule: Literal["constant", "cosine"] = "constant"
    """By global step over all rounds."""
    warmup_steps: int = Field(default=0, ge=0)
    keep_optimizer_state: bool = False
    """Carry the local optimizer's state from round to round, on the node."""
    gradient_checkpointing: bool = False
    compile: bool = False
    autocast: bool = False
    """bfloat16 autocast of the forward pass."""


class Outer(StoredDocument):
    """The coordinator's optimizer over the mean update: SGD with lr 1 is FedAvg (McMahan et al. 2017)."""

    name: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 1.0
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    """With lr 0.7 and momentum 0.9: DiLoCo (Douillard et al. 2023)."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: Positive = 1e-3
    """FedAdam's adaptivity (Reddi et al. 2021)."""


class Federation(StoredDocument):
    """Who takes part, how often, on which data."""

    rounds: int = Field(ge=1, le=100_000)
    data: Name
    """The name under which each node registered its data set."""
    nodes: tuple[Name, ...] = ()
    """The cohort by name; empty: every active node of the roster when the run starts."""
    min_cohort: int = Field(default=3, ge=1)
    """Fewest organizations in any sum."""
    weights: Literal["uniform", "examples"] = "uniform"
    max_examples: int = Field(default=1_000_000, ge=1)
    """weights = "examples": the count that weighs 1; larger counts weigh 1 too."""
    clip_norm: Positive | None = None
    """L2 norm to which a node scales its update down. Needed by sealing: it sets the common scale."""
    clip_schedule: Literal["constant", "learning_rate"] = "constant"
    """ "learning_rate": clip_norm is for a whole round at the full learning rate, and shrinks with it (schedule.py)."""
    outer: Outer = Outer()
    step_deadline_s: Positive | None = None
    """How long a node may take to train and upload; None: as long as the nodes' own measurements say (deadline.py)."""
    deadline_factor: float = Field(default=3.0, ge=1, le=100)
    """Without step_deadline_s: so many times what the slowest node measured for a round."""
    longest_deadline_s: Positive = 3600.0
    """Without step_deadline_s: never longer. A node that needs longer refuses the run."""
    exchange_deadline_s: Positive = 30.0
    """How long it may take to answer a small exchange."""
    grace_s: float = Field(default=0.0, ge=0.0, le=604800.0)
    """Before a round: how long an organization that accepted and is away is waited for. A sealed run whose sums have to
    be over whole blocks waits without end, whatever this says. Before the first round, where too few have answered:
    also whose node is not connected, ten minutes at least."""
    fragments: int = Field(default=1, ge=1, le=64)
    """Streaming DiLoCo: 1/fragments of the parameters are exchanged each round, in rotation."""
    warm_start_rounds: int = Field(default=0, ge=0)
    """The first so many rounds take warm_start_steps local steps each: near-synchronous training, as a warm start."""
    warm_start_steps: int = Field(default=1, ge=1)

    @property
    def deadline_limit_s(self) -> float:
        """The longest that a node may ever take to train and upload."""
        return self.longest_deadline_s if self.step_deadline_s is None else self.step_deadline_s


class SealingKind(StrEnum):
    """How updates travel. Closed: a transport that is neither would be no promise."""

    SEALED = "sealed"
    NONE = "none"
    """Readable by the coordinator."""


class Sealing(StoredDocument):
    """Secure aggregation, docs/sealing.md. Off only for research, and only where every node's policy allows it."""

    kind: SealingKind = Field(default=SealingKind.SEALED, strict=False)
    bits: Literal[4, 8, 12, 16] = 16
    """Of each sealed coordinate."""
    error_feedback: bool = False
    """Keep what rounding lost and add it to the next update."""
    colluding: int | None = Field(default=None, ge=0)
    """c: nodes that may collude with the coordinator; default a third of the others, at least 1."""
    max_missing: int | None = Field(default=None, ge=0)
    """d: members that may be missing when shares are revealed; default the largest possible."""
    slots_per_epoch: int = Field(default=16, ge=1, le=256)
    max_attempts: int = Field(default=2, ge=1, le=8)
    """Slots that may train on the same model."""
    differences: Literal["refused", "accepted"] = "refused"
    """accepted: a sum may lack any member, whose update the difference to another sum then shows. Each node's policy
    has to accept it too. Refused: every sum is over whole blocks of the roster."""
    block_colluding: int = Field(default=1, ge=1)
    """c_d: members of one block that may collude; a block has at least two more."""


class Privacy(StoredDocument):
    """Differential privacy, docs/privacy.md. The noise multiplier is calculated, never typed."""

    unit: Literal["none", "record", "user", "organization"] = "none"
    epsilon: float | None = None
    """Of the whole run, for each unit."""
    delta: float | None = None
    clip: Positive | None = None
    """L2 norm: of a record's or user's gradient, or of an organization's update."""
    user_key: str | None = None
    """unit = "user": the field of a record that names its user."""
    noise: Literal["own", "shared"] = "own"
    """Who adds it at unit "record" and "user". "own": each node all of it, before anything leaves. "shared": all nodes
    together, inside the sealed sum, which so holds less; every unit is in every step (docs/privacy.md)."""

    @property
    def shared(self) -> bool:
        """Whether no node adds enough noise by itself: the sum over enough honest ones holds it."""
        return self.unit == "organization" or self.noise == "shared"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given: dict[str, object] = {"epsilon": self.epsilon, "delta": self.delta, "clip": self.clip}
        if self.unit == "none":
            given |= {"user_key": self.user_key, "noise": None if self.noise == "own" else self.noise}
            if any(value is not None for value in given.values()):
                raise ValueError('unit is "none", yet parameters of privacy are given; choose a unit or remove them')
            return self
        for name, value in given.items():
            if value is None:
                raise ValueError(f'unit is "{self.unit}", which needs {name}')
        if not (self.epsilon is not None and 0 < self.epsilon <= LARGEST_EPSILON):
            raise ValueError(
                f"epsilon is {self.epsilon}; it must be above 0 and at most {LARGEST_EPSILON:g} (1 is strong, 8 weak)"
            )
        if not (self.delta is not None and 0 < self.delta < LARGEST_DELTA):
            raise ValueError(f"delta is {self.delta}; it must be above 0 and well below 1/records, for example 1e-5")
        if (self.unit == "user") != (self.user_key is not None):
            raise ValueError('user_key goes with unit = "user", and only with it')
        if self.noise == "shared" and self.unit == "organization":
            raise ValueError('noise is "shared", which unit "organization" always is; leave it out')
        return self
