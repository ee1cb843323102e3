"""What a specification names, as TRL is given it: in the form in which the model is asked afterwards."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from confide.errors import DataError, ModelError
from confide.models.store import folder_digest
from confide_server.rlhf.annotation.snapshots import Snapshot
from confide_server.rlhf.policy import Policy
from confide_server.rlhf.training.inputs import Inputs

from tests.preferences import pairs
from tests.tiny_models import tiny_llama
from tests.unit.test_rlhf_trl import specify, trl_adapter

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("default")


def turns(row: dict[str, Any]) -> dict[str, Any]:
    """As TRL's conversational form without an explicit prompt has it."""
    asked = {"role": "user", "content": row["prompt"]}
    return {side: [asked, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}


@pytest.mark.parametrize("form", ["texts", "turns", "both"])
@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_chat_model_learns_in_its_template(kind: str, form: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    base, rows = tiny_llama(tmp_path / "base"), pairs(8)
    kept = [turns(row) if form == "turns" or (form == "both" and n % 2) else row for n, row in enumerate(rows)]
    snapshot = Snapshot.imported(kept)
    path = snapshot.write(tmp_path / "snapshots")
    run = specify(kind, base={"sha256": folder_digest(base)}, data={"snapshot": snapshot.sha256})
    records, reward = Inputs(base=base, snapshot=path).of(run)
    assert reward is None and len(records) == (8 if kind == "dpo" else 16)
    model, config, _ = trl_adapter._model(run, base, None)
    made = trl_adapter._trainer(run, model, config, tmp_path / "run", datasets.Dataset.from_list(records), base, None)
    asked = {tuple(row["prompt_ids"]) for row in made.train_dataset}
    assert asked == {tuple(Policy(base)._prompt(row["prompt"])) for row in rows}


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_turns_where_there_is_a_template(chat: bool, tmp_path: Path) -> None:
    base, asked = tiny_llama(tmp_path / "base", chat=chat), tmp_path / "prompts.txt"
    asked.write_text("How is wall 1?\nHow is wall 2?\n")
    digest = hashlib.sha256(asked.read_bytes()).hexdigest()
    run = specify("grpo", base={"sha256": folder_digest(base)}, data={"prompts": digest})
    records, reward = Inputs(base=base, prompts=asked).of(run)
    assert isinstance(records[0]["prompt"], list) is chat
    made = trl_adapter.train(run, base=base, folder=tmp_path / "run", records=records, reward=reward)
    assert made.steps >= 1 and any("loss" in line for line in made.history)
    if not chat:
        plain = Snapshot.imported(pairs(4))
        run = specify("dpo", base={"sha256": folder_digest(base)}, data={"snapshot": plain.sha256})
        records, _ = Inputs(base=base, snapshot=plain.write(tmp_path / "s")).of(run)
        assert records == plain.preferences()


def test_what_is_not_what_the_hash_says(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    snapshot = Snapshot.imported(pairs(4))
    path = snapshot.write(tmp_path / "snapshots")
    right = {"base": {"sha256": folder_digest(base)}, "data": {"snapshot": snapshot.sha256}}
    with pytest.raises(ModelError, match="the base model has the hash"):
        Inputs(base=base, snapshot=path).of(specify(data=right["data"]))
    with pytest.raises(ModelError, match="the snapshot has the hash"):
        Inputs(base=base, snapshot=path).of(specify(base=right["base"]))
    with pytest.raises(DataError, match="--snapshot FILE"):
        Inputs(base=base).of(specify(**right))
