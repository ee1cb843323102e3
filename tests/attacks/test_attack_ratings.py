"""Judgements that an annotator did not make, made twice, or made of answers that are not there: refused by name."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from confide import canonical
from confide.errors import ConfideError, DataError, IdentityError, StateError, TransportError
from confide.identity.roster import Role
from confide.transport.admin import AdminClient
from confide_server.rlhf.annotation.preferences import Candidate, Comparison, append_line, read_lines
from confide_server.rlhf.commands import app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.admin_world import AdminWorld, running_world

ANSWERS = [Candidate(prompt=f"prompt {p}", text=f"answer {p} {n}", model="0" * 64) for p in range(4) for n in range(2)]
FIELDS = st.dictionaries(st.sampled_from(list(Comparison.model_fields)), st.text() | st.integers())
PAIRS = [(ANSWERS[2 * p].id, ANSWERS[2 * p + 1].id) for p in range(4)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminWorld]:
    with running_world(tmp_path_factory.mktemp("ratings")) as running:
        documents = [encoded(one) for one in ANSWERS]
        operator = running.client(Role.OPERATOR)
        assert operator.put_candidates("made up", documents, source="ours", licence="none").kept == len(ANSWERS)
        assert operator.put_candidates("made up", documents, source="ours", licence="none").kept == 0
        yield running


def encoded(document: Candidate | Comparison) -> bytes:
    return canonical.encode(document.model_dump(mode="json"))


def judged(pair: int, annotator: str = "annotator", **changes: object) -> Comparison:
    first, second = PAIRS[pair]
    return Comparison.model_validate(
        {"first": first, "second": second, "choice": "first", "annotator": annotator, **changes}
    )


def test_what_an_annotator_hands_over_is_kept_once(world: AdminWorld) -> None:
    client = world.client(Role.ANNOTATOR)
    assert client.put_ratings([encoded(judged(0)), encoded(judged(1))]).kept == 2
    with pytest.raises(StateError, match="RATING_REPLAYED"):
        client.put_ratings([encoded(judged(0, choice="second"))])
    with pytest.raises(StateError, match="RATING_REPLAYED"):
        client.put_ratings([encoded(judged(2)), encoded(judged(1))])
    kept = [Comparison.model_validate_json(one) for one in world.client(Role.OPERATOR).list_ratings().ratings]
    assert [one.pair for one in kept] == [judged(0).pair, judged(1).pair], "all or none"
    assert client.put_ratings([encoded(judged(0, undone=True)), encoded(judged(0, choice="second"))]).kept == 2
    page = world.client(Role.OPERATOR).list_ratings(limit=1)
    assert page.more and len(page.ratings) == 1
    assert len(world.client(Role.OPERATOR).list_ratings(after=page.last).ratings) == 1


def test_nobody_judges_for_others(world: AdminWorld) -> None:
    for role in (Role.ANNOTATOR, Role.ADMINISTRATOR):
        with pytest.raises(IdentityError, match="ANNOTATOR_OTHER"):
            world.client(role).put_ratings([encoded(judged(3, annotator="somebody-else"))])
    with pytest.raises(IdentityError, match="ANNOTATOR_OTHER"):
        world.console(Role.ANNOTATOR).put_ratings([encoded(judged(3))])
    assert world.console(Role.ANNOTATOR).put_ratings([encoded(judged(3, annotator="ada"))]).kept == 1
    for role in (Role.OPERATOR, Role.AUDITOR, Role.NODE):
        with pytest.raises(IdentityError, match="this is for the role"):
            world.client(role).put_ratings([encoded(judged(3, annotator=role.value))])


def test_a_revoked_annotator_hands_over_nothing(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        client = world.client(Role.ANNOTATOR)
        world.client(Role.OPERATOR).put_candidates("p", [encoded(one) for one in ANSWERS], source="o", licence="")
        world.coordinator.roster.accept(world.consortium.revoke("annotator") and world.consortium.roster.signed)
        with pytest.raises(ConfideError, match="revoked"):
            client.put_ratings([encoded(judged(0))])


def test_answers_that_are_not_there_and_documents_that_are_none(world: AdminWorld) -> None:
    client = world.client(Role.ANNOTATOR)
    with pytest.raises(StateError, match="add the candidates first"):
        client.put_ratings([encoded(judged(2, first="ab" * 32))])
    for wrong in (b"", b"{}", b"\xff", b"[" * 5000, encoded(ANSWERS[0])):
        with pytest.raises(DataError, match="document 1 is no Comparison"):
            client.put_ratings([wrong])
    for count in (0, 501):
        with pytest.raises(TransportError, match="at once"):
            client.put_ratings([encoded(judged(2))] * count)
    with pytest.raises(DataError, match="CANDIDATES_IDENTICAL"):
        world.client(Role.OPERATOR).put_candidates(
            "twice", [encoded(ANSWERS[0]), encoded(ANSWERS[0].model_copy(update={"seed": 9}))], source="o", licence=""
        )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | FIELDS.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_judgements_are_errors_by_name(world: AdminWorld, data: bytes) -> None:
    with pytest.raises(ConfideError):
        world.client(Role.ANNOTATOR).put_ratings([data])


def test_offline_and_later_by_the_commands(tmp_path: Path) -> None:
    run = CliRunner()
    with running_world(tmp_path / "world") as world:
        candidates, ratings = tmp_path / "candidates.jsonl", tmp_path / "ratings-annotator.jsonl"
        for one in ANSWERS:
            append_line(candidates, one)
        for number in range(3):
            append_line(ratings, judged(number))
        append_line(ratings, judged(1, undone=True))
        folder = {role: ["--member", str(world.folder / role.value), "--coordinator", world.address] for role in Role}
        shared = ["share", str(candidates), "--name", "p", "--source", "ours", *folder[Role.OPERATOR]]
        for _ in range(2):
            assert run.invoke(app, shared, catch_exceptions=False).exit_code == 0
            told = run.invoke(app, ["upload", str(ratings), *folder[Role.ANNOTATOR]], catch_exceptions=False)
            assert told.exit_code == 0 and "2 judgements are there" in told.output
        append_line(ratings, judged(3))
        told = run.invoke(app, ["upload", str(ratings), *folder[Role.ANNOTATOR]], catch_exceptions=False)
        assert "3 judgements are there, 1 of them new" in told.output
        ratings.with_suffix(".uploaded").unlink()
        append_line(ratings, judged(1))
        with pytest.raises(StateError, match="RATING_REPLAYED"):
            run.invoke(app, ["upload", str(ratings), *folder[Role.ANNOTATOR]], catch_exceptions=False)
        back = tmp_path / "all.jsonl"
        assert run.invoke(app, ["fetch", str(back), *folder[Role.OPERATOR]], catch_exceptions=False).exit_code == 0
        assert [one.pair for one in read_lines(back, Comparison)] == [judged(0).pair, judged(2).pair, judged(3).pair]


def test_what_was_undone_after_it_was_handed_over_is_taken_back(tmp_path: Path) -> None:
    with running_world(tmp_path / "world") as world:
        upload, ratings, standing_there = sitting(world, tmp_path)
        for number in (0, 1):
            append_line(ratings, judged(number))
        assert "2 judgements are there, 2 of them new" in upload()
        append_line(ratings, judged(0, undone=True))
        append_line(ratings, judged(1, undone=True))
        append_line(ratings, judged(1, choice="second"))
        assert "1 judgements are there, 1 of them new" in upload()
        assert standing_there() == [judged(1, choice="second")]
        append_line(ratings, judged(0))
        assert "2 judgements are there, 1 of them new" in upload() and "0 of them new" in upload()
        assert standing_there() == [judged(1, choice="second"), judged(0)]


def test_a_broken_connection_does_not_turn_judgements_into_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = AdminClient.put_ratings

    def broken(client: AdminClient, ratings: Sequence[bytes], *, key: str = "") -> None:
        put(client, ratings, key=key)
        raise TransportError("the connection broke")

    with running_world(tmp_path / "world") as world:
        upload, ratings, standing_there = sitting(world, tmp_path)
        append_line(ratings, judged(0))
        monkeypatch.setattr(AdminClient, "put_ratings", broken)
        with pytest.raises(TransportError):
            upload()
        monkeypatch.setattr(AdminClient, "put_ratings", put)
        append_line(ratings, judged(1))  # the sitting went on
        assert "2 judgements are there" in upload()
        assert standing_there() == [judged(0), judged(1)]
        # What the coordinator refuses stands in nobody's way.
        ratings.with_suffix(".uploaded").unlink()
        for _ in range(2):
            with pytest.raises(StateError, match="RATING_REPLAYED"):
                upload()
        assert not ratings.with_suffix(".uploading").exists()


def sitting(world: AdminWorld, folder: Path) -> tuple[Callable[[], str], Path, Callable[[], list[Comparison]]]:
    """(upload, the annotator's file, what stands at the coordinator)."""
    operator, ratings = world.client(Role.OPERATOR), folder / "ratings-annotator.jsonl"
    operator.put_candidates("p", [encoded(one) for one in ANSWERS], source="ours", licence="")
    who = ["--member", str(world.folder / "annotator"), "--coordinator", world.address]
    return (
        lambda: CliRunner().invoke(app, ["upload", str(ratings), *who], catch_exceptions=False).output,
        ratings,
        lambda: [Comparison.model_validate_json(one) for one in operator.list_ratings().ratings],
    )
