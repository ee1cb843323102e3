"""Releases of adapters that `confide rlhf train` made: past the same gate, and by a document that nobody can bend."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confide import canonical
from confide.errors import ConfideError, StateError
from confide.identity.roster import Role
from confide_server.rlhf import gate
from confide_server.rlhf.training.documents import EXAMPLE, parse_toml
from confide_server.state.release_subject import AlignedModel

from tests.admin_world import AdminWorld, running_world
from tests.attacks.test_attack_release_gate import Gated, document


def aligned(adapter: str = "ad", **changes: Any) -> bytes:
    run = parse_toml(EXAMPLE)
    made = AlignedModel(
        version=1, adapter_sha256=adapter * 32, base_sha256=run.base.sha256,
        specification=run.model_dump(mode="json"), specification_sha256=run.digest, steps=20, stopped="",
    )  # fmt: skip
    return canonical.encode(json.loads(made.to_bytes()) | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminWorld]:
    with running_world(tmp_path_factory.mktemp("aligned")) as running:
        yield running


def signed(world: AdminWorld, name: str, model: bytes) -> Gated:
    client = world.client(Role.ADMINISTRATOR)
    made = client.create_aligned_release(name, model, "of public answers")
    return Gated(world, client.sign_release(made, world.member(Role.ADMINISTRATOR).identity))


def test_an_aligned_adapter_is_released_past_the_gate_and_held_against_what_stood_before(world: AdminWorld) -> None:
    first = signed(world, "polite", aligned())
    assert (first.release.run_id, first.release.round, first.release.gate) == ("", 0, "missing")
    assert first.said["aligned"]["specification"]["method"] == "dpo" and first.said["model_sha256"] == "ad" * 32
    with pytest.raises(StateError, match="GATE_MISSING"):
        first.publish()
    first.attach(gate.sign_evidence(document(first.said), first.key))
    assert first.publish().current
    same = world.client(Role.ADMINISTRATOR).create_aligned_release("polite", aligned(), "of public answers")
    assert same.number == 1, "the same model again is the same release"
    second = signed(world, "polite", aligned("be"))
    with pytest.raises(StateError, match="GATE_OF_ANOTHER_BASELINE"):
        second.attach(gate.sign_evidence(document(second.said), second.key))
    second.attach(gate.sign_evidence(document(second.said, baseline="ad" * 32), second.key))
    assert second.publish().current and [one.number for one in world.client(Role.AUDITOR).list_releases().releases]
    entries = [json.loads(one.body) for one in world.client(Role.AUDITOR).list_audit(limit=20).entries]
    assert any(one["event"] == "release_published" and one["run_id"] == "" for one in entries)


def test_a_merged_model_is_released_by_its_own_hash_and_evidence(world: AdminWorld) -> None:
    merged = signed(world, "merged", aligned(merged_sha256="ce" * 32))
    assert merged.said["model_sha256"] == "ce" * 32 and merged.said["aligned"]["adapter_sha256"] == "ad" * 32
    of_the_adapter = document(merged.said | {"model_sha256": "ad" * 32})
    with pytest.raises(StateError, match="GATE_OF_ANOTHER_MODEL"):
        merged.attach(gate.sign_evidence(of_the_adapter, merged.key))
    merged.attach(gate.sign_evidence(document(merged.said), merged.key))
    assert merged.publish().current
    adapter = world.client(Role.ADMINISTRATOR).create_aligned_release("merged", aligned(), "of public answers")
    assert adapter.number == 2, "the adapter is another model than its sum with the base"


@pytest.mark.parametrize(
    "bent",
    [
        aligned(specification_sha256="00" * 32),
        aligned(base_sha256="11" * 32),
        aligned(specification={"base": 3}),
        aligned(adapter_sha256="short"),
        aligned(merged_sha256="short"),
        aligned(version=2),
        aligned(more=1),
        aligned() + b" ",
        b"[]",
        b"\xff",
        aligned(stopped="x" * 70_000),
    ],
)
def test_a_document_that_does_not_hold_together_is_refused(world: AdminWorld, bent: bytes) -> None:
    with pytest.raises(ConfideError):
        world.client(Role.ADMINISTRATOR).create_aligned_release("bent", bent)
    assert not world.client(Role.AUDITOR).list_releases("bent").releases
