"""Database, checkpoints and run book: durable, chained, and clear about what is wrong."""

import importlib
import os
import pkgutil
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import confide_server.state
import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from confide.codec.tensors import TensorSchema, model_digest
from confide.errors import IdentityError, ProtocolFailure, RetryableError, SpecificationError, StateError, UpdateError
from confide.identity.keys import SigningKey
from confide.identity.member import load_member
from confide.identity.submission import STOPPED, SignedEnd, sign_stop, sign_submission, verify_end
from confide.runs.metrics import Metric
from confide.runs.specification import Specification
from confide.sealing.roles import Opened, SlotPlan
from confide_server.api.grpc.incoming_model import IncomingModels
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Audit, Base, Database, Run, append_audit
from confide_server.state.events import OfferAnswered, RoundStarted, RunFailed, RunFinished
from confide_server.state.runs.driving_journal import _answers
from confide_server.state.runs.ends import RunEnds
from confide_server.state.runs.journal import Committed, RunJournal
from confide_server.state.runs.service import Submission
from confide_server.state.runs.status import RunStatus
from sqlalchemy import MetaData, Table, create_engine, select
from sqlalchemy.event import listen

from tests.coordinator_world import World, specification

MODEL = np.arange(8, dtype="<f4")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("world"), nodes=2)


@pytest.fixture
def book(world: World, tmp_path: Path) -> Iterator[RunJournal]:
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    yield RunJournal(database, CheckpointStore(str(tmp_path / "checkpoints")), load_member(world.server).roster)
    database.close()


def opened(*nodes: str) -> Opened:
    return Opened(
        update_sum=np.ones(8),
        weight_sum=float(len(nodes)),
        metrics={Metric.TRAIN_LOSS: (3.0, 2)},
        contributors=nodes,
        dropped={"hospital-z": "TransportError: no answer"},
        promise={"kind": "none"},
    )


def commit(book: RunJournal, run_id: str, number: int, data: bytes) -> None:
    slot, attempt = book.plan_slot(run_id, number)
    plan = SlotPlan(slot=slot, round=number, attempt=attempt, model_sha256=b"", parent_model_sha256=b"")
    file = book.checkpoints.put(data, "bin")
    contributed = opened("hospital-a", "hospital-b")
    done = Committed(plan, contributed, file, "", model_digest(data), len(data), 0.5, 1.25, {"train": 1.0}, {})
    book.commit_round(run_id, done)


# --- database


def test_the_migrations_give_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    for module in pkgutil.iter_modules(confide_server.state.__path__):  # tables stand beside what uses them
        importlib.import_module(f"confide_server.state.{module.name}")
    url = f"sqlite:///{tmp_path / 'c.db'}"
    Database(url).close()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()
    Database(url).close()


def test_answers_of_an_earlier_release_are_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    config = Config()
    config.set_main_option("script_location", str(Path(confide_server.__file__).parent / "state" / "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        row = {
            "run_id": "ab",
            "number": 1,
            "rounds": 1,
            "round": 0,
            "submitted_at": 0.0,
            **dict.fromkeys(("name", "status", "detail", "administrator", "sealing"), ""),
            **dict.fromkeys(("specification", "initial_model_sha256", "signature"), b""),
            "cohort": ["a", "b", "c"],
            "answers": {"a": "accepted", "b": "", "c": "refused"},
        }
        runs = Table("runs", MetaData(), autoload_with=connection)
        connection.execute(runs.insert(), row)
    engine.dispose()
    database = Database(url)
    with database.transaction() as session:
        run = session.get(Run, "ab")
        assert run is not None
        assert _answers(session, run) == {"a": "accepted", "b": "", "c": "refused"}
        assert (run.nonce, run.expires_at, run.stop_signature) == (b"", 0, b"")
    database.close()


def test_an_answer_is_written_alone(world: World, book: RunJournal) -> None:
    """What an answer costs does not grow with the cohort: a row and an event, in one transaction."""
    run_id = book.submit(world.submission(specification(), MODEL))
    names = [f"hospital-{number}" for number in range(40)]
    book.update(run_id, cohort=names)
    written: list[str] = []
    listen(book._database._engine, "before_cursor_execute", lambda *given: written.append(f"{given[2]} {given[3]}"))
    for name in names[:2]:
        book.answered(run_id, "waiting", OfferAnswered(node=name, accepted=False, waiting=True))
    book.answered(run_id, "accepted", OfferAnswered(node=names[0], accepted=True))
    changes = [statement for statement in written if statement.split()[0] in ("INSERT", "UPDATE")]
    # The answer (where there was none yet, an update finds no row), its event, and how far events are numbered, twice.
    assert len(changes) == 14, changes
    assert not [statement for statement in changes if names[39] in statement]
    run = book.next_run(0.0)
    assert run is not None and run.cohort == tuple(names)
    assert run.answers == dict.fromkeys(names, "") | {names[0]: "accepted", names[1]: "waiting"}
    assert [event.data["node"] for event in book.events(run_id, 1, 0.0)] == [names[0], names[1], names[0]]


def test_a_look_that_asked_nothing_leaves_the_next_writer_its_lock(tmp_path: Path) -> None:
    """How a reader's transaction begins is noted on its connection, which a writer gets next."""
    path = tmp_path / "c.db"
    database = Database(f"sqlite:///{path}")
    with database.reading(), database.looking():
        pass
    with database.transaction() as session, closing(sqlite3.connect(path, timeout=0)) as other:
        session.connection()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    database.close()


def test_durable_settings_of_sqlite(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    with database.transaction() as session:
        connection = session.connection().connection
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert values == ["wal", 2]
    database.close()


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all/c.db", "postgresql://nobody:secret@/x"])
def test_a_database_that_cannot_be_used(url: str) -> None:
    with pytest.raises(StateError, match="cannot be used") as error:
        Database(url)
    assert "secret" not in str(error.value)


def test_a_database_of_a_newer_release(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    Database(url).close()
    with sqlite3.connect(tmp_path / "c.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StateError, match="another release"):
        Database(url)


@pytest.mark.parametrize(
    "edit",
    [
        'UPDATE audit SET body = \'{"event": "x"}\' WHERE number = 2',
        "UPDATE audit SET time = time + 1 WHERE number = 2",
        "DELETE FROM audit WHERE number = 2",
        "DELETE FROM audit WHERE number = 1",
        "DELETE FROM audit WHERE number = 3",
    ],
)
def test_an_edited_audit_log_is_found(tmp_path: Path, edit: str) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    database = Database(url)
    for number in range(3):
        with database.transaction() as session:
            append_audit(session, {"event": "example", "number": number})
    assert database.verify_audit() == 3
    database.close()
    with sqlite3.connect(tmp_path / "c.db") as connection:
        connection.execute(edit)
    connection.close()
    with pytest.raises(StateError, match=r"audit (entry|log ends)"):
        Database(url)


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'c.db'}")
    with pytest.raises(RuntimeError), database.transaction() as session:
        append_audit(session, {"event": "example"})
        raise RuntimeError
    with database.transaction() as session:
        assert session.scalars(select(Audit)).all() == []
    database.close()


# --- checkpoints


def test_checkpoints_are_named_by_what_they_hold(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "new" / "folder"))
    name = store.put(b"weights", "bin")
    assert store.put(memoryview(b"weights"), "bin") == name and store.get(name) == b"weights"
    (tmp_path / "new" / "folder" / name).write_bytes(b"Weights")
    with pytest.raises(StateError, match="does not hash to its name"):
        store.get(name)
    with pytest.raises(StateError, match="cannot be read"):
        store.get("0" * 64 + ".bin")
    assert CheckpointStore(f"file://{tmp_path}/url").put(b"x", "bin").endswith(".bin")
    memory = CheckpointStore("memory://confide-test")
    assert memory.get(memory.put(b"far away", "bin")) == b"far away"


def test_a_checkpoint_cut_short_is_written_again(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    name = store.put(b"weights", "bin")
    (tmp_path / name).write_bytes(b"weig")
    assert store.get(store.put(b"weights", "bin")) == b"weights"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    store = CheckpointStore(str(tmp_path))
    monkeypatch.setattr("confide_server.state.checkpoints.secrets.token_hex", lambda size: "own")
    part = tmp_path / f".{hashlib.sha256(b'weights').hexdigest()}.bin.{os.getpid()}.own.part"
    part.symlink_to("/dev/full")
    with pytest.raises(StateError, match="No space left"):
        store.put(b"weights", "bin")
    assert list(tmp_path.iterdir()) == [] and os.path.exists("/dev/full")
    assert store.get(store.put(b"weights", "bin")) == b"weights"


def test_an_unusable_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in (str(tmp_path / "file" / "below"), "nosuchprotocol://bucket"):
        with pytest.raises(StateError, match="cannot be used"):
            CheckpointStore(url)


# --- run book


def test_submit_commit_export(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    assert len(run_id) == 32 and book.runs()[0].status == "submitted"
    commit(book, run_id, 1, b"\0" * 32)
    commit(book, run_id, 2, b"\1" * 32)
    manifest, data = book.checkpoint(run_id, None)
    assert data == b"\1" * 32 and manifest["round"] == 2
    assert manifest["chain"] == [model_digest(one).hex() for one in (MODEL.tobytes(), b"\0" * 32, b"\1" * 32)]
    assert [entry["round"] for entry in manifest["rounds"]] == [1, 2]
    assert manifest["rounds"][0]["metrics"] == {"train_loss": {"mean": 1.5, "count": 2}}
    assert (
        manifest["specification_sha256"] == Specification.model_validate(manifest["specification"], strict=False).digest
    )
    first, data = book.checkpoint(run_id, 1)
    assert data == b"\0" * 32 and len(first["rounds"]) == 1 and first["model_sha256"] == first["chain"][1]
    with pytest.raises(StateError, match="has no round 3; it has committed 2"):
        book.checkpoint(run_id, 3)
    with pytest.raises(StateError, match="there is no run"):
        book.checkpoint("0" * 32, None)


def test_a_model_is_taken_kept_opened_and_handed_out_without_being_in_memory(world: World, book: RunJournal) -> None:
    count, chunk = 48, np.arange(1 << 18, dtype="<f4").tobytes()
    whole, body = model_digest(chunk * count), specification().canonical_bytes()
    terms = SigningKey.load(world.of("administrator") / "identity.key"), "administrator", body, whole
    signed = sign_submission(*terms)
    incoming = IncomingModels(world.folder / "incoming")
    tracemalloc.start()
    try:
        model = incoming.receive(count << 20, (bytes(chunk) for _ in range(count)))
        run_id = book.submit(Submission(signed, model))
        stored = book.stored_model(run_id, None)
        handed = sum(len(piece) for piece in stored.chunks(1 << 20))
        run = book.next_run(10.0)
        parent = sign_submission(*terms, parent_run_id=run_id, parent_round=0)
        book.continue_from(parent)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert run is not None and (run.schema.size, handed, stored.model_bytes) == (count << 18, count << 20, count << 20)
    assert stored.manifest["model_sha256"] == whole.hex() and not list((world.folder / "incoming").iterdir())
    assert peak < 12 << 20, f"{peak >> 20} MiB for a model of {count} MiB"


def test_a_first_model_that_does_not_fit_on_the_disk_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "confide_server.api.grpc.incoming_model.tempfile.TemporaryFile"
    monkeypatch.setattr(full, lambda dir: Path("/dev/full").open("w+b"))  # noqa: SIM115 - the caller closes it
    with pytest.raises(RetryableError, match="No space left"):
        IncomingModels(tmp_path).receive(4, iter([b"1234"]))


def test_a_round_is_committed_once(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    commit(book, run_id, 1, b"\0" * 32)
    before = len(book.events(run_id, 0, 0))
    with pytest.raises(StateError):
        commit(book, run_id, 1, b"\1" * 32)
    assert len(book.events(run_id, 0, 0)) == before and book.checkpoint(run_id, 1)[1] == b"\0" * 32


def signed(world: World, name: str, body: bytes, model: bytes, digest: bytes | None = None) -> Submission:
    key = SigningKey.load(world.of(name) / "identity.key")
    return Submission(sign_submission(key, name, body, digest or model_digest(model)), model)


def test_submissions_that_do_not_hold(world: World, book: RunJournal) -> None:
    body, good = specification().canonical_bytes(), MODEL.tobytes()
    small = specification()
    fedsvd = small.model_copy(update={"adapter": small.adapter.model_copy(update={"aggregation": "fedsvd"})})
    svd = fedsvd.canonical_bytes()

    def pair(rows: int) -> bytes:
        return TensorSchema((("q.lora_A", (2, 2)), ("q.lora_B", (rows, 2)))).to_bytes()

    cases: list[tuple[Submission, type[Exception], str]] = [
        (signed(world, "hospital-a", body, good), IdentityError, "only an administrator"),
        (signed(world, "administrator", body + b" ", good), SpecificationError, "canonical"),
        (signed(world, "administrator", body, good, digest=bytes(32)), UpdateError, "was signed"),
        (signed(world, "administrator", body, b""), UpdateError, "0 bytes"),
        (signed(world, "administrator", body, good[:-1]), UpdateError, "31 bytes"),
        (signed(world, "administrator", body, np.full(8, np.nan, "<f4").tobytes()), UpdateError, "NaN"),
        (
            signed(world, "administrator", specification(fragments=9).canonical_bytes(), good),
            SpecificationError,
            "only 8 parameters",
        ),
        (signed(world, "administrator", svd, good), SpecificationError, "names no LoRA matrices"),
        (replace(signed(world, "administrator", svd, good), schema=b"[["), UpdateError, "not a list of names"),
        (replace(signed(world, "administrator", svd, good), schema=pair(3)), UpdateError, "names 10"),
        (replace(signed(world, "administrator", svd, good), schema=pair(2)), ProtocolFailure, "not orthonormal"),
    ]
    fine = signed(world, "administrator", body, good)
    tampered = specification(rounds=9).canonical_bytes()
    forged = replace(fine, signed=replace(fine.signed, specification=tampered))
    cases.append((forged, IdentityError, "does not verify"))
    for submission, kind, words in cases:
        with pytest.raises(kind, match=words):
            book.submit(submission)
    assert book.runs() == []


def test_a_submission_begins_one_run(world: World, book: RunJournal) -> None:
    first = world.submission(specification(), MODEL)
    run_id = book.submit(first)
    assert run_id == first.signed.run_id
    key = SigningKey.load(world.of("administrator") / "identity.key")
    document, digest = first.signed.specification, first.signed.initial_model_sha256
    same_id = sign_submission(key, "administrator", document, digest, run_id=run_id)
    unsigned = replace(same_id, run_id="f" * 32, nonce=first.signed.nonce)
    same_nonce = replace(unsigned, signature=key.sign("submission", unsigned.statement))
    book.stop(run_id, *world.stop_order(run_id))
    for again in (first.signed, same_id, same_nonce):
        with pytest.raises(ProtocolFailure, match="SUBMISSION_REPLAYED"):
            book.submit(replace(first, signed=again))
    late = sign_submission(key, "administrator", document, digest, valid_s=-400)
    with pytest.raises(ProtocolFailure, match="SUBMISSION_EXPIRED"):
        book.submit(replace(first, signed=late))
    assert len(book.runs()) == 1


def test_a_run_stops_by_an_administrators_order_alone(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    name, order = world.stop_order(run_id)
    node = SigningKey.load(world.of("hospital-a") / "identity.key")
    for who, signature in ((name, b""), (name, world.stop_order("0" * 32)[1]), ("hospital-a", sign_stop(node, run_id))):
        with pytest.raises(IdentityError):
            book.stop(run_id, who, signature)
    assert not book.stop_requested(run_id) and book.stop_order(run_id) == ("", b"")
    book.update(run_id, status="running")
    book.stop(run_id, name, order)
    assert book.stop_requested(run_id) and book.stop_order(run_id) == (name, order)


def test_how_runs_ended_is_said_again_over_the_coordinators_signature(world: World, book: RunJournal) -> None:
    stopped, failed, finished, going = (book.submit(world.submission(specification(), MODEL)) for _ in range(4))
    book.stop(stopped, *world.stop_order(stopped))
    book.end(failed, RunStatus.FAILED, RunFailed(code="CohortTooSmall", reason="nobody came"))
    book.end(finished, RunStatus.FINISHED, RunFinished(rounds=2, model_sha256="0" * 64))
    book.update(going, status=RunStatus.PAUSED)
    member = load_member(world.server)
    answer = RunEnds(book._database, member).of([stopped, failed, finished, going, "f" * 32, stopped])
    said = {item.run_id: item.end for item in answer.ends}
    assert {run: end.failure for run, end in said.items()} == {stopped: STOPPED, failed: "CohortTooSmall", finished: ""}
    assert list(answer.unknown) == ["f" * 32]
    for run_id, end in said.items():
        assert end.run_ended and end.slot == 0
        verify_end(
            member.roster.current,
            SignedEnd(run_id, end.failure, end.stopped_by, end.stop_signature, end.coordinator, end.signature),
        )


def test_events_are_waited_for(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    began = time.monotonic()
    assert book.events(run_id, 1, 0.2) == [] and time.monotonic() - began >= 0.2
    threading.Timer(0.1, lambda: book.record(run_id, RoundStarted(round=1, attempt=1, slot=1, deadline_s=9.0))).start()
    found = book.events(run_id, 1, 30.0)
    assert [(event.sequence, event.kind) for event in found] == [(2, "round_started")]
    assert time.monotonic() - began < 20


def test_a_queued_run_stops_at_once_and_stays_stopped(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    book.stop(run_id, *world.stop_order(run_id))
    book.stop(run_id, *world.stop_order(run_id))
    assert [event.kind for event in book.events(run_id, 0, 0)] == ["run_submitted", "run_stopped"]
    assert book.runs()[0].status == "stopped" and book.next_run(0) is None


def test_sequences_stay_with_their_bytes(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    assert book.sequences(run_id, [b"a" * 32, b"b" * 32, b"a" * 32]) == [1, 2, 1]
    assert book.sequences(run_id, [b"c" * 32, b"b" * 32]) == [3, 2]


def test_a_planned_slot_that_was_never_opened_is_used_again(world: World, book: RunJournal) -> None:
    run_id = book.submit(world.submission(specification(), MODEL))
    assert book.plan_slot(run_id, 1) == (1, 1) == book.plan_slot(run_id, 1)
    plan = SlotPlan(slot=1, round=1, attempt=1, model_sha256=b"", parent_model_sha256=b"")
    book.abandon_slot(run_id, plan, "LIST_TOO_SMALL", "nobody came")
    assert book.attempts(run_id, 1) == 1
    assert book.plan_slot(run_id, 1) == (2, 2)
