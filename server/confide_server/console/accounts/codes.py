"""Codes by time (TOTP, RFC 6238: SHA-1, 30 s, 6 digits), and their seed as a picture for a telephone.

Guarantee: a code is taken once: one that was read over a shoulder is no good any more.
"""

import hmac
import io

import pyotp
import segno
from confide.errors import IdentityError
from markupsafe import Markup

STEP_S = 30
_LEEWAY_STEPS = 1


def new_seed() -> str:
    """160 random bits, base32."""
    return pyotp.random_base32()


def picture(seed: str, name: str, issuer: str) -> Markup:
    """The seed as a QR code, SVG without any style."""
    address = pyotp.TOTP(seed).provisioning_uri(name=name, issuer_name=issuer)
    drawn = io.BytesIO()
    segno.make(address, error="m").save(
        drawn, kind="svg", scale=4, border=3, xmldecl=False, svgns=True, light="#fff", title="QR", svgclass=None,
        lineclass=None,
    )  # fmt: skip
    return Markup(drawn.getvalue().decode())  # noqa: S704 - drawn here, from a name that has no markup in it


def step_of(seed: str, code: str, *, after: int, now: float) -> int:
    """The step whose code this is, later than step `after`. Raises IdentityError."""
    given = code.replace(" ", "")
    present = int(now) // STEP_S
    generator = pyotp.TOTP(seed)
    for step in range(present - _LEEWAY_STEPS, present + _LEEWAY_STEPS + 1):
        if hmac.compare_digest(generator.at(step * STEP_S).encode(), given.encode("utf-8", "replace")) and step > after:
            return step
    raise IdentityError("this code is not right, or was used already; wait for the next one, and check the clock")
