"""What an earlier release stored opens for ever, with the same bytes, hashes and signatures, whatever came since.

tests/fixtures/v0.1 was made by that release's own code (tests/fixtures/make_state.py) and is never made again.
"""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from confide import canonical, documents, journal
from confide.documents import StoredDocument
from confide.errors import SpecificationError
from confide.identity.consortium import Consortium
from confide.identity.enrolment import read_admission, read_request
from confide.identity.invitation import read_invitation
from confide.identity.member import load_member, read_membership
from confide.identity.roster import open_roster
from confide.privacy.ledger import Ledger
from confide.privacy.ledger_entries import parse_entry, to_body
from confide.privacy.receipts import open_receipt
from confide.runs.specification import Specification, parse_canonical
from confide_client.audit.log import Audit
from confide_client.commands.ledger import _read_export
from confide_client.policy.policy import load_policy
from confide_client.runs import approvals
from confide_client.runs.offers import load_offer
from confide_client.runs.records import Record
from confide_client.state import StateFolder
from confide_server.coordinator.process import read_settings
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.receipts import ReceiptStore
from confide_server.state.runs.journal import RunJournal

FIXTURES = Path(__file__).parent.parent / "fixtures"
V01 = FIXTURES / "v0.1"
SPECIFICATIONS = sorted((V01 / "documents").glob("*.specification.json"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the modes of a state folder, which a version control system does not keep."""
    copy = tmp_path_factory.mktemp("stored") / "v0.1"
    shutil.copytree(V01, copy)
    for folder, _, files in os.walk(copy):
        os.chmod(folder, 0o700)
        for name in files:
            os.chmod(Path(folder, name), 0o600)
    return copy


@pytest.fixture(scope="module")
def then(stored: Path) -> float:
    """A moment at which that release's certificates held."""
    return float(open_roster((stored / "node" / "roster.json").read_bytes(), _root(stored)).issued_at + 1)


def _root(stored: Path) -> bytes:
    return bytes.fromhex(read_membership(stored / "node").root_public)


# --- fields that come later


def test_a_form_that_was_written_down_is_one_of_a_class_that_is_there() -> None:
    """A class that moves without its form would leave out every field that has its default: other bytes, other hash."""
    for key in documents.first_forms():
        module, name = key.rsplit(".", 1)
        kind = getattr(importlib.import_module(module), name)
        assert documents.document_key(kind) == key


@pytest.fixture
def first_form(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, frozenset[str]]]:
    """The classes that had a first form, to which a test adds its own."""
    forms = dict(documents.first_forms())
    monkeypatch.setattr(documents, "first_forms", lambda: forms)
    monkeypatch.setattr(documents, "_later_defaults", documents._later_defaults.__wrapped__)
    yield forms


def test_a_later_field_changes_no_stored_document(first_form: dict[str, frozenset[str]]) -> None:
    module = __name__
    first_form[f"{module}.test_a_later_field_changes_no_stored_document.<locals>.Old"] = frozenset({"name", "size"})

    class Old(StoredDocument):
        name: str
        size: int = 3
        later: str = "as before"

    assert Old(name="a").model_dump(mode="json") == {"name": "a", "size": 3}
    assert Old(name="a", later="other").model_dump(mode="json") == {"name": "a", "size": 3, "later": "other"}
    assert Old.model_validate_json(b'{"name":"a","size":3}') == Old(name="a")


def test_a_later_field_without_a_default_is_a_mistake_of_ours(first_form: dict[str, frozenset[str]]) -> None:
    kind = "test_a_later_field_without_a_default_is_a_mistake_of_ours.<locals>.Old"
    first_form[f"{__name__}.{kind}"] = frozenset({"name"})
    with pytest.raises(TypeError, match="later is not in the class's first form and has no default"):

        class Old(StoredDocument):
            name: str
            later: str


@pytest.fixture
def earlier_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if federation.step_deadline_s and the section privacy had come after the first release."""
    forms = dict(documents.first_forms())
    for kind, field in (("sections.Federation", "step_deadline_s"), ("specification.Specification", "privacy")):
        key = f"confide.runs.{kind}"
        forms[key] = forms[key] - {field}
    monkeypatch.setattr(documents, "first_forms", lambda: forms)
    monkeypatch.setattr(documents, "_later_defaults", documents._later_defaults.__wrapped__)


@pytest.mark.usefixtures("earlier_release")
def test_a_specification_from_before_a_field_keeps_its_bytes_and_its_hash() -> None:
    document = json.loads((V01 / "documents" / "example.specification.json").read_bytes())
    del document["federation"]["step_deadline_s"], document["privacy"]
    data = canonical.encode(document)
    read = parse_canonical(data)
    assert read.canonical_bytes() == data
    assert read.digest == hashlib.sha256(data).hexdigest()
    assert parse_canonical(read.canonical_bytes()) == read


@pytest.mark.usefixtures("earlier_release")
def test_one_meaning_has_one_spelling() -> None:
    document = json.loads((V01 / "documents" / "example.specification.json").read_bytes())
    with pytest.raises(SpecificationError, match="canonical"):
        parse_canonical(canonical.encode(document))  # it writes out defaults of the later fields


@pytest.mark.parametrize("section", ["adapter", "sealing", "privacy"])
def test_a_field_of_the_first_form_may_not_be_missing(section: str) -> None:
    document = json.loads((V01 / "documents" / "example.specification.json").read_bytes())
    del document[section]
    with pytest.raises(SpecificationError, match="canonical"):
        parse_canonical(canonical.encode(document))


def test_an_unknown_field_is_still_refused() -> None:
    document = json.loads((V01 / "documents" / "example.specification.json").read_bytes())
    document["federation"]["sends_everything"] = False
    with pytest.raises(SpecificationError, match="unknown field"):
        parse_canonical(canonical.encode(document))


# --- documents of the release 0.1


@pytest.mark.parametrize("path", SPECIFICATIONS, ids=lambda path: path.name.partition(".")[0])
def test_specifications(path: Path) -> None:
    data = path.read_bytes()
    assert parse_canonical(data).canonical_bytes() == data
    assert parse_canonical(data).digest == hashlib.sha256(data).hexdigest()


def test_there_are_specifications() -> None:
    assert len(SPECIFICATIONS) == 4


def test_manifest(stored: Path) -> None:
    manifest = json.loads((stored / "documents" / "manifest.json").read_text())
    specification = parse_canonical(canonical.encode(manifest["specification"]))
    assert specification.digest == manifest["specification_sha256"]
    roster = open_roster((stored / "node" / "roster.json").read_bytes(), _root(stored))
    assert len(manifest["receipts"]) == 1  # the others came after it was exported
    for entry in manifest["receipts"]:
        key = bytes.fromhex(roster.member(entry["node"]).identity_key)
        receipt = open_receipt(canonical.encode(entry["receipt"]), bytes.fromhex(entry["signature"]), key)
        assert receipt.specification == specification.digest


def test_roster_request_admission_and_invitation(stored: Path, then: float) -> None:
    signed = (stored / "consortium" / "roster.json").read_bytes()
    roster = open_roster(signed, _root(stored))
    assert roster.digest == canonical.digest(json.loads(signed)["document"])  # what the next version will name
    assert read_request((stored / "node" / "request.json").read_bytes()).name == "hospital-a"
    admission, _ = read_admission((stored / "node" / "admission.json").read_bytes(), then, root=_root(stored).hex())
    assert admission.membership.name == "hospital-a"
    assert read_invitation((stored / "documents" / "invitation.json").read_bytes()).name == "newcomer"


# --- folders of the release 0.1


def test_the_roots_folder_goes_on(stored: Path, tmp_path: Path, then: float) -> None:
    folder = tmp_path / "consortium"
    shutil.copytree(stored / "consortium", folder)
    consortium = Consortium.open(folder)
    before = consortium.roster.current
    after = consortium.refresh(now=then)
    assert (after.version, after.previous, after.members) == (before.version + 1, before.digest, before.members)


def test_the_administrators_folder(stored: Path, then: float) -> None:
    assert load_member(stored / "administrator", now=then).name == "administrator"


def test_the_coordinators_folder(stored: Path, tmp_path: Path, then: float) -> None:
    folder = tmp_path / "coordinator"
    shutil.copytree(stored / "coordinator", folder)
    member = load_member(folder, now=then)
    assert read_settings(folder).bind
    database, receipts = Database(f"sqlite:///{folder / 'coordinator.db'}"), ReceiptStore(folder / "receipts.log")
    book = RunJournal(database, CheckpointStore(str(folder / "checkpoints")), member.roster, receipts.of_run)
    try:
        assert database.verify_audit() >= 3
        waiting, finished = book.runs()
        assert (waiting.name, finished.name, finished.status) == ("waiting", "finished", "finished")
        manifest, model = book.checkpoint(finished.run_id, None)
        known = json.loads((stored / "documents" / "manifest.json").read_text())
        assert len(manifest["receipts"]) == 3 and known.pop("receipts")
        assert known.pop("release") == "0.1.0"
        # Later releases say more of a round: what was said then is said as it was.
        rounds = known.pop("rounds")
        assert [
            {key: said[key] for key in then_said} for said, then_said in zip(manifest["rounds"], rounds, strict=True)
        ] == rounds
        assert {key: manifest[key] for key in known} == known
        assert model == (stored / "documents" / "model.bin").read_bytes()
        going_on = book.next_run(0.0)
        assert going_on is not None and going_on.run_id == waiting.run_id
        assert going_on.specification.canonical_bytes() == going_on.signed.specification
        assert book.events(finished.run_id, 0, 0.0)[-1].kind == "run_finished"
    finally:
        database.close()
        receipts.close()


def test_a_nodes_folder(stored: Path, tmp_path: Path, then: float) -> None:
    shutil.copytree(stored / "node", tmp_path / "node")
    state = StateFolder.at(tmp_path / "node")
    member = load_member(state.root, now=then)
    policy, settings = load_policy(state.policy), state.settings
    assert policy.methods and settings.threads == 1
    assert list(json.loads((state.root / "datasets.json").read_bytes())["data_sets"]) == ["shard"]
    finished, waiting = sorted(state.run_ids(), key=lambda run: Record.load(state.run(run)).status)  # type: ignore[union-attr]
    for run_id, status in ((finished, "ended"), (waiting, "waiting")):
        record, offer = Record.load(state.run(run_id)), load_offer(state.run(run_id), member)
        assert record is not None and (record.status, record.offer_sha256) == (status, offer.sha256)
        assert offer.specification.canonical_bytes() == offer.message.specification
        assert isinstance(offer.specification, Specification)
    approvals.decide(state.run(waiting), load_offer(state.run(waiting), member).sha256, "approved")
    assert approvals.decision(state.run(waiting), load_offer(state.run(waiting), member).sha256) == "approved"
    audit = Audit(journal.Journal(state.audit))
    audit.note("opened by a later release")
    audit.close()


def test_a_nodes_ledger_and_its_export(stored: Path, tmp_path: Path) -> None:
    shutil.copy(stored / "node" / "privacy-ledger.jsonl", tmp_path / "privacy-ledger.jsonl")
    bodies, head = journal.read(tmp_path / "privacy-ledger.jsonl")
    assert [to_body(parse_entry(body)) for body in bodies] == bodies
    ledger = Ledger(tmp_path / "privacy-ledger.jsonl")
    assert (len(ledger), ledger.head) == (len(bodies), head)
    ledger.close()
    assert _read_export(stored / "documents" / "ledger-export.json")[0] == bodies


def test_a_digest_is_of_the_object_and_not_of_what_it_is_equal_to() -> None:
    class Said(StoredDocument):
        number: float

    plus, minus = Said(number=0.0), Said(number=-0.0)
    assert plus == minus and documents.digest_of(plus) != documents.digest_of(minus)
    other = plus.model_copy(update={"number": 1.0})
    for said in (plus, minus, other, plus):
        assert documents.digest_of(said) == canonical.digest(said.model_dump(mode="json"))
    number = id(other)
    del other
    assert number not in documents._digests
