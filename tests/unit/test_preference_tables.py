"""Preferences in the coordinator's database."""

from pathlib import Path

import pytest
from confide import canonical
from confide.errors import StateError
from confide_server.rlhf.annotation.annotating import tasks
from confide_server.rlhf.annotation.preferences import Candidate, Comparison
from confide_server.rlhf.annotation.snapshots import Snapshot
from confide_server.state.database import Database
from confide_server.state.preference_tables import PreferenceStore

from tests.unit.test_rlhf_preferences import candidates, longer_is_better


def encoded(document: Candidate | Comparison) -> bytes:
    return canonical.encode(document.model_dump(mode="json"))


def test_what_people_said_is_kept_once_and_frozen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    store, known = PreferenceStore(Database(url)), candidates()
    prompts = sorted({one.prompt for one in known})
    sha256 = store.add_prompts(prompts, name="walls", source="written for it", licence="CC0")
    assert store.add_prompts(prompts, name="walls", source="written for it", licence="CC0") == sha256
    documents = {one.id: encoded(one) for one in known}
    assert (store.add_candidates(sha256, documents), store.add_candidates(sha256, documents)) == (9, 0)
    judged = longer_is_better(known, "ada")
    for one in judged:
        store.rate(one.pair, "ada", encoded(one))
    with pytest.raises(StateError, match="RATING_REPLAYED"):
        store.rate(judged[0].pair, "ada", encoded(judged[0]))
    store.undo(judged[0].pair, "ada")
    with pytest.raises(StateError, match="no standing judgement"):
        store.undo(judged[0].pair, "ada")
    store.rate(judged[0].pair, "ada", encoded(judged[0]))
    again = PreferenceStore(Database(url))
    read = [Comparison.model_validate_json(data) for data in again.comparisons()]
    assert sorted(one.pair for one in read) == sorted(one.pair for one in judged)
    answers = [Candidate.model_validate_json(data) for data in again.candidates(sha256)]
    made = Snapshot.of(answers, read)
    again.freeze(made.sha256, canonical.encode(dict(made.document)), by="root")
    assert canonical.digest(dict(made.document)) == made.sha256
    assert again.snapshot(made.sha256) == canonical.encode(dict(made.document))
    assert tasks(answers, "ada") == tasks(known, "ada")


@pytest.mark.parametrize("what", ["prompt set", "answer", "snapshot"])
def test_what_is_not_here_is_said(tmp_path: Path, what: str) -> None:
    store = PreferenceStore(Database(f"sqlite:///{tmp_path / 'c.db'}"))
    act = {
        "prompt set": lambda: store.add_candidates("0" * 64, {}),
        "answer": lambda: store.rate(("0" * 64, "1" * 64), "ada", b"{}"),
        "snapshot": lambda: store.snapshot("0" * 64),
    }[what]
    with pytest.raises(StateError, match=r"is here|not here"):
        act()
