"""A snapshot: a set of comparisons that never changes, under the hash of its contents, with what is known about them.

snapshot = Snapshot.of(candidates, comparisons, gold={...}, filters=Filters())
path = snapshot.write(folder)                          # folder/SHA256.json
Snapshot.read(path).preferences()                      # {prompt, chosen, rejected}, TRL's format
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from confide import canonical
from confide.errors import DataError
from confide.files import private_folder, write_atomic

from confide_server.rlhf.annotation.adjudication import agreement_with_others, settle
from confide_server.rlhf.annotation.preferences import (
    Candidate,
    Comparison,
    check_candidates,
    json_lines,
    lines_of,
    standing,
)

Row = dict[str, Any]
VERSION = 1
MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which comparisons count. least_gold: an annotator's agreement with the gold pairs, where there are any.

    disagreement: of several annotators of a pair, "majority" takes what more than half prefer, "unanimous" only what
    all do; a pair that neither decides is left out and counted (it waits for adjudication).
    """

    least_gold: float = 0.0
    disagreement: Literal["majority", "unanimous"] = "majority"
    rubric: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Contents; frozen by their hash."""

    document: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Of the canonical bytes."""
        return canonical.digest(dict(self.document))

    @classmethod
    def of(
        cls, candidates: Sequence[Candidate], comparisons: Sequence[Comparison], *,
        gold: Mapping[tuple[str, str], str] | None = None, filters: Filters | None = None,
        adjudicated: Sequence[Comparison] = (),
    ) -> "Snapshot":  # fmt: skip
        """gold: the better answer of pairs whose answer is known. adjudicated: judgements of pairs that the annotators
        left open (adjudication.py), which settle those and no others. Raises DataError for a set from which nothing, or
        only one side, can be learned.
        """
        filters, known = filters or Filters(), check_candidates(candidates)
        made = [one for one in standing(comparisons) if not filters.rubric or one.rubric == filters.rubric]
        # The same judgements are the same snapshot, in whatever order files or a database give them.
        made.sort(key=lambda one: (one.pair, one.annotator))
        adjudicated = sorted(standing(adjudicated), key=lambda one: (one.pair, one.annotator))
        unknown = {end for one in made for end in one.pair} - set(known)
        if unknown:
            raise DataError(
                f"{len(unknown)} judged answers are in no file of candidates; give all files that were judged"
            )
        _check_prompts(known, [*made, *adjudicated])
        agreement = gold_agreement(made, gold or {})
        kept = [one for one in made if agreement.get(one.annotator, 1.0) >= filters.least_gold]
        decided, undecided = decide(kept, filters.disagreement)
        settled = settle(kept, undecided, adjudicated)
        decided, open_pairs = sorted([*decided, *settled]), len(undecided) - len(settled)
        rows = [
            {"prompt": known[best].prompt, "chosen": known[best].text, "rejected": known[worst].text}
            for best, worst in decided
        ]
        _check_sides(rows, kept)
        statistics = {
            "comparisons": len(made), "kept": len(kept), "pairs": len(rows), "undecided": open_pairs,
            "choices": dict(sorted(Counter(one.choice for one in made).items())),
            "annotators": len({one.annotator for one in made}), "gold_agreement": agreement,
            "agreement_with_others": agreement_with_others(made), "adjudicated": len(settled),
            "krippendorff_alpha": krippendorff_alpha(made),
            "chosen_is_longer": float(np.mean([len(row["chosen"]) > len(row["rejected"]) for row in rows])),
        }  # fmt: skip
        return cls(
            {
                "version": VERSION,
                "filters": {
                    "least_gold": filters.least_gold,
                    "disagreement": filters.disagreement,
                    "rubric": filters.rubric,
                },
                "statistics": statistics,
                "candidates": [known[name].model_dump(mode="json") for name in sorted(known)],
                "comparisons": [one.model_dump(mode="json") for one in made],
                **({"adjudicated": [one.model_dump(mode="json") for one in adjudicated]} if adjudicated else {}),
                "preferences": rows,
            }
        )

    @classmethod
    def imported(cls, rows: Sequence[Mapping[str, Any]]) -> "Snapshot":
        """Of preferences that were made elsewhere, in TRL's format. Raises DataError."""
        made: list[Row] = []
        for number, row in enumerate(rows, start=1):
            missing = [name for name in ("chosen", "rejected") if not row.get(name)]
            if missing:
                raise DataError(f"row {number} has no {missing[0]!r}; TRL's preferences are prompt, chosen, rejected")
            if row["chosen"] == row["rejected"]:
                raise DataError(
                    f"row {number}: chosen and rejected are the same, so that nothing was preferred; leave it out"
                )
            made.append({name: row[name] for name in ("prompt", "chosen", "rejected", "organization") if row.get(name)})
        _check_sides(made, [])
        return cls({
            "version": VERSION, "filters": {}, "statistics": {"pairs": len(made)}, "candidates": [], "comparisons": [],
            "preferences": made,
        })  # fmt: skip

    def preferences(self) -> list[Row]:
        """{prompt, chosen, rejected}."""
        fields = ("prompt", "chosen", "rejected")
        return [{name: row[name] for name in fields if name in row} for row in self.document["preferences"]]

    @property
    def organizations(self) -> list[str]:
        """Whose each preference is, in order; empty where they do not all say."""
        named = [str(row.get("organization", "")) for row in self.document["preferences"]]
        return named if all(named) else []

    def unpaired(self) -> list[Row]:
        """{prompt, completion, label}: what KTO learns from."""
        return unpaired(self.preferences())

    def write(self, folder: Path) -> Path:
        """folder/SHA256.json, 0600; the same contents are the same file."""
        path = private_folder(folder) / f"{self.sha256}.json"
        if not path.exists():
            write_atomic(path, canonical.encode(dict(self.document)))
        return path

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Raises DataError for a file that is none, or not what its name says."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{path} has more than {MAX_BYTES} bytes; it is no snapshot")
            document = json.loads(path.read_bytes())
            rows = document["preferences"]
            if document["version"] != VERSION or not all(isinstance(row, dict) and row["chosen"] for row in rows):
                raise DataError(f"{path} is no snapshot of version {VERSION}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is no snapshot ({type(error).__name__}); make one with `confide rlhf snapshot`"
            ) from error
        made = cls(document)
        if path.stem != made.sha256:
            raise DataError(
                f"SNAPSHOT_CHANGED: {path.name} holds {made.sha256[:16]}; a snapshot never changes, so it is refused"
            )
        return made


def unpaired(rows: Sequence[Row]) -> list[Row]:
    """{prompt, completion, label} of each answer in rows of {prompt, chosen, rejected}."""
    return [
        {"prompt": row.get("prompt", ""), "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]


def export(rows: Sequence[Row], to: Path) -> None:
    """JSONL or parquet, by the file's ending."""
    if to.suffix == ".jsonl":
        write_atomic(to, b"".join(json_lines(rows)))
    elif to.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), to)
    else:
        raise DataError(f"{to.name} ends in {to.suffix or 'nothing'}; preferences are written as .jsonl or .parquet")


def load_rows(path: Path) -> list[Row]:
    """What `export`, TRL or anybody else wrote. Raises DataError."""
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            rows: list[Row] = parquet.read_table(path).to_pylist()
            return rows
        return [dict(json.loads(line)) for line in lines_of(path.read_bytes()) if line.strip()]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as preferences ({type(error).__name__}); give .jsonl or .parquet"
        ) from error


def _check_prompts(known: Mapping[str, Candidate], made: Sequence[Comparison]) -> None:
    """Raise DataError for a judgement of answers to two prompts: of what a pair's prompt asks, one says nothing."""
    for one in made:
        prompts = {known[end].prompt for end in one.pair if end in known}
        if len(prompts) > 1:
            raise DataError(
                f"PROMPTS_DIFFER: {one.annotator} compared answers to two prompts ({one.pair[0][:12]}, "
                f"{one.pair[1][:12]}); leave the judgement out"
            )


def _check_sides(rows: Sequence[Row], kept: Sequence[Comparison]) -> None:
    if not rows:
        raise DataError("SNAPSHOT_EMPTY: no pair has a preferred answer; annotate more, or loosen the filters")
    shown_first = Counter(one.choice for one in kept if one.choice in ("first", "second"))
    if sum(shown_first.values()) >= 20 and len(shown_first) == 1:
        (side,) = shown_first
        raise DataError(
            f"SNAPSHOT_ONE_SIDED: all {shown_first[side]} preferences are for the answer shown {side}; "
            "look at how they were made"
        )


def decide(comparisons: Sequence[Comparison], how: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """((better, worse) of each decided pair, in order; the pairs that stay open)."""
    votes: dict[tuple[str, str], list[str | None]] = {}
    for one in comparisons:
        if one.choice != "skip":
            votes.setdefault(one.pair, []).append(one.preferred)
    decided, undecided = [], []
    for pair, cast in sorted(votes.items()):
        counts = Counter(cast)
        winner, most = counts.most_common(1)[0]
        enough = most == len(cast) if how == "unanimous" else 2 * most > len(cast)
        if winner is None or not enough:
            undecided.append(pair)
            continue
        decided.append((winner, pair[0] if winner == pair[1] else pair[1]))
    return decided, undecided


def gold_agreement(comparisons: Sequence[Comparison], gold: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """By annotator: the share of gold pairs that they judged as is known; nobody who judged none."""
    found: dict[str, list[bool]] = {}
    for one in comparisons:
        if one.pair in gold and one.choice != "skip":
            found.setdefault(one.annotator, []).append(one.preferred == gold[one.pair])
    return {name: float(np.mean(right)) for name, right in sorted(found.items())}


def krippendorff_alpha(comparisons: Sequence[Comparison]) -> float | None:
    """Nominal alpha over which of a pair was preferred; None where no pair has two judgements, or all are alike."""
    import krippendorff

    people = sorted({one.annotator for one in comparisons})
    pairs = sorted({one.pair for one in comparisons})
    table = np.full((len(people), len(pairs)), np.nan)
    codes = {"tie": 2.0, "both_bad": 3.0}
    for one in comparisons:
        if one.choice != "skip":
            code = codes.get(one.choice, 0.0 if one.preferred == one.pair[0] else 1.0)
            table[people.index(one.annotator), pairs.index(one.pair)] = code
    shared = (~np.isnan(table)).sum(axis=0) > 1
    if not shared.any() or len(np.unique(table[:, shared][~np.isnan(table[:, shared])])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"))
