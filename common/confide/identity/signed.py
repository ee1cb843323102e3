"""A small JSON document together with one Ed25519 signature over its canonical bytes.

>>> key = SigningKey.generate()
>>> data = sign_document({"a": 1}, "example", key)
>>> open_document(data, "example", key.public)
{'a': 1}
"""

import json
import re
from typing import Any, TypeVar

from pydantic import ValidationError

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import IdentityError
from confide.identity.keys import SigningKey, verify

MAX_BYTES = 1 << 20
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


class Document(StoredDocument):
    """Base of the identity documents."""


def sign_document(document: dict[str, Any], domain: str, key: SigningKey) -> bytes:
    """Canonical bytes of {"document", "signature"}."""
    signature = key.sign(domain, canonical.encode(document))
    return canonical.encode({"document": document, "signature": signature.hex()})


def parse_document(data: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    """(document, signature), NOT yet verified. Raises IdentityError for anything but what `sign_document` writes."""
    if len(data) > MAX_BYTES:
        raise IdentityError(f"{what} has {len(data)} bytes; at most {MAX_BYTES} are accepted")
    try:
        envelope = json.loads(data)
        canonical_form = canonical.encode(envelope) == data
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"{what} is not JSON in UTF-8: the file is damaged or is something else") from error
    if not isinstance(envelope, dict) or set(envelope) != {"document", "signature"} or not canonical_form:
        raise IdentityError(f"{what} is not a signed document in canonical form; ask its sender for it again")
    document, signature = envelope["document"], envelope["signature"]
    if not isinstance(document, dict) or not isinstance(signature, str):
        raise IdentityError(f"{what} holds a document or signature of the wrong kind")
    if not _SIGNATURE.fullmatch(signature):
        raise IdentityError(f"the signature of {what} is not 64 bytes of hex")
    return document, bytes.fromhex(signature)


def open_document(data: bytes, domain: str, public: bytes) -> dict[str, Any]:
    """The document, verified under `public`. Raises IdentityError."""
    document, signature = parse_document(data, f"the {domain}")
    verify(public, domain, canonical.encode(document), signature)
    return document


D = TypeVar("D", bound=Document)


def validated(kind: type[D], document: dict[str, Any], what: str) -> D:
    """The document as a model of `kind`. Raises IdentityError naming up to four wrong fields."""
    try:
        return kind.model_validate_json(canonical.encode(document))
    except ValidationError as error:
        places = [f"{'.'.join(map(str, item['loc'])) or what}: {item['msg']}" for item in error.errors()[:4]]
        raise IdentityError(f"{what} is not valid: " + "; ".join(places)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise IdentityError(f"{what} is not valid: {error}") from error
