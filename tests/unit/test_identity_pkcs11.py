"""The root's keys in a PKCS #11 token: they sign what keys in files sign, and are in no file. Needs SoftHSM."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.cli import app
from confide.errors import IdentityError
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.keys import verify
from confide.identity.pkcs11_keys import TokenPlace, make_keys, read_place
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = b"a PIN of the token"
needs_token = pytest.mark.skipif(
    not (Path(MODULE).exists() and shutil.which("softhsm2-util")), reason="needs SoftHSM: Debian's softhsm2"
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SoftHSM reads where its tokens are once a process."""
    pytest.importorskip("pkcs11", reason="needs the extra pkcs11")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    yield
    os.environ.pop("SOFTHSM2_CONF")
    if before is not None:
        os.environ["SOFTHSM2_CONF"] = before


def new_token(label: str) -> TokenPlace:
    command = [
        "softhsm2-util",
        "--init-token",
        "--free",
        "--label",
        label,
        "--so-pin",
        "12345678",
        "--pin",
        PIN.decode(),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return TokenPlace(module=MODULE, token=label)


@needs_token
def test_a_consortium_whose_root_is_in_a_token(tokens: None, tmp_path: Path) -> None:
    place = new_token("whole")
    made = Consortium.create(tmp_path / "root", "trial", passphrase=PIN, token=place)
    assert not (tmp_path / "root" / "root.key").exists() and not (tmp_path / "root" / "ca.key").exists()
    assert read_place(tmp_path / "root" / "token.json") == place
    request = make_request(tmp_path / "node", "node-a", "node")
    accept_admission(tmp_path / "node", made.admit(request), time.time(), root=made.root.public.hex())
    again = Consortium.open(tmp_path / "root", lambda: PIN)
    assert again.root.public == made.root.public
    assert again.revoke("node-a").version == again.roster.current.version
    verify(again.root.public, "domain", b"body", again.root.sign("domain", b"body"))
    with pytest.raises(IdentityError, match="cannot be written to a file"):
        again.root.save(tmp_path / "root.key")
    with pytest.raises(IdentityError, match="stays in its token"):
        again.authority.private_numbers()
    with pytest.raises(IdentityError, match="the PIN is wrong"):
        Consortium.open(tmp_path / "root", lambda: b"another")
    with pytest.raises(IdentityError, match="holds a key 'confide-root' already"):
        make_keys(place, PIN)
    with pytest.raises(IdentityError, match="holds a consortium's root already"):
        Consortium.create(tmp_path / "root", "trial", passphrase=PIN, token=place)


@needs_token
def test_another_token_and_none_are_said(tokens: None, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from confide.errors import IdentityError
        from confide.identity.consortium import Consortium
        from confide.identity.pkcs11_keys import TokenPlace, make_keys, open_keys
        folder, module, pin = Path(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
        Consortium.create(folder, "trial", passphrase=pin, token=TokenPlace(module=module, token="first"))
        make_keys(TokenPlace(module=module, token="second"), pin)
        path = folder / "token.json"
        path.write_text(path.read_text().replace("first", "second"))
        for place in (None, TokenPlace(module=module, token="nowhere"), TokenPlace(module=module, token="empty")):
            try:
                Consortium.open(folder, lambda: pin) if place is None else open_keys(place, pin)
            except IdentityError as error:
                print(error)
        """
    for label in ("first", "second", "empty"):
        new_token(label)
    command = [sys.executable, "-c", code, str(tmp_path / "root"), MODULE, PIN.decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    another, nowhere, empty = done.stdout.splitlines()
    assert "take that one's token" in another
    assert "did not open the token 'nowhere'" in nowhere
    assert "0 private and 0 public keys" in empty


@needs_token
def test_the_commands_take_a_token(tokens: None, tmp_path: Path) -> None:
    new_token("typed")
    (tmp_path / "pin").write_bytes(PIN + b"\n")
    common = ["--passphrase-file", str(tmp_path / "pin")]
    where = ["--token", "typed", "--token-module", MODULE]
    command = [sys.executable, "-m", "confide", "consortium"]
    made = [*command, "init", str(tmp_path / "root"), "--name", "trial", *where, *common]
    done = subprocess.run(made, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    make_request(tmp_path / "node", "node-a", "node")
    admit = ["admit", str(tmp_path / "node" / "request.json"), "--folder", str(tmp_path / "root")]
    done = subprocess.run(
        [*command, *admit, "--out", str(tmp_path / "a.json"), *common],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = CliRunner().invoke(app, ["consortium", "roster", "show", "--folder", str(tmp_path / "root")])
    assert shown.exit_code == 0 and "node-a" in shown.output


def test_one_option_without_the_other_is_refused(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["consortium", "init", str(tmp_path / "root"), "--name", "trial", "--token", "x"])
    assert isinstance(shown.exception, IdentityError) and "belong together" in str(shown.exception)
    assert not (tmp_path / "root").exists()


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_arbitrary_bytes_are_a_place_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("place") / "token.json"
    path.write_bytes(data)
    try:
        assert read_place(path).token
    except IdentityError as error:
        assert "token.json" in str(error)
