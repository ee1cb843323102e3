"""Epoch secrets live in memory only: at no moment does a folder or the environment hold one."""

import base64
import io
import os
import shutil
from pathlib import Path

import pytest
from confide.proto import fleet_pb2
from confide.sealing.member.seal_log import rows
from confide.sealing.primitives import bundles, keys, shamir
from confide.sealing.roles import Opened
from confide_client.agent.status import show_seal_log
from rich.console import Console

from tests.attacks.liar import A, finish, stop_before
from tests.sealing_harness import STEPS, Federation


def spellings(secret: bytes) -> tuple[bytes, ...]:
    return secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret)[:40]


def assert_nowhere(folder: Path, secrets: list[bytes]) -> None:
    searched = 0
    environment = b"\0".join(name + b"=" + value for name, value in os.environb.items())
    for data in [environment, *(path.read_bytes() for path in folder.rglob("*") if path.is_file())]:
        searched += len(data)
        for secret in secrets:
            assert not any(spelling in data for spelling in spellings(secret))
    assert searched > 0 and len(secrets) > 0


def test_no_secret_is_ever_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    honest, honest_split = keys.new_secret, shamir.split

    def recording() -> bytes:
        made.append(honest())
        return made[-1]

    dealt: list[bytes] = []

    def recording_split(secret: bytes, *, threshold: int, members: int) -> list[bytes]:
        shares = honest_split(secret, threshold=threshold, members=members)
        dealt.extend(shares)
        return shares

    monkeypatch.setattr(keys, "new_secret", recording)
    monkeypatch.setattr(bundles.keys, "new_secret", recording)
    monkeypatch.setattr(shamir, "split", recording_split)
    federation = Federation(tmp_path, 3, size=64)
    federation.slot()
    for step in STEPS:
        if step in (fleet_pb2.ADVERTISE, fleet_pb2.SHARE):
            continue
        exchange = stop_before(federation, step) if step == fleet_pb2.TRAIN else federation.collector.exchange()
        assert exchange is not None
        for node, body in exchange.bodies.items():
            federation.collector.receive(node, *federation.ask(step, node, body))
            assert_nowhere(tmp_path, made)
        for node in federation.members:
            # Nodes never write a share; the coordinator keeps the revealed ones, which open the sum and no more.
            assert_nowhere(tmp_path / node, dealt)
        federation.collector.close_exchange()
    finish(federation)
    assert_nowhere(tmp_path, made)


def test_secrets_are_dropped_as_the_table_says(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    stop_before(federation, fleet_pb2.SHARE)
    epoch = federation.members[A].epoch
    assert epoch is not None and epoch.own.share_secret is not None
    federation.drive()
    assert epoch.own.share_secret is not None and epoch.own.seeds[0] is not None
    stop_before(federation, fleet_pb2.CONFIRM)
    assert epoch.own.share_secret is None and epoch.kept is None
    assert epoch.own.seeds[0] is None and epoch.own.mask_secrets[0] is None and epoch.own.seeds[1] is not None
    assert (tmp_path / A / "upload-1").exists()
    assert all(dealt.self_mask[0].share for dealt in epoch.received.values())
    federation.drive()
    assert all(not dealt.self_mask[0].share and not dealt.mask_secret[0].share for dealt in epoch.received.values())
    assert all(dealt.self_mask[1].share for dealt in epoch.received.values())
    federation.end(federation.collector.outcome)  # type: ignore[arg-type]
    assert not (tmp_path / A / "upload-1").exists()
    assert not list((tmp_path / "coordinator" / "uploads").iterdir())


def test_the_seal_log_says_what_was_signed_and_revealed(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 3)
    federation.slot()
    federation.slot({fleet_pb2.CONFIRM: [A]})
    one, two = rows(tmp_path / A / "seal-log.jsonl")
    assert list(one) == ["run", "slot", "reserved", "spent", "signed", "revealed", "ended"]
    assert one["signed"]["survivors"] == sorted(federation.members)
    assert one["revealed"] == {"self_masks": sorted(federation.members), "mask_secrets": []}
    assert one["ended"] == {"committed": True, "failure": "", "contributed": True}
    assert "signed" not in two and two["ended"]["failure"] == "QUORUM_SHORT"


def test_the_seal_log_command_shows_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "world", 4)
    assert isinstance(federation.slot(silent={fleet_pb2.TRAIN: ("hospital-03",)}), Opened)
    member = tmp_path / "run" / "member"
    member.mkdir(parents=True)
    shutil.copy(federation.members["hospital-00"].context.log.journal.path, member / "seal-log.jsonl")
    shown = Console(record=True, width=2000, file=io.StringIO())
    show_seal_log(tmp_path / "run", shown)
    lines = shown.export_text().splitlines()
    for event, fact in (("reserved", "round=1"), ("spent", "upload_digest="), ("signed", "hospital-02"),
                        ("revealed", "mask_secrets=['hospital-03']"), ("ended", "committed=True")):  # fmt: skip
        assert any(event in line and fact in line for line in lines), event
