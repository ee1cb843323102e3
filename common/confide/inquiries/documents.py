"""What an asker and a node say to each other, signed by who says it. docs/federated-retrieval.md has the rules.

IndexCard   a node: this is my key of today, and about what my documents are (noised)
Inquiry     an asker to one node: this question, for this purpose, until then
Answer      the node: these quotations, so many passages, or why not
"""

import hashlib
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import IdentityError
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, Roster
from confide.identity.signed import Document, parse_document, sign_document, validated
from confide.rag.catalogue import DocumentId, Sha256

MOST_QUESTION_CHARS = 2000
MOST_QUOTES = 10
MOST_QUOTE_CHARS = 4000
MOST_VALID_S = 600
"""An inquiry is answered within so many seconds of its signature, or not at all."""
MOST_CARD_S = 86_400
MOST_DIMENSION = 4096
MOST_CENTROIDS = 16
MOST_EPSILON = 100.0
"""Of an outline."""

ASKERS = frozenset({Role.ADMINISTRATOR, Role.OPERATOR, Role.NODE, Role.COORDINATOR})
"""Roles that may ask at all; which members of them do, each node's policy says."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
InquiryId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Time = Annotated[int, Field(ge=0, lt=1 << 40)]
Offset = Annotated[int, Field(ge=0, lt=1 << 40)]


class Centroid(StoredDocument):
    """About what the documents of one collection are, with Gaussian noise in it.

    vector: the noised sum of the documents' embeddings over their noised number, little-endian float32, in hex.
    documents: that number. noise_stddev: of the noise in each number of the vector.
    """

    vector: Annotated[str, Field(pattern=r"^([0-9a-f]{8})+$", max_length=8 * MOST_DIMENSION)]
    documents: Annotated[int, Field(ge=1, lt=1 << 40)]
    noise_stddev: Annotated[float, Field(gt=0, le=1e6)]


class Outline(StoredDocument):
    """What a node tells of its documents, and what it was charged for that in its own ledger (once a version)."""

    epsilon: Annotated[float, Field(gt=0, le=MOST_EPSILON)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)]
    centroids: tuple[Centroid, ...] = Field(max_length=MOST_CENTROIDS)


class IndexCard(Document):
    """A node that answers. key: to which inquiries are sealed. outline: None where it says nothing of its documents."""

    format: Literal[1] = 1
    node: Name
    key: Key
    embedder: Sha256
    dimension: Annotated[int, Field(ge=1, le=MOST_DIMENSION)]
    issued_at: Time
    expires_at: Time
    outline: Outline | None = None


class Inquiry(Document):
    """One question to one node. quotes: at most so many are wanted; 0 asks for the count only.

    node is signed too, so that no node can pass a question on in its asker's name. reply_key: to which the answer is
    sealed.
    """

    format: Literal[1] = 1
    id: InquiryId
    asker: Name
    node: Name
    purpose: Name
    question: Annotated[str, Field(min_length=1, max_length=MOST_QUESTION_CHARS)]
    quotes: Annotated[int, Field(ge=0, le=MOST_QUOTES)]
    issued_at: Time
    expires_at: Time
    reply_key: Key


class Redaction(StoredDocument):
    """Characters [start, stop) of the document stand as [kind] in the quotation."""

    start: Offset
    stop: Offset
    kind: Annotated[str, Field(min_length=1, max_length=40)]


class Quotation(StoredDocument):
    """Characters [start, stop) of a document's canonical text, word for word but for what was redacted.

    sha256: of the file's bytes; text_sha256: of its canonical text, which the offsets count in.
    """

    collection: Name
    document: DocumentId
    source: Annotated[str, Field(max_length=400)]
    version: Annotated[int, Field(ge=1)]
    sha256: Sha256
    text_sha256: Sha256
    start: Offset
    stop: Offset
    text: Annotated[str, Field(min_length=1, max_length=MOST_QUOTE_CHARS)]
    redacted: tuple[Redaction, ...] = Field(default=(), max_length=200)
    page: int | None = None
    headings: tuple[Annotated[str, Field(max_length=400)], ...] = Field(default=(), max_length=16)


class Answer(Document):
    """What a node says to one inquiry. inquiry: SHA-256 of the inquiry as it was signed.

    found: passages near enough to the question, at most ten are counted. code, reason: why nothing is said.
    """

    format: Literal[1] = 1
    id: InquiryId
    inquiry: Sha256
    node: Name
    asker: Name
    answered_at: Time
    outcome: Literal["quotes", "count", "refused"]
    found: Annotated[int, Field(ge=0, le=MOST_QUOTES)] = 0
    quotes: tuple[Quotation, ...] = Field(default=(), max_length=MOST_QUOTES)
    code: Annotated[str, Field(max_length=64)] = ""
    reason: Annotated[str, Field(max_length=600)] = ""


D = TypeVar("D", IndexCard, Inquiry, Answer)
_DOMAINS: dict[type[Document], str] = {IndexCard: "index-card", Inquiry: "inquiry", Answer: "inquiry-answer"}


def signed(document: IndexCard | Inquiry | Answer, key: SigningKey) -> bytes:
    """The document with its sender's signature."""
    return sign_document(document.model_dump(mode="json"), _DOMAINS[type(document)], key)


def opened(kind: type[D], data: bytes, roster: Roster, sender: str, roles: frozenset[Role]) -> D:
    """The document that `sender` signed. Raises IdentityError or REVOKED: unknown, another role, signature, form.

    sender: a field's name ("asker", "node"): who the document says it is of.
    Guarantee: an active member of one of these roles signed exactly this document, against anyone without its key.
    """
    domain = _DOMAINS[kind]
    body, signature = parse_document(data, f"the {domain}")
    member = roster.member(str(body.get(sender, ""))[:64])
    if member.role not in roles:
        raise IdentityError(f"{member.name} is a {member.role.value}; it gives no {domain}")
    verify(bytes.fromhex(member.identity_key), domain, canonical.encode(body), signature)
    return validated(kind, body, f"the {domain} of {member.name}")


def digest(data: bytes) -> str:
    """How an answer names its inquiry."""
    return hashlib.sha256(data).hexdigest()


def info_of_inquiry(node: str) -> bytes:
    """What a sealed inquiry is bound to."""
    return canonical.hash_fields("confide/v1/inquiry-box", node.encode())


def info_of_answer(inquiry: str) -> bytes:
    """What a sealed answer is bound to. inquiry: `digest` of it."""
    return canonical.hash_fields("confide/v1/answer-box", bytes.fromhex(inquiry))
