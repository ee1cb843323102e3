"""Whether a signed evidence file lets one release pass. What it says of itself is not believed: it is decided again.

The file comes over the network from whoever may attach one, so it is parsed strictly. The figures are held against this
release's own thresholds, whatever thresholds and verdict the file states.

    check(data, signer_public, bound, now)    # raises StateError GATE_..., or IdentityError for a wrong signature
"""

from typing import Annotated, Any, Literal

from confide.errors import StateError
from confide.identity.signed import Document, validated
from confide.runs.sections import Sha256
from pydantic import Field

from confide_server.rlhf.gate import Figures, Thresholds, decide, open_evidence
from confide_server.state.release_gate import Bound

VALID_S = 30 * 86400
"""How long after the evaluation evidence lets a release pass."""
MAX_CLOCK_SKEW_S = 300.0
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Perplexity = Annotated[float, Field(gt=0)]


class StatedFigures(Document):
    """gate.Figures as they stand in a file; every number finite."""

    prompts: Count
    answers: Count
    win_rate: Share
    interval: tuple[Share, Share]
    kl: float
    perplexity: tuple[Perplexity, Perplexity] | None
    length_ratio: Annotated[float, Field(ge=0)]
    repetition: Share
    organizations: dict[str, Share]
    seed: int
    decided: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    def figures(self) -> Figures:
        """As the gate decides on them."""
        return Figures(**self.model_dump())


class Released(Document):
    """What was evaluated, by the hashes of its run (`confide rlhf evaluate` checks them by the tensors)."""

    base_sha256: Sha256
    model_sha256: Sha256
    specification_sha256: Sha256
    baseline_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    """Of the model that it was compared with; "": the base alone."""


class StatedGate(Document):
    """What nodes counted, noise and all."""

    win_rate: float
    wins: float
    ties: float
    losses: float
    organizations_below: float


class StatedOpinions(Document):
    """opinions_of_nodes.read_opinions of a run about a candidate."""

    version: int
    purpose: Literal["gate", "pairs"]
    pairs: Annotated[int, Field(ge=0)]
    source: str
    specification_sha256: Sha256
    privacy: dict[str, Any]
    gate: StatedGate
    candidate_sha256: str
    baseline_sha256: str
    organizations: Count
    half_width: Annotated[float, Field(ge=0)]


class Evidence(Document):
    """gate.evidence_of's document."""

    version: Annotated[int, Field(ge=1, le=1)]
    made_at: Annotated[float, Field(ge=0, lt=2**40)]
    lineage: dict[str, Any]
    figures: StatedFigures
    thresholds: dict[str, float]
    passed: bool
    failed: list[str]
    not_known: list[str]
    nodes: StatedOpinions | None = None


def check(data: bytes, public: bytes, bound: Bound, now: float) -> None:
    """confide_server.state.release_gate.Judge.

    Raises IdentityError for a file that the signer did not sign or that is malformed; StateError GATE_STALE,
    GATE_UNBOUND, GATE_OF_ANOTHER_MODEL, GATE_OF_ANOTHER_BASELINE or GATE_NOT_PASSED.

    Guarantee: the signer stated, within 30 days, figures of exactly this model against exactly this baseline that keep
    to the installed thresholds. That it measured them honestly is its word, by name.
    """
    evidence = validated(Evidence, open_evidence(data, public), "the gate's evidence")
    _check_time(evidence.made_at, now)
    if "released" not in evidence.lineage:
        raise StateError(
            "GATE_UNBOUND: the evidence does not say which run's model it is of; evaluate a folder of `confide run "
            "export`, whose manifest names it"
        )
    _check_bound(validated(Released, dict(evidence.lineage["released"]), "lineage.released"), bound)
    said = None if evidence.nodes is None else evidence.nodes.model_dump()
    if said is not None and (said["candidate_sha256"], said["baseline_sha256"]) != (
        bound.model_sha256,
        bound.baseline_sha256,
    ):
        raise StateError("GATE_OF_ANOTHER_MODEL: the nodes judged another candidate or baseline; ask about this one")
    verdict = decide(evidence.figures.figures(), Thresholds(), said_by_nodes=said)
    if not (verdict.passed and evidence.passed):
        why = "; ".join(verdict.failed or tuple(evidence.failed)) or "it says so itself"
        raise StateError(f"GATE_NOT_PASSED: {why[:400]}. Improve the model, or let the gate ask more prompts")


def _check_time(made_at: float, now: float) -> None:
    if not now - VALID_S <= made_at <= now + MAX_CLOCK_SKEW_S:
        raise StateError(
            f"GATE_STALE: the evidence was made {(now - made_at) / 86400:.1f} days ago, and counts for "
            f"{VALID_S // 86400}; evaluate anew"
        )


def _check_bound(released: Released, bound: Bound) -> None:
    found = (released.model_sha256, released.specification_sha256, released.base_sha256)
    wanted = (bound.model_sha256, bound.specification_sha256, bound.base_model_sha256)
    names = ("model", "specification", "base model")
    for name, one, other in zip(names, found, wanted, strict=True):
        if one != other:
            raise StateError(
                f"GATE_OF_ANOTHER_MODEL: the evidence is of the {name} {one[:16]}, and the release of {other[:16]}; "
                "evaluate the model that is released"
            )
    if released.baseline_sha256 != bound.baseline_sha256:
        raise StateError(
            f"GATE_OF_ANOTHER_BASELINE: the candidate was compared with {released.baseline_sha256[:16] or 'the base'}, "
            f"and the name stands for {bound.baseline_sha256[:16] or 'no model, so that the base counts'}; evaluate it "
            "against that"
        )
