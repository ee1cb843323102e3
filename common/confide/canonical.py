"""One byte string for one document, so that two sides can hash and sign the same thing.

JSON in UTF-8 with sorted keys, no white space, no NaN or infinity. Floats are written by Python's
shortest round-trip representation; integral floats keep their ".0", so 1 and 1.0 stay different.

>>> encode({"b": 1, "a": [True, None]})
b'{"a":[true,null],"b":1}'
"""

import hashlib
import json
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def encode(document: Any) -> bytes:
    """The canonical bytes of a document of dict, list, str, int, float, bool and None."""
    return _ENCODER.encode(document).encode()


def digest(document: Any) -> str:
    """SHA-256 of the canonical bytes, in lower-case hex."""
    return hashlib.sha256(encode(document)).hexdigest()


def hash_fields(domain: str, *fields: bytes) -> bytes:
    """SHA-256 over a domain name and length-prefixed fields: no two field lists share an input.

    Guarantee: injective encoding; collisions are those of SHA-256.
    """
    parts = [part for field in (domain.encode(), *fields) for part in (len(field).to_bytes(8, "big"), field)]
    return hashlib.sha256(b"".join(parts)).digest()
