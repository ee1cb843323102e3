"""How the root's keys are opened on the command line: a passphrase from a file, or asked at the terminal."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import IdentityError
from confide.identity.consortium import TOKEN_FILE, Consortium
from confide.identity.pkcs11_keys import TokenPlace
from confide.identity.signed import validated

MIN_CHARACTERS = 12
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="CONFIDE_PASSPHRASE_FILE",
        help="Read the root keys' passphrase from this file instead of asking.",
        dir_okay=False,
    ),
]
NoPassphrase = Annotated[bool, typer.Option("--no-passphrase", help="Leave the root's keys unlocked on this disk.")]


TokenLabel = Annotated[
    str,
    typer.Option("--token", metavar="LABEL", help="Make both keys in the PKCS #11 token of this label, under its PIN."),
]
TokenModule = Annotated[
    Path | None,
    typer.Option("--token-module", help="The PKCS #11 library of the token's maker.", exists=True, dir_okay=False),
]


def token_place(label: str, module: Path | None) -> TokenPlace | None:
    """Where the keys are to be; None: in files. Raises IdentityError for one option without the other."""
    if bool(label) != (module is not None):
        raise IdentityError("--token LABEL and --token-module LIBRARY belong together: which token, and its library")
    return validated(TokenPlace, {"module": str(module.resolve()), "token": label}, "--token") if module else None


def open_root(folder: Path, passphrase_file: Path | None) -> Consortium:
    """The root's folder, its keys unlocked. Raises IdentityError."""

    def passphrase() -> bytes:
        what = "PIN of the token" if (folder / TOKEN_FILE).exists() else "passphrase"
        return _read(passphrase_file) if passphrase_file is not None else _ask(f"{what} of {folder}")

    return Consortium.open(folder, passphrase)


def new_passphrase(
    passphrase_file: Path | None, *, demo: bool, none: bool, pin_of: TokenPlace | None = None
) -> bytes | None:
    """The passphrase for a root that is being made; None leaves its keys unlocked, as a demo's are.

    pin_of: a token that has a PIN already, which is asked for instead, once. Raises IdentityError when the passphrase
    is too short, or when nobody can be asked.
    """
    if pin_of is not None:
        return _read(passphrase_file) if passphrase_file is not None else _ask(f"PIN of the token {pin_of.token}")
    if none or (demo and passphrase_file is None):
        return None
    if passphrase_file is not None:
        chosen = _read(passphrase_file)
    else:
        chosen = _ask("passphrase for the root's keys")
        if _ask("the same again") != chosen:
            raise IdentityError("the two passphrases differ; nothing was made")
    if len(chosen) < MIN_CHARACTERS:
        raise IdentityError(
            f"the passphrase has {len(chosen)} characters; {MIN_CHARACTERS} or more are needed. Whoever copies the "
            "root's folder can try passphrases for as long as they like: take several random words"
        )
    return chosen


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise IdentityError(f"cannot read the passphrase file {path}: {error.strerror}") from error


def _ask(what: str) -> bytes:
    if not sys.stdin.isatty():
        raise IdentityError(
            f"the {what} is needed and there is no terminal to ask at: give --passphrase-file FILE "
            "(or, when the root is made, --no-passphrase)"
        )
    answer: str = typer.prompt(what, hide_input=True)
    return answer.encode()
