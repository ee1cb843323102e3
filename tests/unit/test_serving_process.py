"""The process's parts in this process: what it refuses to open to others, TLS, aliases whose adapter is unfit."""

import asyncio
import datetime
import logging
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from confide.errors import StateError, TransportError
from confide_client.endpoint import Endpoint
from confide_server.serving import process
from confide_server.serving.process import KEPT_LOADED, Serving, Settings
from confide_server.state import serving_aliases
from confide_server.state.serving_aliases import Standing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.served_models import running, strong_adapter, strong_llama

QUESTION = [{"role": "user", "content": "How thick must the wall be?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_llama(tmp_path_factory.mktemp("base"))


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for localhost, which signs itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, plain))
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bind": "10.0.0.1"}, "--plain-http if a proxy"),
        ({"bind": "192.168.0.1", "plain": True, "keys": False}, "without keys only this machine may ask"),
        ({"certificate": Path("x")}, "needs both, --certificate and --key"),
        ({"library": Path("x")}, "--library and --library-embedder"),
        ({"certificate": Path("x"), "key": Path("y")}, "do not serve TLS"),
        ({"upstream": "ftp://x"}, "http://"),
        ({"name": "m" * 65}, "at most 64 characters"),
        ({"embedder_name": "m" * 65}, "by --embedder-name"),
    ],
)
def test_what_would_be_open_or_half_is_refused(tmp_path: Path, base: Path, options: Any, said: str) -> None:
    with pytest.raises(StateError, match=said):
        Serving(Settings(state=tmp_path / "state", base=base, **options))


def test_a_folder_is_served_once_and_over_tls(tmp_path: Path, base: Path) -> None:
    cert, key = certificate(tmp_path)
    settings = Settings(state=tmp_path / "state", base=base, name="wall", port=0, certificate=cert, key=key, keys=False)
    with running(settings) as (_, port):
        with pytest.raises(StateError, match=r"serves from .* already"):
            Serving(settings)
        trusting = Endpoint(f"https://localhost:{port}/v1", ca=cert)
        assert trusting.models() == ["wall"] and "".join(trusting.answer("wall", QUESTION, max_tokens=8))
        with pytest.raises(TransportError, match="cannot be reached"):
            Endpoint(f"https://localhost:{port}/v1").models()
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}/healthz")
        context = ssl.create_default_context(cafile=str(cert))
        reply = httpx.get(
            f"https://localhost:{port}/healthz", verify=context, headers={"Host": "evil.example"}, timeout=60
        )
        assert reply.status_code == 421
    Serving(Settings(state=tmp_path / "state", base=base, keys=False))._opened.close()  # the folder is free again


def test_an_unfit_adapter_leaves_its_alias_as_it_was(tmp_path: Path, base: Path) -> None:
    settings = Settings(state=tmp_path / "state", base=base, name="plain", keys=False)
    serving = Serving(settings)
    good = serving.store.keep(strong_adapter(base, tmp_path / "good", 1), None)
    broken = serving.store.keep(strong_adapter(base, tmp_path / "broken", 2), None)
    weights = serving.store.path(broken.sha256) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])

    async def live() -> None:
        def target(alias: str) -> str | None:
            found = serving.catalogue.find(alias)
            return None if found is None else found.adapter

        def point(alias: str, sha256: str, base_sha256: str = good.base_sha256) -> None:
            serving_aliases.point(serving.database, Standing(alias, sha256, base_sha256))

        point("support", good.sha256)
        await serving.refresh()
        assert target("support") == good.sha256 and target("plain") == ""
        point("support", broken.sha256)
        point("other", good.sha256, "0" * 64)
        await serving.refresh()
        assert target("support") == good.sha256 and target("other") is None
        serving_aliases.roll_back(serving.database, "support")
        serving_aliases.remove(serving.database, "other")
        point("plain", good.sha256)
        await serving.refresh()
        assert target("support") == good.sha256 == target("plain")
        serving_aliases.remove(serving.database, "support")
        await serving.refresh()
        serving_aliases.remove(serving.database, "plain")
        await serving.refresh()
        assert target("support") is None and target("plain") == "", "the base has its name back"
        await serving.engine.close()

    asyncio.run(live())
    serving._opened.close()


def test_nobody_fills_the_log(tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP is a line of the log for whoever sends it, without a key and as often as they like."""
    settings = Settings(state=tmp_path / "state", base=base, name="wall", port=0, keys=False)
    with running(settings) as (_, port):
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
                peer.sendall(b"no HTTP at all\r\n\r\n")
                assert b" 400 " in peer.recv(4096)
        filtered = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "said", (), None)
        (seldom,) = logging.getLogger("uvicorn.error").filters
        assert [bool(seldom.filter(filtered)) for _ in range(2)] == [True, False]  # type: ignore[union-attr]  # a Filter
    assert sum("Invalid HTTP request" in record.getMessage() for record in caplog.records) <= 1


def test_an_alias_is_tried_again_and_holds_up_no_other(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that no check foresaw ended the task that follows the aliases, and no rollback was heard any more."""
    monkeypatch.setattr(process, "POLL_S", 0.02)
    monkeypatch.setattr(process, "RETRY_S", 0.1)
    settings = Settings(state=tmp_path / "state", base=base, name="plain", port=0, keys=False)
    with running(settings) as (serving, _):
        good, later = (serving.store.keep(strong_adapter(base, tmp_path / str(n), n), None) for n in range(2))
        plain, down = serving.engine.add_adapter, [True]

        async def add_adapter(sha256: str, folder: str) -> None:
            if sha256 == later.sha256 and down[0]:
                raise AttributeError("nobody thought of this")
            await plain(sha256, folder)

        monkeypatch.setattr(serving.engine, "add_adapter", add_adapter)

        def stands(alias: str, sha256: str) -> bool:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                found = serving.catalogue.find(alias)
                if found is not None and found.adapter == sha256:
                    return True
                time.sleep(0.02)
            return False

        for alias, kept in (("a", later), ("b", good)):
            serving_aliases.point(serving.database, Standing(alias, kept.sha256, kept.base_sha256))
        assert stands("b", good.sha256) and serving.catalogue.find("a") is None
        down[0] = False
        assert stands("a", later.sha256), "without another change"


def test_adapters_that_nobody_names_are_let_go_in_the_end(tmp_path: Path, base: Path) -> None:
    serving = Serving(Settings(state=tmp_path / "state", base=base, keys=False))

    async def live() -> None:
        kept = [serving.store.keep(strong_adapter(base, tmp_path / str(n), n, rank=1), None) for n in range(7)]
        for one in kept:
            serving_aliases.point(serving.database, Standing("support", one.sha256, one.base_sha256))
            await serving.refresh()
        loaded = serving.engine.load().adapters
        assert set(loaded) == {one.sha256 for one in kept[-KEPT_LOADED - 1 :]}
        await serving.engine.close()

    asyncio.run(live())
    serving._opened.close()
