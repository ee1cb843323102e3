"""Passwords: argon2id as RFC 9106 recommends for machines with little memory (64 MiB, 3 passes), and what is refused.

At most MOST_AT_ONCE are computed at a time, so that guesses that come together cost time and not the machine's memory.

Guarantee: a guess costs the guesser 64 MiB and tens of milliseconds also with the file in hand; a name that does not
exist takes as long as one that does.
"""

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from confide.errors import IdentityError

SHORTEST, LONGEST = 12, 256
MOST_AT_ONCE = 2
_HASHER = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=1)
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=1$" + "A" * 22 + "$" + "A" * 43
"""Of no password."""
_COMMON = frozenset({"password", "passwort", "qwertyuiop", "letmeinplease", "administrator", "confide", "123456789012"})


_turn = threading.BoundedSemaphore(MOST_AT_ONCE)


def check_strength(password: str, name: str) -> None:
    """Raise IdentityError for a password that is guessed early."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise IdentityError(f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}")
    bare = password.lower().strip("0123456789!?.-_ ")
    if bare in _COMMON or name.lower() in {bare, password.lower()} or len(set(password)) < 5:
        raise IdentityError("this password is among the first that are guessed; take several unrelated words")


def hashed(password: str) -> str:
    """What is stored."""
    with _turn:
        return _HASHER.hash(password)


def fits(stored: str | None, password: str) -> bool:
    """Whether it is the password. None: nobody's, which takes as long and never fits."""
    try:
        with _turn:
            return _HASHER.verify(stored or _NOBODYS, password[: LONGEST + 1]) and stored is not None
    except (VerificationError, InvalidHashError):
        return False
