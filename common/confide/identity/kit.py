"""A start kit: the one file with which an organization joins. Made at the root, handed over as a secret.

It holds an invitation (with the root's key, the coordinator's address and a short-lived bootstrap key) and a proposed
policy. The proposal binds nobody: the node writes it into its own policy.toml, where its owner reads and changes it.
Every run still waits for a person.
"""

import json
from typing import Annotated, Literal

from pydantic import Field

from confide import canonical
from confide.errors import IdentityError
from confide.identity.invitation import Invitation
from confide.identity.signed import MAX_BYTES, Document, validated
from confide.runs.sections import Name

Count = Annotated[int, Field(ge=0, le=1_000_000)]
Words = Annotated[tuple[Name, ...], Field(max_length=32)]


class PolicyProposal(Document):
    """What the consortium thinks that a member's policy should allow."""

    methods: Words = ("sft",)
    data_sets: Words = ("records",)
    min_cohort: Annotated[int, Field(ge=1, le=100)] = 3
    max_rounds: Count = 30
    max_local_steps: Count = 100
    privacy_units: Annotated[tuple[Literal["none", "record", "user", "organization"], ...], Field(max_length=4)] = (
        "record",
        "user",
        "organization",
    )


class StartKit(Document):
    """NAME.kit.json, mode 0600."""

    version: Literal[1] = 1
    kind: Literal["confide-start-kit"] = "confide-start-kit"
    demo: bool
    """Of a root for trying things out: production nodes refuse it."""
    invitation: Invitation
    policy: PolicyProposal

    def to_bytes(self) -> bytes:
        """The file's content."""
        return canonical.encode(self.model_dump(mode="json"))


def read_kit(data: bytes) -> StartKit:
    """Parse a start kit. Raises IdentityError."""
    if len(data) > MAX_BYTES:
        raise IdentityError(f"the start kit has {len(data)} bytes; at most {MAX_BYTES} are accepted")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IdentityError("the start kit is not JSON: the file is damaged or is something else") from error
    if not isinstance(document, dict) or document.get("kind") != "confide-start-kit":
        raise IdentityError("the file is no start kit; `confide consortium start-kit` makes one per organization")
    return validated(StartKit, document, "the start kit")
