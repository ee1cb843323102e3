"""What came back of a feedback run, as opinions.json: each answer's mean score, or what the gate counted.

    write_opinions(folder, values, manifest, specification)

The file says who can have meant what: how many organizations are in the mean, and how wide the noise is.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from confide.errors import ModelError
from confide.files import private_folder, write_atomic
from confide.runs.feedback import FeedbackSection, decode_gate
from confide.runs.result_folder import write_manifest
from confide.runs.specification import Specification

OPINIONS = "opinions.json"


def opinions_of(asked: FeedbackSection, values: Sequence[float]) -> dict[str, Any]:
    """The document's part that says what was found. Raises ModelError for another number of values than was asked."""
    if len(values) != asked.numbers:
        raise ModelError(f"{len(values)} numbers came back; {asked.numbers} were asked for")
    if asked.purpose != "scores":
        found: dict[str, Any] = decode_gate((values[0], values[1], values[2]))
        return {"gate": found, "candidate_sha256": asked.candidate_sha256, "baseline_sha256": asked.baseline_sha256}
    rows = zip(asked.prompts, asked.answers, values, strict=True)
    return {"scores": [{"prompt": prompt, "answer": answer, "score": score} for prompt, answer, score in rows]}


def write_opinions(
    folder: Path, values: Sequence[float], manifest: Mapping[str, Any], specification: Specification
) -> Path:
    """opinions.json beside the run's manifest."""
    found = opinions_of(specification.feedback, values)
    document = {
        "version": 1, "purpose": specification.feedback.purpose, "pairs": len(specification.feedback.answers),
        "source": specification.feedback.source, "specification_sha256": specification.digest,
        "privacy": specification.privacy.model_dump(mode="json"), **found,
    }  # fmt: skip
    private_folder(folder)
    write_atomic(folder / OPINIONS, json.dumps(document, indent=1).encode())
    write_manifest(folder, manifest)
    return folder
