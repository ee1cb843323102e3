"""What has to hold when a seed has ended, whatever went wrong in it. docs/simulations.md says each in words."""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from confide import journal
from confide.errors import StateError
from confide.runs.specification import Specification
from confide_server.state.database import Database, Round
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.status import ENDED
from sqlalchemy import select

from confide_simulations.chaos.training import TOLERANCE, mean_update
from confide_simulations.chaos.witness import Witness, spent_in_ledger

_UNNAMED = ("Internal", "InternalError", "")


def check_run(book: RunJournal, database: Database, run_id: str, specification: Specification, seen: Witness) -> None:
    """Of one run: how it ended, its rounds, its models."""
    _check_end(book, run_id, seen)
    with database.reading() as session:
        query = select(Round).where(Round.run_id == run_id).order_by(Round.round)
        rounds = [
            (row.round, row.slot, tuple(row.contributors), dict(row.dropped)) for row in session.scalars(query)
        ]  # fmt: skip
    _check_rounds(book, run_id, rounds, seen)
    slots = {slot: book.model(run_id, number).sha256.hex() for number, slot, _, _ in rounds}
    for (run, slot), sha256 in seen.heard.items():
        if run == run_id and slots.get(slot) != sha256 and sha256 not in seen.lost:
            seen.violated(
                "committed rounds", f"a node was told that slot {slot} made {sha256[:16]}, which is not there"
            )
    _check_models(book, run_id, specification, rounds, seen)
    for number, slot, contributors, _ in rounds:
        for name in contributors:
            if not seen.uploads.get((run_id, slot, name)):
                seen.violated("contributors", f"round {number} counts {name}, which sent nothing in slot {slot}")


def _check_end(book: RunJournal, run_id: str, seen: Witness) -> None:
    run = next(one for one in book.runs() if one.run_id == run_id)
    last = book.events(run_id, 0, 0.0)[-1]
    if run.status not in ENDED:
        seen.violated("nothing hangs", f"the run is {run.status}, and nobody drives it any more")
    elif last.kind == "run_failed" and (last.data["code"] in _UNNAMED or not last.data["reason"]):
        seen.violated("named failures", f"the run failed without saying why: {last.data}")
    elif last.kind not in ("run_failed", "run_finished"):
        seen.violated("named failures", f"the run ended with {last.kind}")


def _check_rounds(book: RunJournal, run_id: str, rounds: list[Any], seen: Witness) -> None:
    manifest, _ = book.checkpoint(run_id, None)
    held = {number: sha256 for number, sha256 in enumerate(manifest["chain"]) if number}
    told = {number: sha256 for (run, number), sha256 in seen.committed.items() if run == run_id}
    for number, sha256 in told.items():
        if held.get(number) != sha256:
            seen.violated("committed rounds", f"round {number} was committed as {sha256[:16]}, and is not there")
    if sorted(held) != list(range(1, len(held) + 1)) or len(rounds) != len(held):
        seen.violated("committed rounds", f"the manifest has the rounds {sorted(held)}")


def _check_models(
    book: RunJournal, run_id: str, specification: Specification, rounds: list[Any], seen: Witness
) -> None:
    """Every model is the one before it and the mean of what those who are named contributed."""
    for number, slot, contributors, _ in rounds:
        before, after = book.model(run_id, number - 1).data, book.model(run_id, number).data
        expected = np.frombuffer(before, "<f4") + mean_update(specification, before, contributors, slot)
        off = float(np.abs(np.frombuffer(after, "<f4") - expected).max())
        if off > TOLERANCE:
            seen.violated("reference", f"round {number} is off by {off:.3g} from what its contributors sent")


def check_journals(folders: Collection[Path], seen: Witness) -> bool:
    """Whether every journal that is left is whole: what was appended follows from what is on disk."""
    sound = True
    for folder in folders:
        for path in sorted(_journals_below(folder)):
            try:
                journal.read(path)
            except StateError as error:
                sound = False
                seen.violated("journals", f"{folder.name}: {path.name}: {type(error).__name__}")
    return sound


def _journals_below(folder: Path) -> list[Path]:
    return [
        Path(place, name) for place, _, names in os.walk(folder) for name in names if name.endswith((".log", ".jsonl"))
    ]


def check_lists(seen: Witness) -> None:
    """No slot was opened, and none signed by one node, for two lists."""
    for (_, slot, _), lists in seen.opened.items():
        if len(lists) > 1:
            seen.violated("one list a slot", f"slot {slot} was revealed for {len(lists)} lists")
    for (_, slot, node), lists in seen.signed.items():
        if len(lists) > 1:
            seen.violated("one list a slot", f"{node} signed {len(lists)} lists in slot {slot}")


def check_masks(restored: Collection[str], seen: Witness) -> None:
    """No key stream hid two plaintexts. What an unsealed run's node sent is forgotten with its disk."""
    for (node, _), hidden in seen.masks.items():
        if len(hidden) > 1:
            seen.violated("masks", f"{node} hid {len(hidden)} different updates under one mask")
    for (_, slot, node), digests in seen.uploads.items():
        if len(digests) > 1 and (seen.sealed or node not in restored):
            seen.violated("one upload a slot", f"{node} sent {len(digests)} different uploads in slot {slot}")


def check_ledgers(folders: Mapping[str, Path], restored: Collection[str], *, private: bool, seen: Witness) -> None:
    """What left is spent in the node's logs, however often its process died. A restored node is checked apart."""
    left: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for run_id, slot, node in seen.uploads:
        left[node].add((run_id, slot))
    for node, folder in folders.items():
        if node in restored:
            continue
        if seen.sealed and (unnoted := left[node] - _spent_in_seal_logs(folder)):
            seen.violated("ledgers", f"{node} sent in slots {_slots(unnoted)}, which its seal log does not know")
        if not private:
            continue
        spent = spent_in_ledger(folder)
        if unspent := left[node] - spent:
            seen.violated("ledgers", f"{node} sent in slots {_slots(unspent)}, which its ledger has not spent")
        if seen.sealed and (other := _spent_in_seal_logs(folder) - spent):
            seen.violated("ledgers", f"{node}: seal log and ledger differ in slots {_slots(other)}")


def _spent_in_seal_logs(folder: Path) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for path in sorted(folder.glob("runs/*/member/seal-log.jsonl")):
        bodies, _ = journal.read(path)
        found |= {(body["run"], body["slot"]) for body in bodies if body["event"] == "spent"}
    return found


def _slots(found: set[tuple[str, int]]) -> str:
    return ", ".join(str(slot) for _, slot in sorted(found))


def check_restored(folder: Path, name: str, cohort: Collection[str], seen: Witness) -> None:
    """A node that came back with an older disk sends an update: nobody in its epoch may know more of its ledger."""
    bodies, _ = journal.read(folder / name / "heights.log")
    heads = journal.heads(bodies)
    for peer in cohort:
        path = folder / peer / "heights.json"
        known = json.loads(path.read_bytes()).get(name, []) if path.exists() else []
        if any(length >= len(heads) or heads[length] != head for length, head, _ in known):
            seen.violated("old disks", f"{name} was restored, {peer} knows more of its ledger, and it sent an update")
