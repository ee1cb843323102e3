"""`confide audit` and `confide report` on a node with a real offer, ledger and tiny model."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from confide.errors import IdentityError, PolicyRefusal, SpecificationError, StateError
from confide.identity.signed import open_document
from confide.methods import base as methods
from confide.models.architecture import load_tokenizer
from confide.models.store import ModelStore
from confide.models.trainable import build, initial_state, load_trainable, schema_of
from confide.privacy.audit.scoring import canary_losses
from confide.privacy.filter import Budget
from confide.privacy.ledger import LEDGER_NAME, Ledger
from confide.privacy.organization import organization_noise
from confide.privacy.plan import unit_plan
from confide.runs.specification import Specification
from confide_client.audit.auditing import AUDIT_FILE, load_release
from confide_client.audit.canaries import planted, with_canaries
from confide_client.commands import audit as audit_command
from confide_client.commands.report import report as report_command
from confide_client.data.datasets import DataSets
from confide_client.runs.offers import verify_offer
from confide_client.runs.plan import plan_of
from confide_client.runs.records import Record
from confide_client.state import StateFolder
from typer.testing import CliRunner

from tests.fixed_canaries import fixed_canaries
from tests.node_worlds import World, faq
from tests.private_federation import fixed_noise
from tests.tiny_models import tiny_llama
from tests.training_specs import specification

__all__ = ["fixed_canaries", "fixed_noise"]
pytestmark = pytest.mark.usefixtures("fixed_canaries", "fixed_noise")
PRIVATE = {"unit": "record", "epsilon": 0.5, "delta": 1e-3, "clip": 0.5}


@dataclass(frozen=True)
class Site:
    world: World
    state: StateFolder
    base: Path
    spec: Specification
    run_id: str

    @property
    def folder(self) -> Path:
        return self.state.run(self.run_id)

    def audit(self, *arguments: str) -> Any:
        return CliRunner().invoke(audit_command.app, [*arguments, "--state", str(self.state.root)])

    def report(self, *arguments: str) -> Any:
        app = typer.Typer()
        app.command()(report_command)
        return CliRunner().invoke(app, [*arguments, "--state", str(self.state.root)])

    def settle(self, status: str) -> None:
        record = Record.load(self.folder)
        assert record is not None
        replace(record, status=status).save(self.folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path, str]:
    root = tmp_path_factory.mktemp("world")
    world = World.make(root, ("hospital-a", "hospital-b", "hospital-c"))
    store = ModelStore(root / "models")
    digest = store.add(str(tiny_llama(root / "llama")), "tiny")
    state = world.equip("hospital-a", digest, root / "models", faq(root / "faq.jsonl", 20))
    text = state.policy.read_text().replace('privacy_units = ["none"]', 'privacy_units = ["none", "record"]')
    state.policy.write_text(text + "canaries = true\n[budgets.faq]\nepsilon = 2.0\ndelta = 1e-3\n")
    return world, store.path(digest), digest


def make_site(world: tuple[World, Path, str], clip_norm: float | None = None, **sections: Any) -> Site:
    consortium, base, digest = world
    state = consortium.state("hospital-a")
    spec = specification(
        model={"sha256": digest},
        federation={"rounds": 1, "data": "faq", "min_cohort": 2, "clip_norm": clip_norm},
        training={"local_steps": 2},
        **sections,
    )
    run_id = secrets.token_hex(16)
    initial = schema_of(spec, base).encode(initial_state(spec, base))
    member = consortium.members["hospital-a"]
    offer = verify_offer(consortium.offer(spec, initial, run_id), run_id, member, member.roster.current)
    offer.save(state.run(run_id))
    record = Record(
        status="waiting", name=spec.name, administrator="admin", offer_sha256=offer.sha256, rounds=1, sealing="none",
        offered_at=0.0,
    )  # fmt: skip
    record.save(state.run(run_id))
    return Site(consortium, state, base, spec, run_id)


@pytest.fixture
def site(world: tuple[World, Path, str]) -> Iterator[Site]:
    made = make_site(world, privacy=PRIVATE)
    yield made
    (made.state.root / LEDGER_NAME).unlink(missing_ok=True)


def charge(site: Site) -> None:
    """Approve, reserve and spend one slot in the node's ledger, as a run does."""
    budget = Budget(epsilon=2.0, delta=1e-3)
    ledger = Ledger(site.state.root / LEDGER_NAME)
    ledger.approve(
        run=site.run_id, group="faq", data="faq", unit="record", specification=site.spec.digest,
        cost=unit_plan(site.spec, 15).cost, budget=budget,
    )  # fmt: skip
    ledger.reserve(site.run_id, 1, budget)
    ledger.spend(site.run_id, 1)
    ledger.close()


def manifest(site: Site, **changes: Any) -> Path:
    rounds = [
        {
            "round": 1,
            "contributors": ["hospital-a", "hospital-b"],
            "dropped": {"hospital-c": "out of <memory>"},
            "promise": {"kind": "none"},
            "metrics": {},
        }
    ]
    document = {"run_id": site.run_id, "specification_sha256": site.spec.digest, "rounds": rounds, **changes}
    path = site.folder / "manifest.json"
    path.write_text(json.dumps(document))
    return path


def test_a_rehearsal_audits_and_its_result_stands_in_the_report(site: Site, tmp_path: Path) -> None:
    done = site.audit("rehearse", site.run_id[:8], "--count", "40")
    assert done.exit_code == 0, done.output
    assert "does not contradict" in done.output
    charge(site)
    written = site.report(site.run_id[:8], "--to", str(tmp_path), "--manifest", str(manifest(site)))
    assert written.exit_code == 0, written.output
    member = site.world.members["hospital-a"]
    document = open_document((tmp_path / "report.json").read_bytes(), "privacy-report", member.identity.public)
    assert document["verdict"] == "not contradicted"
    assert document["claim"]["unit"] == "record"
    assert document["audit"]["kind"] == "rehearsal"
    assert document["audit"]["result"]["bound"]["canaries"] == 40
    spend = document["spend"]
    assert (spend["slots_spent"], spend["slots_approved"], spend["budget_epsilon"]) == (1, 2, 2.0)
    assert 0 < spend["run_epsilon_spent"] < 0.5
    assert document["rounds"][0]["dropped"] == {"hospital-c": "out of <memory>"}
    page = (tmp_path / "report.html").read_text()
    assert "out of &lt;memory&gt;" in page
    assert "hospital-a, hospital-b" in page
    assert "@media print" in page
    assert all(word not in page for word in ("<script", "http://", "https://", "src=", "<link"))
    checked = site.report("--verify", str(tmp_path / "report.json"))
    assert checked.exit_code == 0, checked.output


def test_a_contradicted_claim_ends_both_commands_with_status_3(site: Site, tmp_path: Path) -> None:
    assert site.audit("rehearse", site.run_id, "--count", "40").exit_code == 0
    stored = json.loads((site.folder / AUDIT_FILE).read_bytes())
    stored["result"]["bound"] |= {"epsilon": 0.75, "correct": 38, "guesses": 40}
    # The verdict is calculated from the numbers, whatever the stored word is.
    assert stored["result"]["contradicted"] is False
    (site.folder / AUDIT_FILE).write_text(json.dumps(stored))
    written = site.report(site.run_id, "--to", str(tmp_path))
    assert written.exit_code == 3, written.output
    assert "CONTRADICTS" in (tmp_path / "report.html").read_text()
    assert site.report("--verify", str(tmp_path / "report.json")).exit_code == 3


def test_without_audit_ledger_or_manifest_the_report_says_what_is_not_known(site: Site, tmp_path: Path) -> None:
    written = site.report(site.run_id, "--to", str(tmp_path))
    assert written.exit_code == 0, written.output
    page = (tmp_path / "report.html").read_text()
    for sentence in ("was not audited", "no cost of this run", "not known on this node", "Nothing was sealed"):
        assert sentence in page


def test_a_run_without_privacy_claims_none(world: tuple[World, Path, str], tmp_path: Path) -> None:
    plain = make_site(world)
    written = plain.report(plain.run_id, "--to", str(tmp_path))
    assert written.exit_code == 0, written.output
    page = (tmp_path / "report.html").read_text()
    assert "made no promise of differential privacy" in page
    assert "Claimed epsilon" not in page


def test_node_plan_says_the_shared_noise_and_that_it_is_useless_here(world: tuple[World, Path, str]) -> None:
    shared = {**PRIVATE, "unit": "organization"}
    site = make_site(world, privacy=shared, sealing={"kind": "sealed"}, clip_norm=0.5)
    plan = plan_of(site.state, site.run_id)
    text = "\n".join(plan.lines)
    assert "as if 3 organizations took part, the fewest that are allowed" in text
    assert "each add Skellam noise" in text and "spend of the whole run: epsilon 0.5" in text
    assert any(warning.startswith("too few organizations") for warning in plan.warnings)


def test_the_report_of_an_organization_level_run(world: tuple[World, Path, str], tmp_path: Path) -> None:
    shared = {**PRIVATE, "unit": "organization", "epsilon": 8.0}
    site = make_site(world, privacy=shared, sealing={"kind": "sealed"}, clip_norm=0.5)
    budget = Budget(epsilon=8.0, delta=1e-3)
    with contextlib.closing(Ledger(site.state.root / LEDGER_NAME)) as ledger:
        ledger.approve(
            run=site.run_id, group="faq", data="faq", unit="organization", specification=site.spec.digest,
            cost=organization_noise(site.spec, schema_of(site.spec, site.base).size).cost, budget=budget,
        )  # fmt: skip
        ledger.reserve(site.run_id, 1, budget)
        ledger.spend(site.run_id, 1)
    try:
        assert site.report(site.run_id, "--to", str(tmp_path), "--manifest", str(manifest(site))).exit_code == 0
    finally:
        (site.state.root / LEDGER_NAME).unlink()
    page = " ".join((tmp_path / "report.html").read_text().split())
    for sentence in (
        "organization&#39;s whole contribution", "Skellam", "from all nodes together",
        "nothing is gained from sampling",
        "learns nothing of this node&#39;s update but a sum", "1 of 2", "Single records are protected only as part",
    ):  # fmt: skip
        assert sentence in page, sentence
    assert "Internal" not in page


def test_an_altered_report_does_not_verify(site: Site, tmp_path: Path) -> None:
    site.report(site.run_id, "--to", str(tmp_path))
    path = tmp_path / "report.json"
    path.write_bytes(path.read_bytes().replace(b'"epsilon":0.5', b'"epsilon":0.1'))
    assert isinstance(site.report("--verify", str(path)).exception, IdentityError)
    assert isinstance(site.report("--verify", str(path), "--key", "zz").exception, IdentityError)
    foreign = site.world.members["hospital-b"].identity.public.hex()
    assert isinstance(site.report("--verify", str(path), "--key", foreign).exception, IdentityError)


def test_a_manifest_of_another_run_is_refused(site: Site, tmp_path: Path) -> None:
    other = manifest(site, run_id="0" * 32)
    failed = site.report(site.run_id, "--to", str(tmp_path), "--manifest", str(other))
    assert isinstance(failed.exception, StateError)
    assert "another run" in str(failed.exception)
    other.write_text("[]")
    failed = site.report(site.run_id, "--to", str(tmp_path), "--manifest", str(other))
    assert "not a run's manifest" in str(failed.exception)


def test_an_audit_of_another_claim_is_not_reported(site: Site, tmp_path: Path) -> None:
    site.audit("rehearse", site.run_id, "--count", "40")
    stored = json.loads((site.folder / AUDIT_FILE).read_bytes())
    stored["result"]["claimed_epsilon"] = 8.0
    (site.folder / AUDIT_FILE).write_text(json.dumps(stored))
    failed = site.report(site.run_id, "--to", str(tmp_path))
    assert isinstance(failed.exception, SpecificationError)


def test_planted_canaries_are_trained_on_and_counted(site: Site) -> None:
    done = site.audit("plant", site.run_id[:8], "--count", "30")
    assert done.exit_code == 0, done.output
    canaries = planted(site.folder)
    assert canaries is not None
    assert (site.folder / "canaries.json").stat().st_mode & 0o777 == 0o600
    data = DataSets(site.state.root).load("faq")
    train = with_canaries(data, canaries, site.spec).train
    assert with_canaries(data, canaries, site.spec).digest == "", "what is known of the file says nothing of canaries"
    assert len(train) == len(data.train) + 30
    together = [*data.train, *canaries.records(counted=True)]
    assert list(train) == train[:] == together and train[-31:-29] == together[-31:-29]
    with pytest.raises(IndexError):
        train[len(together)]
    left_out = [record for record in train if record is None]
    assert len(left_out) == sum(not canary.included for canary in canaries.canaries) > 0
    plain = specification(model={"sha256": site.spec.model.sha256})
    assert None not in list(with_canaries(data, canaries, plain).train)


def test_planting_needs_consent_and_comes_before_approval(site: Site) -> None:
    text = site.state.policy.read_text()
    site.state.policy.write_text(text.replace("canaries = true\n", ""))
    try:
        refused = site.audit("plant", site.run_id)
        assert isinstance(refused.exception, PolicyRefusal)
        assert "canaries = true" in str(refused.exception)
    finally:
        site.state.policy.write_text(text)
    site.settle("accepted")
    late = site.audit("plant", site.run_id)
    assert isinstance(late.exception, StateError)
    assert "approved here already" in str(late.exception)
    assert planted(site.folder) is None
    site.settle("waiting")
    assert site.audit("plant", site.run_id, "--count", "8").exit_code == 0
    assert "twice" in str(site.audit("plant", site.run_id, "--count", "8").exception)


def test_a_release_is_scored_with_the_planted_canaries(site: Site, tmp_path: Path) -> None:
    from confide.models.export import write_export

    missing = site.audit("score", site.run_id, str(tmp_path))
    assert "no canaries were planted" in str(missing.exception)
    site.audit("plant", site.run_id, "--count", "30")
    schema = schema_of(site.spec, site.base)
    noise = np.random.Generator(np.random.PCG64(1)).normal(size=schema.size).astype(np.float32)
    flat = schema.flatten(initial_state(site.spec, site.base)) + 0.3 * noise
    document = {"run_id": site.run_id, "specification_sha256": site.spec.digest, "round": 1}
    write_export(tmp_path / "out", schema.unflatten(flat), document, site.spec, site.base)
    scored = site.audit("score", site.run_id, str(tmp_path / "out"))
    assert scored.exit_code == 0, scored.output
    assert json.loads((site.folder / AUDIT_FILE).read_bytes())["kind"] == "release"
    # What was scored is the exported adapter on the base, and not the base alone.
    canaries = planted(site.folder)
    assert canaries is not None
    method = methods.create(site.spec, load_tokenizer(site.base))
    trained = build(site.spec, site.base)
    start = canary_losses(method, trained, canaries)
    load_trainable(trained, schema.unflatten(flat))
    expected = canary_losses(method, trained, canaries)
    released = canary_losses(method, load_release(site.spec, site.base, tmp_path / "out"), canaries)
    assert np.abs(expected - start).max() > 1e-2
    assert np.allclose(released, expected, rtol=1e-4)
    foreign = json.loads((tmp_path / "out" / "manifest.json").read_text()) | {"specification_sha256": "0" * 64}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(foreign))
    assert "not a release of this run" in str(site.audit("score", site.run_id, str(tmp_path / "out")).exception)


def test_organization_level_is_not_rehearsed_on_one_node(world: tuple[World, Path, str]) -> None:
    from confide_client.audit.auditing import rehearse
    from confide_client.data.datasets import LocalData

    spec = specification(
        privacy={**PRIVATE, "unit": "organization"}, sealing={"kind": "sealed"}, federation={"clip_norm": 0.5}
    )
    with pytest.raises(SpecificationError, match="confide audit score"):
        rehearse(spec, world[1], LocalData([], []), None, folder=world[1], say=print)  # type: ignore[arg-type]
