"""The run specification: one validated document that both sides parse, hash and sign over.

An administrator writes TOML; it is parsed once into frozen models, and everything after that uses the models and
their canonical bytes. Unknown fields, versions and names are refused, never guessed.

>>> spec = parse_toml(EXAMPLE)
>>> spec.federation.rounds, len(spec.digest)
(3, 64)
>>> parse_canonical(spec.canonical_bytes()) == spec
True
"""

import functools
import hashlib
import tomllib
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from confide import canonical
from confide.documents import StoredDocument, digest_of
from confide.errors import SpecificationError
from confide.runs.feedback import FeedbackSection
from confide.runs.sections import (
    Adapter,
    Federation,
    Method,
    Model,
    Name,
    Outer,
    Privacy,
    Sealing,
    SealingKind,
    TokenizerSection,
    Training,
)

NO_MODEL = Model(sha256=hashlib.sha256(b"").hexdigest(), name="none")
"""The base model of a run that has none: a tokenizer comes before the model."""
_COUNT_ONCE = Training(local_steps=1, batch_size=1, learning_rate=1.0)


class Specification(StoredDocument):
    """A whole run. Two runs with equal `digest` ask every node for the same work."""

    version: Literal[1]
    name: Name
    seed: int = Field(default=0, ge=0, lt=2**63)
    reproducible: bool = False
    """Order, dropout and masked positions follow from `seed`, which everybody knows, instead of from a secret of each
    node. For simulations: two sums over nearly the same members then differ by almost exactly one update."""
    model: Model
    """Left out by method "tokenizer", as is `training`."""
    adapter: Adapter = Adapter()
    method: Method = Method()
    tokenizer: TokenizerSection = TokenizerSection()
    feedback: FeedbackSection = FeedbackSection()
    training: Training
    federation: Federation
    sealing: Sealing = Sealing()
    privacy: Privacy = Privacy()

    @property
    def trains_model(self) -> bool:
        """Whether there is a base model at all, whose tensors travel; else a tokenizer's state does."""
        return self.method.name != "tokenizer"

    @property
    def asks_feedback(self) -> bool:
        """Whether nodes are asked for opinions, and nothing is trained."""
        return self.method.name == "feedback"

    @property
    def judges_pairs(self) -> bool:
        """Whether the candidate itself travels, and each node holds it against its base on its own comparisons."""
        return self.asks_feedback and self.feedback.purpose == "pairs"

    @model_validator(mode="after")
    def _feedback_alone(self) -> Self:
        if self.asks_feedback != self.feedback.asked:
            raise ValueError(
                f'method.name is "{self.method.name}" and feedback asks about {len(self.feedback.answers)} answers; '
                'the section feedback belongs to method "feedback", and to no other'
            )
        if not self.asks_feedback:
            return self
        if self.judges_pairs != (self.adapter.kind == "lora"):
            raise ValueError(
                f'adapter.kind is "{self.adapter.kind}" and feedback.purpose "{self.feedback.purpose}"; "pairs" takes '
                'the adapter of the candidate, "lora" as its run had it, and the others none'
            )
        fixed: dict[str, tuple[object, object]] = {}
        if not self.judges_pairs:
            fixed["adapter"] = (self.adapter, Adapter(kind="none"))
        fixed |= {"training": (self.training, _COUNT_ONCE), "federation.outer": (self.federation.outer, Outer())}
        fixed |= {"federation.rounds": (self.federation.rounds, 1)}
        fixed |= {"federation.weights": (self.federation.weights, "uniform")}
        fixed |= {"sealing.error_feedback": (self.sealing.error_feedback, False)}
        for name, (given, wanted) in fixed.items():
            if given != wanted:
                raise ValueError(f'{name} has no meaning for method "feedback", which asks once; leave it out')
        if self.privacy.unit not in ("none", "organization"):
            raise ValueError(
                f'privacy.unit is "{self.privacy.unit}"; what leaves is the opinion of an organization, which no '
                'single record bounds: use "organization"'
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_alone(self) -> Self:
        if self.trains_model:
            if self.model.sha256 == NO_MODEL.sha256:
                raise ValueError(f'method.name is "{self.method.name}", which needs a base model; set model.sha256')
            if self.tokenizer != TokenizerSection():
                raise ValueError(f'the section tokenizer belongs to method "tokenizer", not "{self.method.name}"')
            return self
        fixed = {"model": (self.model, NO_MODEL), "training": (self.training, _COUNT_ONCE)}
        fixed |= {"adapter": (self.adapter, Adapter()), "method": (self.method, Method(name="tokenizer"))}
        fixed |= {"federation.outer": (self.federation.outer, Outer())}
        for name, (given, wanted) in fixed.items():
            if given != wanted:
                raise ValueError(f'{name} has no meaning for method "tokenizer"; leave its settings out')
        if self.federation.weights != "uniform" or self.federation.fragments != 1 or self.sealing.error_feedback:
            raise ValueError(
                "a tokenizer's counts are added up as they are: federation.weights must be uniform, "
                "federation.fragments 1 and sealing.error_feedback false"
            )
        if self.privacy.unit == "organization":
            raise ValueError('privacy.unit is "organization", which method "tokenizer" does not do; use "record"')
        return self

    @property
    def refuses_differences(self) -> bool:
        """Whether sums have to be over whole blocks of members: sealed, and nothing else bounds what two sums tell."""
        sealing = self.sealing
        bounded = self.privacy.unit == "organization" or sealing.differences == "accepted"
        return self.sealed and not bounded

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sealed = self.sealed
        if self.privacy.noise == "shared":
            self._check_shared_noise()
        elif sealed and self.federation.clip_norm is None:
            raise ValueError("federation.clip_norm is missing; sealing needs it for the common scale, for example 10.0")
        if self.privacy.unit == "organization" and not sealed:
            raise ValueError('privacy.unit is "organization", which adds its noise inside sealing; use kind = "sealed"')
        if self.privacy.unit == "organization" and self.federation.clip_norm != self.privacy.clip:
            raise ValueError(
                f"federation.clip_norm is {self.federation.clip_norm} and privacy.clip is {self.privacy.clip}; under "
                "organization-level privacy both are the length to which an update is clipped: make them equal"
            )
        if self.federation.clip_schedule != "constant":
            self._check_clip_schedule()
        self._check_preferences()
        if self.privacy.unit == "organization" and self.federation.fragments > 1:
            raise ValueError(
                f"federation.fragments is {self.federation.fragments}; under organization-level privacy every round's "
                "noise covers the whole update, so it is exchanged as a whole: set it to 1"
            )
        if self.privacy.unit == "organization" and self.sealing.error_feedback:
            raise ValueError("error feedback is never used under organization-level privacy; switch it off")
        if self.privacy.unit != "none" and self.federation.weights == "examples":
            raise ValueError("example counts are private; under privacy weights must be uniform")
        if self.method.name == "in_context" and self.training.local_steps != 0:
            raise ValueError("in_context trains nothing: training.local_steps must be 0")
        if self.privacy.unit != "none" and self.training.local_steps == 0:
            raise ValueError(
                f'training.local_steps is 0 and privacy.unit is "{self.privacy.unit}"; a run that trains nothing '
                'reports metrics alone, and under privacy none leaves. Train, or evaluate with unit = "none"'
            )
        if self.privacy.unit != "none" and self.method.class_weights != "none":
            raise ValueError('method.class_weights come from counts of classes, which are private; use "none"')
        if self.method.name == "classification" and len(self.method.labels) < 2:
            raise ValueError("classification needs method.labels with at least two labels")
        if self.federation.warm_start_rounds:
            if self.federation.warm_start_steps > self.training.local_steps:
                raise ValueError(
                    f"federation.warm_start_steps is {self.federation.warm_start_steps}, more than "
                    f"training.local_steps = {self.training.local_steps}; a warm start takes fewer steps a round"
                )
            if self.privacy.unit != "none":
                raise ValueError("a warm start is not offered under privacy; set federation.warm_start_rounds = 0")
        if self.privacy.unit in ("record", "user"):
            self._check_single_gradients()
        self._check_what_travels()
        if self.federation.nodes and len(self.federation.nodes) < self.federation.min_cohort:
            raise ValueError(f"{len(self.federation.nodes)} nodes are named, fewer than min_cohort")
        return self

    def _check_preferences(self) -> None:
        """What the methods that learn from pairs, and a head alone, go with."""
        if self.adapter.kind == "none" and self.method.name not in ("reward", "in_context", "feedback"):
            raise ValueError(
                f'adapter.kind is "none" and method.name "{self.method.name}", which would train nothing; '
                'use "lora" or "full"'
            )
        if self.method.name == "dpo" and self.adapter.kind != "lora":
            raise ValueError(
                f'adapter.kind is "{self.adapter.kind}"; method "dpo" takes the base without its adapter '
                'for reference, so it trains one: use "lora"'
            )

    def _check_shared_noise(self) -> None:
        """One step a round over all units, a linear function of the sum of their clipped gradients and nothing else."""
        training, sealing, federation = self.training, self.sealing, self.federation
        wanted = {
            "sealing.kind": (sealing.kind.value, SealingKind.SEALED.value),
            "sealing.error_feedback": (sealing.error_feedback, False),
            "adapter.kind": (self.adapter.kind, "none"),
            "training.local_steps": (training.local_steps, 1),
            "training.optimizer": (training.optimizer, "sgd"),
            "training.weight_decay": (training.weight_decay, 0.0),
            "training.schedule": (training.schedule, "constant"),
            "training.warmup_steps": (training.warmup_steps, 0),
            "training.keep_optimizer_state": (training.keep_optimizer_state, False),
            "training.autocast": (training.autocast, False),
            "federation.clip_norm": (federation.clip_norm, None),
            "federation.fragments": (federation.fragments, 1),
        }
        for name, (given, needed) in wanted.items():
            if given != needed:
                raise ValueError(
                    f'{name} is {given!r} and privacy.noise "shared", under which a round sends one sum of clipped '
                    f"gradients as exact integers: it must be {'left out' if needed is None else repr(needed)}"
                )

    def _check_single_gradients(self) -> None:
        """Under record- and user-level privacy each record needs a gradient of its own."""
        if self.method.name == "contrastive":
            raise ValueError(
                f'privacy.unit is "{self.privacy.unit}" and method.name "contrastive", which compares the records of a '
                'batch with each other, so that none has a gradient of its own; use unit = "organization", or another '
                "method"
            )
        if self.training.compile:
            raise ValueError(
                "training.compile is on; gradients of single records are not taken from a compiled model. Switch it off"
            )
        if self.training.gradient_checkpointing:
            raise ValueError(
                "training.gradient_checkpointing is on; it breaks gradients of single records without an error. "
                "Switch it off and lower training.micro_batch_size"
            )

    def _check_clip_schedule(self) -> None:
        """A clip that follows the learning rate needs both, and noise that is calibrated for one clip goes without."""
        if self.federation.clip_norm is None:
            raise ValueError("federation.clip_schedule has no clip_norm to scale; set federation.clip_norm")
        if self.training.local_steps == 0 or not self.trains_model:
            raise ValueError('federation.clip_schedule is "learning_rate", and nothing is trained; use "constant"')
        if self.privacy.unit == "organization":
            raise ValueError(
                'federation.clip_schedule is "learning_rate"; under organization-level privacy the noise is made for '
                'one clip: use "constant"'
            )

    def _check_what_travels(self) -> None:
        """What would go wrong between rounds is refused before any."""
        lora = self.adapter.kind == "lora"
        in_turn = self.federation.fragments > 1 or (lora and self.adapter.aggregation == "rolora")
        if self.privacy.unit == "organization" and in_turn:
            raise ValueError(
                'privacy.unit is "organization", whose noise is made for the same coordinates in every round; use '
                'federation.fragments = 1 and another adapter.aggregation than "rolora"'
            )
        if self.federation.fragments > 1 and lora and self.adapter.aggregation in {"rolora", "fedsvd"}:
            raise ValueError(
                f'adapter.aggregation is "{self.adapter.aggregation}", which has its own rotation or basis; '
                "federation.fragments must be 1"
            )
        if lora and self.adapter.aggregation == "fedsvd":
            outer = self.federation.outer
            stale = {
                "federation.outer": outer.name != "sgd" or outer.momentum != 0.0,
                "training.keep_optimizer_state": self.training.keep_optimizer_state,
                "sealing.error_feedback": self.sealing.error_feedback,
            }
            for field, held in stale.items():
                if held:
                    raise ValueError(
                        f'{field} keeps values from round to round, and adapter.aggregation = "fedsvd" changes the '
                        "basis that they are in; use outer SGD without momentum, no kept state and no error feedback"
                    )

    def steps_in(self, round: int) -> int:
        """Local optimizer steps of a round (1-based)."""
        federation = self.federation
        warm = round <= federation.warm_start_rounds
        return min(federation.warm_start_steps, self.training.local_steps) if warm else self.training.local_steps

    def steps_before(self, round: int) -> int:
        """Local optimizer steps of all rounds before this one (1-based)."""
        warm = min(round - 1, self.federation.warm_start_rounds)
        return warm * self.steps_in(1) + (round - 1 - warm) * self.training.local_steps

    @property
    def sealed(self) -> bool:
        """Whether only sums of updates are seen."""
        return self.sealing.kind == SealingKind.SEALED

    def canonical_bytes(self) -> bytes:
        """What is hashed, signed and sent (confide.documents says which fields have their defaults in it)."""
        return canonical.encode(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, hex."""
        return digest_of(self)


def _named(error: ValidationError, source: str) -> SpecificationError:
    lines = []
    for item in error.errors()[:8]:
        place = ".".join(str(part) for part in item["loc"]) or "specification"
        got = "" if item["type"] in {"missing", "value_error"} else f" (got {item.get('input')!r})"
        what = _unknown(item["loc"]) if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"{place}: {what.removeprefix('Value error, ')}{got}")
    return SpecificationError(f"{source} is not a valid run specification: " + "; ".join(lines))


def _unknown(place: tuple[int | str, ...]) -> str:
    from confide.runs.reference import nearest

    return f"unknown field; {nearest(tuple(str(part) for part in place)) or 'remove it or correct its name'}"


def _filled(document: Any) -> Any:
    """A tokenizer run has no model, it and feedback no steps: what an administrator leaves out is filled in."""
    method = document.get("method") if isinstance(document, dict) else None
    if isinstance(method, dict) and method.get("name") == "feedback":
        return {"adapter": {"kind": "none"}, "training": _COUNT_ONCE.model_dump(), **document}
    if not isinstance(method, dict) or method.get("name") != "tokenizer":
        return document
    return {"model": NO_MODEL.model_dump(), "training": _COUNT_ONCE.model_dump(), **document}


def _build(document: Any, source: str) -> Specification:
    document = _filled(document)
    try:
        # JSON mode accepts lists for tuples and ints for floats, and stays strict otherwise.
        return Specification.model_validate_json(canonical.encode(document))
    except ValidationError as error:
        raise _named(error, source) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecificationError(f"{source} is not a valid run specification: {error}") from error


def parse_document(document: Any, source: str) -> Specification:
    """Parse what a program put together. Raises SpecificationError naming each field, value and remedy."""
    return _build(document, source)


def parse_toml(text: str, source: str = "the specification") -> Specification:
    """Parse what an administrator wrote. Raises SpecificationError naming each field, value and remedy."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecificationError(f"{source} is not valid TOML: {error}") from error
    return _build(document, source)


@functools.lru_cache(maxsize=32)
def parse_canonical(data: bytes, source: str = "the received specification") -> Specification:
    """Parse canonical bytes from the other side; anything but the canonical form is refused."""
    import json

    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SpecificationError(f"{source} is not JSON: {error}") from error
    specification = _build(document, source)
    if specification.canonical_bytes() != data:
        raise SpecificationError(f"{source} is not in canonical form; its hash would not name one document")
    return specification


EXAMPLE = """
version = 1
name = "support-answers"

[model]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
name = "smollm2-135m-instruct"
dtype = "bfloat16"

[adapter]
rank = 8
alpha = 32.0
target_modules = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
first_layer = 18

[training]
local_steps = 3
batch_size = 8
learning_rate = 3e-3

[federation]
rounds = 3
data = "construction-faq"
clip_norm = 12.0
"""
