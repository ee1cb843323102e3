"""Uploads that a coordinator keeps: linked where that can be, never changed from outside, durable when settled."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from confide.codec.digest import DigestedFile, upload_digest
from confide.codec.layout import VectorLayout
from confide.codec.seal_vector import encode_upload
from confide.errors import StateError, UpdateError
from confide.sealing.collector.uploads import UploadStore

DATA = b"an upload"


def arrived(tmp_path: Path, data: bytes = DATA) -> Path:
    path = tmp_path / "arrived"
    path.write_bytes(data)
    path.chmod(0o644)
    return path


def keep(store: UploadStore, payload: Path, data: bytes = DATA) -> Path:
    return store.keep(7, "hospital-a", DigestedFile.read(payload), upload_digest(data), len(data))


def test_an_upload_is_linked_and_outlives_the_file_that_came(tmp_path: Path) -> None:
    store, payload = UploadStore(tmp_path / "kept"), arrived(tmp_path)
    kept = keep(store, payload)
    assert kept.stat().st_ino == payload.stat().st_ino
    payload.unlink()
    assert kept.read_bytes() == DATA
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_an_upload_from_another_file_system_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    kept = keep(UploadStore(tmp_path / "kept"), payload := arrived(tmp_path))
    assert kept.read_bytes() == DATA
    assert kept.stat().st_ino != payload.stat().st_ino
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    store = UploadStore(tmp_path / "kept")
    with pytest.raises(StateError, match=r"hospital-a: No space left on device\. Free space"):
        keep(store, arrived(tmp_path))
    assert not store.path(7, "hospital-a").exists()


def test_what_does_not_have_the_stated_hash_or_size_is_not_kept(tmp_path: Path) -> None:
    store, payload = UploadStore(tmp_path / "kept"), arrived(tmp_path, b"something")
    with pytest.raises(UpdateError, match="does not have the stated hash"):
        keep(store, payload)
    with pytest.raises(UpdateError, match="has 9 bytes; this run's layout takes 10"):
        store.keep(7, "hospital-a", DigestedFile.read(payload), upload_digest(b"something"), 10)
    assert not store.path(7, "hospital-a").exists()


def test_the_second_upload_of_a_node_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store, payload = UploadStore(tmp_path / "kept"), arrived(tmp_path)
    keep(store, payload)
    payload.unlink()
    kept = keep(store, arrived(tmp_path, b"a second"), b"a second")
    assert kept.read_bytes() == b"a second"


def test_settling_syncs_every_upload_once_and_then_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UploadStore(tmp_path / "kept")
    keep(store, arrived(tmp_path))
    # What an earlier process kept may not have been settled by it.
    earlier = store.path(7, "hospital-b")
    earlier.write_bytes(DATA)
    assert store.intact(7, "hospital-b", upload_digest(DATA))
    assert not store.intact(7, "hospital-c", upload_digest(DATA))
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    store.settle(7)
    assert sorted(synced[:-1]) == [str(store.path(7, "hospital-a")), str(earlier)]
    assert synced[-1] == str(earlier.parent)
    del synced[:]
    store.settle(7)
    assert synced == [str(earlier.parent)]


def test_an_encoding_never_writes_into_the_file_that_was_there(tmp_path: Path) -> None:
    layout = VectorLayout(parameters=3, scalars=1, bits=8, members=3, clip=1.0, rotation_seed=bytes(32))
    out, linked = tmp_path / "upload", tmp_path / "linked"

    def encode(value: float) -> bytes:
        update = np.full(3, value, dtype=np.float32)
        return encode_upload(update, [1], layout, rounding_key=bytes(32), masks=[], out=out)

    encode(0.1)
    linked.hardlink_to(out)
    before = linked.read_bytes()
    encode(0.2)
    assert linked.read_bytes() == before != out.read_bytes()
