"""Sign-in at an OpenID provider: authorization code with PKCE (RFC 7636), the ID token verified here (OpenID Connect
Core 1.0, section 3.1.3.7).

Guarantee: only a subject that its owner has bound to an account before, while signed in to it, is let in; an answer
counts for the browser that asked, once, within ten minutes; tokens come from the provider itself, signed by its keys.
"""

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from confide.errors import ConfideError, IdentityError
from confide.text import line
from confide.web.secrets import digest, new_secret
from confide.web.serving import is_loopback
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from confide_server.console.settings import Provider

ALGORITHMS = ["RS256", "ES256", "PS256"]
PENDING_S = 600.0
MOST_PENDING = 1000
TIMEOUT_S = 10.0
LEEWAY_S = 60.0


@dataclass(frozen=True)
class Pending:
    """A browser that was sent to the provider."""

    browser: bytes
    nonce: str
    verifier: str
    back: str
    person: str
    """Whose account the subject is to be bound to; empty: who signs in."""
    until: float


class OpenId:
    """One provider. Used from several threads."""

    def __init__(self, provider: Provider, redirect: str, clock: Callable[[], float] = time.time) -> None:
        """redirect: the console's address of the provider's answer. Nothing is asked of the provider yet."""
        secure = provider.issuer.startswith("https://")
        local = provider.issuer.startswith("http://") and is_loopback(httpx.URL(provider.issuer).host)
        if not (secure or local):
            raise IdentityError(f"the provider {provider.issuer!r} is not https://...; correct console.json")
        self.label = provider.label
        self._provider, self._redirect, self._clock = provider, redirect, clock
        self._pending: OrderedDict[bytes, Pending] = OrderedDict()
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}

    def begin(self, back: str, person: str = "") -> tuple[str, str]:
        """(the provider's address to send a browser to, what the browser keeps in a cookie). Raises IdentityError."""
        state, state_kept = new_secret()
        browser, browser_kept = new_secret()
        nonce, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        with self._client() as client:
            address, _ = client.create_authorization_url(
                self._discovered()["authorization_endpoint"],
                state=state,
                nonce=nonce,
                code_challenge=create_s256_code_challenge(verifier),
                code_challenge_method="S256",
            )
        pending = Pending(browser_kept, nonce, verifier, back, person, self._clock() + PENDING_S)
        with self._lock:
            self._pending[state_kept] = pending
            while len(self._pending) > MOST_PENDING:
                self._pending.popitem(last=False)
        return str(address), browser

    def finish(self, state: str, browser: str, code: str) -> tuple[str, Pending]:
        """(subject, what was begun) of the provider's answer. Raises IdentityError."""
        with self._lock:
            pending = self._pending.pop(digest(state), None)
        if pending is None or pending.until < self._clock():
            raise IdentityError("this answer of the provider was not asked for, or came too late; begin again")
        if not hmac.compare_digest(pending.browser, digest(browser)):
            raise IdentityError("the provider's answer was asked for by another browser; begin again")
        try:
            with self._client() as client:
                token = client.fetch_token(
                    self._discovered()["token_endpoint"],
                    code=code,
                    code_verifier=pending.verifier,
                    grant_type="authorization_code",
                )
            claims = self._verified(str(token["id_token"]))
        except ConfideError:
            raise
        except Exception as error:  # the provider decides what comes, and the libraries what they raise for it
            raise IdentityError(f"the provider's answer does not hold: {line(error, 200)}; begin again") from error
        if not hmac.compare_digest(str(claims.get("nonce", "")), pending.nonce):
            raise IdentityError("the provider's token is not for this sign-in; begin again")
        return f"{self._provider.issuer} {claims['sub']}", pending

    def _verified(self, token: str) -> dict[str, Any]:
        # Whatever came: the library checks its form.
        keys = KeySet.import_key_set(cast(Any, self._get(self._discovered()["jwks_uri"])))
        decoded = jwt.decode(token, keys, algorithms=ALGORITHMS)
        rules = jwt.JWTClaimsRegistry(
            now=lambda: int(self._clock()),
            leeway=int(LEEWAY_S),
            iss={"essential": True, "value": self._provider.issuer},
            aud={"essential": True, "value": self._provider.client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
        )
        try:
            rules.validate(decoded.claims)
        except JoseError as error:
            raise IdentityError(f"the provider's token does not hold: {line(error, 200)}; begin again") from error
        if isinstance(decoded.claims["aud"], list) and decoded.claims.get("azp") != self._provider.client_id:
            raise IdentityError("the provider's token is for several applications and not by name for this one")
        return decoded.claims

    def _client(self) -> OAuth2Client:
        try:
            secret = Path(self._provider.client_secret_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise IdentityError(f"cannot read {self._provider.client_secret_file}: {error.strerror}") from error
        return OAuth2Client(
            self._provider.client_id, secret, redirect_uri=self._redirect, scope="openid", timeout=TIMEOUT_S
        )

    def _discovered(self) -> dict[str, Any]:
        if not self._found:
            found = self._get(self._provider.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if found.get("issuer") != self._provider.issuer:
                raise IdentityError(
                    f"the provider calls itself {line(found.get('issuer'), 100)!r}; console.json says "
                    f"{self._provider.issuer!r}"
                )
            self._found = found
        return self._found

    def _get(self, address: str) -> dict[str, Any]:
        try:
            answer = httpx.get(address, timeout=TIMEOUT_S, follow_redirects=False)
            answer.raise_for_status()
            found = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise IdentityError(f"the provider does not answer at {line(address, 200)}: {line(error, 200)}") from error
        if not isinstance(found, dict):
            raise IdentityError(f"{line(address, 200)} is no JSON object; is the issuer right?")
        return found
