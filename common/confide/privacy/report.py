"""The privacy report of one run on one node: signed canonical JSON, and the same as a page for a privacy officer.

    report = build_report(facts)
    data = sign_report(report, member.identity)          # what an auditor verifies: open_report(data, public key)
    page = render_page(report, signer=member.name, key=member.identity.public)

A report claims only what is recorded: what the node's ledger charged, what its audit found, and what the run's manifest
says about who contributed. What is not known here is said to be not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from confide import __version__
from confide.errors import SpecificationError
from confide.identity.keys import SigningKey
from confide.identity.signed import open_document, sign_document
from confide.runs.specification import Specification

DOMAIN = "privacy-report"
Verdict = Literal["contradicted", "not contradicted", "not audited"]

_UNIT = {
    "none": "nothing: this run made no promise of differential privacy",
    "record": "each single record of this organization's data set",
    "user": "each person named by the user key, with all of that person's records together",
    "organization": "this organization's whole contribution",
}
_ADJACENCY = {
    "none": "none",
    "record": "zero-out: two data sets are neighbours when one record is replaced by nothing",
    "user": "zero-out: two data sets are neighbours when all records of one user are replaced by nothing",
    "organization": "zero-out: two runs are neighbours when one organization's contribution is replaced by nothing",
}
_SAMPLER = {
    "none": "shuffled batches",
    "record": "Poisson: each record is in a batch independently, drawn by AES-256-CTR keyed by the operating system",
    "user": "Poisson: each user is in a batch independently, drawn by AES-256-CTR keyed by the operating system",
    "organization": "none: every organization takes part in every round, so nothing is gained from sampling",
}
_MECHANISM = {
    "none": "none",
    "record": "DP-SGD (Abadi et al. 2016): the gradient of each record clipped, Gaussian noise in every step",
    "user": "DP-SGD by user: the summed gradient of each user clipped, Gaussian noise in every step",
    "organization": "distributed Skellam noise inside the sealed sum (Agarwal, Kairouz and Liu 2021)",
}
_NOT_COVERED = {
    "none": ["Everything: without differential privacy the model may remember and repeat any record."],
    "record": [
        "A person who appears in several records: the promise is for one record at a time and weakens with each more.",
        "The number of records, which is treated as known: the noise was calculated from it.",
    ],
    "user": ["Records of one person under two names: the promise holds for a user key, not for a person."],
    "organization": [
        "Single records are protected only as part of the whole contribution, against those who see the models.",
    ],
}
_NEVER_COVERED = [
    "What is true of a whole group: a model may learn that a disease and a symptom go together; that is its purpose.",
    "Who takes part, when, how long training took and how many bytes were sent.",
    "Other copies of the data, other runs outside this ledger, and data sets that overlap without being declared so.",
    "A node whose machine is compromised, and an adversary who reads its memory while it trains.",
]


@dataclass(frozen=True, kw_only=True)
class Spend:
    """The node's ledger on this run and its group of data sets."""

    group: str
    slots_spent: int
    slots_approved: int
    run_epsilon_spent: float
    """Of what left the node in this run, at `delta`."""
    group_epsilon_spent: float
    group_epsilon_held: float
    budget_epsilon: float | None
    """The policy's, now; None when it has none any more."""
    delta: float
    ledger_length: int
    ledger_head: str
    noise_multiplier: float
    """Standard deviation of the noise over the clip: of each step at record and user level (with the batch size it says
    roughly how many records there are: internal), of all nodes' noise together at organization level."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a report is made of. None: not known on this node."""

    run_id: str
    node: str
    consortium: str
    administrator: str
    made_at: str
    """ISO 8601, UTC."""
    specification: Specification
    sealing_promise: str
    spend: Spend | None
    audit: Mapping[str, Any] | None
    """{"kind", "at", "result"}, as an audit stored it."""
    rounds: Sequence[Mapping[str, Any]] | None
    """The rounds of the run's manifest: round, contributors, dropped, promise."""


def verdict_of(audit: Mapping[str, Any] | None) -> Verdict:
    """What the audit says about the claim. Calculated from the numbers, whatever a stored verdict says."""
    if audit is None:
        return "not audited"
    result = audit["result"]
    claimed = result["claimed_epsilon"]
    contradicted = claimed is not None and result["bound"]["epsilon"] > claimed
    return "contradicted" if contradicted else "not contradicted"


def build_report(facts: Facts) -> dict[str, Any]:
    """The report as a JSON document. Raises SpecificationError when an audit was made for another claim."""
    spec, privacy = facts.specification, facts.specification.privacy
    if facts.audit is not None and facts.audit["result"]["claimed_epsilon"] != privacy.epsilon:
        raise SpecificationError(
            f"the stored audit was made for epsilon {facts.audit['result']['claimed_epsilon']}, the run claims "
            f"{privacy.epsilon}; run `confide audit` again"
        )
    return {
        "version": 1,
        "made_at": facts.made_at,
        "node": facts.node,
        "consortium": facts.consortium,
        "release": __version__,
        "run": {
            "id": facts.run_id,
            "name": spec.name,
            "administrator": facts.administrator,
            "specification_sha256": spec.digest,
            "base_model_sha256": spec.model.sha256,
            "method": spec.method.name,
            "rounds": spec.federation.rounds,
            "local_steps": spec.training.local_steps,
            "batch_size": spec.training.batch_size,
        },
        "claim": {
            "unit": privacy.unit,
            "protects": _UNIT[privacy.unit],
            "adjacency": _ADJACENCY[privacy.unit],
            "sampler": _SAMPLER[privacy.unit],
            "mechanism": _MECHANISM[privacy.unit],
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "clip": privacy.clip,
        },
        "spend": None if facts.spend is None else vars(facts.spend),
        "audit": None if facts.audit is None else dict(facts.audit),
        "verdict": verdict_of(facts.audit),
        "sealing": {"kind": spec.sealing.kind.value, "promise": facts.sealing_promise},
        "rounds": None if facts.rounds is None else [_round(entry) for entry in facts.rounds],
        "not_covered": [*_NOT_COVERED[privacy.unit], *_NEVER_COVERED],
    }


def _round(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "round": entry["round"],
        "contributors": list(entry["contributors"]),
        "dropped": dict(entry["dropped"]),
        "held": dict(entry["promise"]),
    }


def sign_report(report: dict[str, Any], key: SigningKey) -> bytes:
    """Canonical bytes of the report and the node's signature over it."""
    return sign_document(report, DOMAIN, key)


def open_report(data: bytes, public: bytes) -> dict[str, Any]:
    """A signed report, verified under a node's identity key (32 raw bytes). Raises IdentityError."""
    return open_document(data, DOMAIN, public)


def render_page(report: Mapping[str, Any], *, key: bytes) -> str:
    """One HTML page without scripts and without anything fetched; every value escaped; prints on A4."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("confide.privacy", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report, key=key.hex())
