"""Security keys (WebAuthn level 2): a second factor that nobody can read out, or type into a wrong page.

Guarantee: what a key signs names this server's address, so an answer that another site obtained is refused; each
challenge is drawn for one session and taken once; a key whose counter went backwards was copied, and is refused.
"""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from confide.errors import IdentityError
from confide.text import line
from webauthn import (
    base64url_to_bytes,
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import bytes_to_base64url
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import PublicKeyCredentialDescriptor, UserVerificationRequirement

from confide_server.console.accounts.people import Person
from confide_server.console.accounts.store import AccountStore

MOST_KEYS = 10


@dataclass(frozen=True)
class Site:
    """What a key is told that it signs for: scheme://host[:port], as the browser's address line has it."""

    origin: str

    @property
    def host(self) -> str:
        """Without scheme and port."""
        return self.origin.partition("://")[2].rpartition(":")[0] or self.origin.partition("://")[2]

    @property
    def serves_keys(self) -> bool:
        """Security keys know names, not addresses: 127.0.0.1 will not do, localhost will."""
        try:
            ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            return True
        return False


@dataclass(frozen=True)
class SecurityKey:
    """One key of a person."""

    id: str
    label: str
    created_at: float


class SecurityKeys:
    """All keys. Options and answers are WebAuthn's JSON, as browsers give and take it."""

    def __init__(self, store: AccountStore, issuer: str, clock: Callable[[], float] = time.time) -> None:
        """issuer: what the browser shows beside the key."""
        self._store, self._issuer, self._clock = store, issuer, clock

    def of(self, person: Person) -> list[SecurityKey]:
        """A person's, oldest first."""
        rows = self._store.all("SELECT * FROM security_keys WHERE person = ? ORDER BY created_at", person.id)
        return [SecurityKey(bytes_to_base64url(row["credential"]), row["label"], row["created_at"]) for row in rows]

    def _descriptors(self, person: Person) -> list[PublicKeyCredentialDescriptor]:
        return [PublicKeyCredentialDescriptor(id=base64url_to_bytes(key.id)) for key in self.of(person)]

    def registration(self, person: Person, site: Site, challenge: bytes) -> str:
        """What a browser is asked for a new key."""
        options = generate_registration_options(
            rp_id=site.host,
            rp_name=self._issuer,
            user_id=person.id.encode(),
            user_name=person.name,
            challenge=challenge,
            exclude_credentials=self._descriptors(person),
        )
        return options_to_json(options)

    def register(self, person: Person, site: Site, challenge: bytes, answer: str, label: str) -> None:
        """Keep a new key. Raises IdentityError when the answer is not to this challenge, from this site."""
        if len(self.of(person)) >= MOST_KEYS:
            raise IdentityError(f"an account has at most {MOST_KEYS} security keys; remove one first")
        try:
            found = verify_registration_response(
                credential=answer, expected_challenge=challenge, expected_rp_id=site.host, expected_origin=site.origin
            )
        except (WebAuthnException, ValueError, KeyError, TypeError) as error:
            raise IdentityError(f"the security key's answer does not hold: {line(error, 200)}; try again") from error
        known = "SELECT 1 FROM security_keys WHERE credential = ?"
        if self._store.one(known, found.credential_id) is not None:
            raise IdentityError("this security key is registered already")
        self._store.run(
            "INSERT INTO security_keys VALUES (?, ?, ?, ?, ?, ?)",
            found.credential_id, person.id, found.credential_public_key, found.sign_count, line(label, 60) or "key",
            self._clock(),
        )  # fmt: skip

    def assertion(self, person: Person, site: Site, challenge: bytes) -> str:
        """What a browser is asked of a known key."""
        options = generate_authentication_options(
            rp_id=site.host,
            challenge=challenge,
            allow_credentials=self._descriptors(person),
            user_verification=UserVerificationRequirement.PREFERRED,
        )
        return options_to_json(options)

    def check(self, person: Person, site: Site, challenge: bytes, answer: str) -> None:
        """Raise IdentityError unless one of the person's keys signed this challenge for this site."""
        try:
            credential = base64url_to_bytes(_id_of(answer))
            row = self._store.one(
                "SELECT * FROM security_keys WHERE credential = ? AND person = ?", credential, person.id
            )
            if row is None:
                raise IdentityError("this security key is not one of this account's")
            found = verify_authentication_response(
                credential=answer,
                expected_challenge=challenge,
                expected_rp_id=site.host,
                expected_origin=site.origin,
                credential_public_key=row["public_key"],
                credential_current_sign_count=row["sign_count"],
            )
        except (WebAuthnException, ValueError, KeyError, TypeError) as error:
            raise IdentityError(f"the security key's answer does not hold: {line(error, 200)}; try again") from error
        self._store.run(
            "UPDATE security_keys SET sign_count = ? WHERE credential = ?", found.new_sign_count, credential
        )

    def remove(self, person: Person, key: str) -> None:
        """Forget a key. Raises IdentityError for one that is not this person's."""
        if key not in {one.id for one in self.of(person)}:
            raise IdentityError("there is no such security key of yours")
        self._store.run("DELETE FROM security_keys WHERE credential = ?", base64url_to_bytes(key))


def _id_of(answer: str) -> str:
    from webauthn.helpers import parse_authentication_credential_json

    return parse_authentication_credential_json(answer).id
