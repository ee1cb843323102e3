"""Attacks on the gate before a release: no evidence, another model's, edited, old, a stranger's, one administrator."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confide.errors import ConfideError, IdentityError, StateError
from confide.identity.keys import SigningKey
from confide.identity.roster import GateRule, Role, Rules
from confide.identity.submission import sign_override
from confide.proto import admin_pb2 as pb
from confide_server.rlhf import gate, release_evidence
from confide_server.state.release_gate import Bound
from hypothesis import given
from hypothesis import strategies as st

from tests.admin_world import AdminWorld, running_world

FIGURES = {
    "prompts": 48, "answers": 96, "win_rate": 0.7, "interval": (0.6, 0.8), "kl": 0.5, "perplexity": (20.0, 20.0),
    "length_ratio": 1.1, "repetition": 0.1, "organizations": {}, "seed": 1,
}  # fmt: skip


@dataclass
class Gated:
    """An aligned model that is signed for release, and nothing more."""

    world: AdminWorld
    release: pb.Release

    @property
    def client(self) -> Any:
        return self.world.client(Role.ADMINISTRATOR)

    @property
    def key(self) -> SigningKey:
        return self.world.member(Role.ADMINISTRATOR).identity

    @property
    def said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.release.document)
        return said

    def publish(self) -> pb.Release:
        told: pb.Release = self.client.publish_release(self.release.name, self.release.number)
        return told

    def attach(self, evidence: bytes, signer: str = "") -> pb.Release:
        told: pb.Release = self.client.attach_evidence(self.release.name, self.release.number, evidence, signer=signer)
        return told


def document(said: dict[str, Any], *, baseline: str = "", made_at: float = 0.0, **figures: Any) -> dict[str, Any]:
    """Evidence of the model that a release's document names."""
    measured = gate.Figures(**(FIGURES | figures))
    thresholds = gate.Thresholds()
    released = {
        "base_sha256": said["base_model_sha256"], "model_sha256": said["model_sha256"],
        "specification_sha256": said["specification_sha256"], "baseline_sha256": baseline,
    }  # fmt: skip
    verdict = gate.decide(measured, thresholds)
    lineage = {"released": released}
    return gate.evidence_of(measured, thresholds, verdict, lineage=lineage, made_at=made_at or time.time())


def signed_release(world: AdminWorld, name: str, run_id: str, round: int = 0) -> Gated:
    client = world.client(Role.ADMINISTRATOR)
    made = client.create_release(name, run_id, round)
    return Gated(world, client.sign_release(made, world.member(Role.ADMINISTRATOR).identity))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminWorld]:
    with running_world(tmp_path_factory.mktemp("gate")) as running:
        running.admit("second-admin", Role.ADMINISTRATOR)
        yield running


@pytest.fixture(scope="module")
def aligned(world: AdminWorld) -> str:
    return world.finished("aligned", "dpo")


def test_a_new_consortium_asks_for_evidence_of_aligned_models_and_of_no_others(world: AdminWorld, aligned: str) -> None:
    plain = signed_release(world, "plain", world.finished("plain"))
    assert plain.release.gate == "not_asked" and plain.publish().current
    classifier = signed_release(world, "triage", world.finished("triage", "classification"))
    assert classifier.publish().current
    gated = signed_release(world, "bare", aligned)
    assert gated.release.gate == "missing"
    with pytest.raises(StateError, match="GATE_MISSING"):
        gated.publish()


def test_evidence_lets_exactly_its_release_pass(world: AdminWorld, aligned: str) -> None:
    gated = signed_release(world, "passing", aligned)
    evidence = gate.sign_evidence(document(gated.said), gated.key)
    told = gated.attach(evidence)
    assert (told.gate, told.evidence_by) == ("passed", "administrator")
    assert gated.attach(evidence).evidence_sha256 == told.evidence_sha256, "the same again changes nothing"
    assert gated.publish().current
    events = [one.event for one in world.client(Role.AUDITOR).list_audit(limit=20).entries]
    assert "release_evidence" in events


def _another_model(said: dict[str, Any]) -> dict[str, Any]:
    return document(said | {"model_sha256": "ab" * 32})


def _another_specification(said: dict[str, Any]) -> dict[str, Any]:
    return document(said | {"specification_sha256": "ab" * 32})


def _another_base(said: dict[str, Any]) -> dict[str, Any]:
    return document(said | {"base_model_sha256": "ab" * 32})


def _unbound(said: dict[str, Any]) -> dict[str, Any]:
    return document(said) | {"lineage": {}}


def _claims_to_pass(said: dict[str, Any]) -> dict[str, Any]:
    return document(said, interval=(0.4, 0.8)) | {"passed": True, "failed": []}


def _own_thresholds(said: dict[str, Any]) -> dict[str, Any]:
    lax = dict.fromkeys(document(said)["thresholds"], 1e9) | {"win_rate": 0.0, "prompts": 1}
    return document(said, prompts=3, interval=(1.0, 1.0), win_rate=1.0) | {"thresholds": lax, "passed": True}


ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "another model": (_another_model, "GATE_OF_ANOTHER_MODEL"),
    "another specification": (_another_specification, "GATE_OF_ANOTHER_MODEL"),
    "another base": (_another_base, "GATE_OF_ANOTHER_MODEL"),
    "no model named": (_unbound, "GATE_UNBOUND"),
    "a weaker baseline": (lambda said: document(said, baseline="cd" * 32), "GATE_OF_ANOTHER_BASELINE"),
    "not passed": (lambda said: document(said, interval=(0.4, 0.9)), "GATE_NOT_PASSED"),
    "a verdict that its figures do not bear": (_claims_to_pass, "GATE_NOT_PASSED"),
    "thresholds of its own": (_own_thresholds, "GATE_NOT_PASSED"),
    "older than thirty days": (lambda said: document(said, made_at=time.time() - 31 * 86400), "GATE_STALE"),
    "from the future": (lambda said: document(said, made_at=time.time() + 86400), "GATE_STALE"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_evidence_that_is_signed_and_does_not_count(world: AdminWorld, aligned: str, attack: str) -> None:
    made, name = ATTACKS[attack]
    gated = signed_release(world, "attacked", aligned)
    with pytest.raises(StateError, match=name):
        gated.attach(gate.sign_evidence(made(gated.said), gated.key))
    with pytest.raises(StateError, match="GATE_MISSING"):
        gated.publish()


def test_edited_evidence_and_signatures_of_others(world: AdminWorld, aligned: str) -> None:
    gated = signed_release(world, "attacked", aligned)
    failing = json.loads(gate.sign_evidence(document(gated.said, interval=(0.4, 0.9)), gated.key))
    failing["document"]["figures"]["interval"] = [0.6, 0.9]
    failing["document"] |= {"passed": True, "failed": []}
    edited = json.dumps(failing, sort_keys=True, separators=(",", ":")).encode()
    good = document(gated.said)
    with pytest.raises(IdentityError):
        gated.attach(edited)
    with pytest.raises(IdentityError):
        gated.attach(gate.sign_evidence(good, SigningKey.generate()))
    with pytest.raises(IdentityError):
        gated.attach(gate.sign_evidence(good, gated.key), signer="second-admin")
    with pytest.raises(StateError, match="GATE_SIGNER"):
        gated.attach(gate.sign_evidence(good, world.member(Role.NODE).identity), signer="hospital-a")
    assert (
        gated.attach(gate.sign_evidence(good, world.member(Role.AUDITOR).identity), signer="auditor").gate == "passed"
    )


def test_old_evidence_is_not_good_again(world: AdminWorld, aligned: str) -> None:
    """Neither for another name, nor once the name stands for another model than it was measured against."""
    first = signed_release(world, "replayed", aligned, round=1)
    evidence = gate.sign_evidence(document(first.said), first.key)
    first.attach(evidence)
    elsewhere = signed_release(world, "elsewhere", aligned, round=1)
    with pytest.raises(StateError, match="GATE_EVIDENCE_REPLAYED"):
        elsewhere.attach(evidence)
    second = signed_release(world, "replayed", aligned, round=2)
    early = gate.sign_evidence(document(second.said), second.key)
    assert second.attach(early).gate == "passed", "nothing is published yet"
    first.publish()
    with pytest.raises(StateError, match="GATE_OF_ANOTHER_BASELINE"):
        second.publish()
    against_first = document(second.said, baseline=first.said["model_sha256"])
    second.attach(gate.sign_evidence(against_first, second.key))
    assert second.publish().current


def test_an_administrator_alone_overrides_nothing_and_two_are_remembered(world: AdminWorld, aligned: str) -> None:
    gated = signed_release(world, "hurry", aligned)
    other = world.members["second-admin"].identity
    assert gated.client.override_gate(gated.release, "the ward waits", gated.key).gate == "missing"
    assert gated.client.override_gate(gated.release, "the ward waits still", gated.key).gate == "missing"
    with pytest.raises(StateError, match="GATE_MISSING"):
        gated.publish()
    elsewhere = signed_release(world, "hurry-elsewhere", aligned)
    with pytest.raises(IdentityError):  # of another release
        world.parts.releases.override(
            "hurry", 1, "second-admin", "r", sign_override(other, elsewhere.release.document, "r")
        )
    with pytest.raises(IdentityError):  # with another reason
        world.parts.releases.override(
            "hurry", 1, "second-admin", "s", sign_override(other, gated.release.document, "r")
        )
    with pytest.raises(IdentityError):
        operator = world.member(Role.OPERATOR).identity
        world.parts.releases.override("hurry", 1, "operator", "r", sign_override(operator, gated.release.document, "r"))
    with pytest.raises(StateError, match="says why"):
        gated.client.override_gate(gated.release, " ", gated.key)
    told = world.clients["second-admin"].override_gate(gated.release, "seen by two doctors", other)
    assert (told.gate, list(told.overridden_by)) == ("overridden", ["administrator", "second-admin"])
    assert gated.publish().current
    lines = world.client(Role.AUDITOR).list_audit(limit=50).entries
    told_of = [json.loads(one.body)["reason"] for one in lines if one.event == "release_gate_overridden"]
    assert told_of == ["seen by two doctors", "the ward waits"]


def test_a_run_that_goes_on_from_an_aligned_one_is_aligned(world: AdminWorld, aligned: str) -> None:
    laundered = signed_release(world, "laundered", world.finished("laundered", "sft", parent=aligned))
    assert laundered.release.gate == "missing"
    with pytest.raises(StateError, match="GATE_MISSING"):
        laundered.publish()


def test_what_each_rule_asks_for(tmp_path: Path) -> None:
    with running_world(tmp_path / "rules") as world:
        runs = {method: world.finished(method, method) for method in ("sft", "dpo", "classification")}
        asked = {}
        for rule in GateRule:
            world.consortium.set_rules(Rules(release_gate=rule))
            world.coordinator.roster.accept(world.consortium.roster.signed)
            found = {method: signed_release(world, f"{rule.value}-{method}", run) for method, run in runs.items()}
            asked[rule.value] = [method for method, one in found.items() if one.release.gate == "missing"]
        assert asked == {"off": [], "aligned": ["dpo"], "required": ["sft", "dpo"]}


KEY = SigningKey.generate()


def signed_bytes(value: Any) -> bytes:
    """The value, signed as evidence where it can be."""
    try:
        return gate.sign_evidence(value if isinstance(value, dict) else {"document": value}, KEY)
    except (ValueError, TypeError):
        return b"{}"


@given(data=st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.dictionaries(
        st.sampled_from(["version", "made_at", "lineage", "figures", "released", "x"]), inner, max_size=4)
).map(signed_bytes))  # fmt: skip
def test_arbitrary_evidence_is_refused_by_name(data: bytes) -> None:
    bound = Bound(model_sha256="a" * 64, specification_sha256="b" * 64, base_model_sha256="c" * 64, baseline_sha256="")
    with pytest.raises(ConfideError):
        release_evidence.check(data, KEY.public, bound, 0.0)
