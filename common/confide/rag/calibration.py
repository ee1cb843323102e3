"""What was measured of one collection: the weight of its lexical part, the gate's head and threshold, how good it is.

It holds numbers, and which cross-encoder: no question, no name of a document, so that nothing of one survives in it.
"""

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError, model_validator

from confide import canonical
from confide.documents import StoredDocument
from confide.errors import StateError
from confide.files import private_folder, write_atomic
from confide.rag.collection import Collection
from confide.rag.gate import FEATURES, Head
from confide.rag.lexical import FORMAT
from confide.rag.reranker import Reranker, reranked
from confide.rag.retrieval import DEFAULT_WEIGHT, Ranking
from confide.text import line

_FILE = "calibration.json"
DEFAULT_THRESHOLD = 0.5
MOST_BYTES = 1 << 20
_MOST_IN_PIECES = 0.05
"""Of a collection's passages: fewer change no figure that could be seen."""


class GateWeights(StoredDocument):
    """A head (gate.py) as numbers, in the order of `features`."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float

    @model_validator(mode="after")
    def _one_length(self) -> "GateWeights":
        if self.features != FEATURES or not len(self.mean) == len(self.scale) == len(self.weights) == len(FEATURES):
            raise ValueError("it was made by a release that looks at other features; calibrate again")
        if any(one <= 0 for one in self.scale):
            raise ValueError("a scale is not positive")
        return self

    @classmethod
    def of(cls, head: Head, threshold: float) -> "GateWeights":
        """As numbers."""
        mean, scale, weights = (tuple(map(float, array)) for array in (head.mean, head.scale, head.weights))
        return cls(features=FEATURES, mean=mean, scale=scale, weights=weights, bias=head.bias, threshold=threshold)

    def head(self) -> Head:
        """As arrays."""
        return Head(np.array(self.mean), np.array(self.scale), np.array(self.weights), self.bias)


class RerankerPin(StoredDocument):
    """The cross-encoder that was found to improve the order, and how many passages it reads."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    first: Annotated[int, Field(ge=2, le=200)]


class Calibration(StoredDocument):
    """lexical_weight: see retrieval.py. reranker: None where the fused order stays. questions: how many it rests on.

    lexical_format: what words were when it was measured (lexical.FORMAT). The rest is measured by cross-validation.

    auroc: of right answers against wrong ones and against questions whose gold passage was taken away.
    auroc_removed: of all questions that the documents answer, found or not, against those. most_risk: what was asked.
    risk, coverage: of the questions at the threshold, how many answers are wrong, how many are answered.
    """

    format: Annotated[int, Field(ge=1, le=1)] = 1
    lexical_weight: Annotated[float, Field(ge=0, le=1000)] = DEFAULT_WEIGHT
    gate: GateWeights | None = None
    questions: Annotated[int, Field(ge=0)] = 0
    auroc: float | None = None
    auroc_removed: float | None = None
    most_risk: float | None = None
    risk: float | None = None
    coverage: float | None = None
    reranker: RerankerPin | None = None
    lexical_format: Annotated[int, Field(ge=1, le=FORMAT)] = 1

    def ordered(self, ranking: Ranking, reranker: Reranker | None) -> Ranking:
        """The ranking in the order that was calibrated. Raises StateError without the cross-encoder that it names."""
        if self.reranker is None:
            return ranking
        if reranker is None or reranker.sha256 != self.reranker.sha256:
            given = (
                "none was named" if reranker is None else f"this is {line(reranker.name, 80)} ({reranker.sha256[:16]})"
            )
            raise StateError(
                f"the collection was calibrated with the cross-encoder {line(self.reranker.name, 80)} "
                f"({self.reranker.sha256[:16]}), and {given}: name that one, or calibrate again without"
            )
        return reranked(ranking, reranker, first=self.reranker.first)

    @classmethod
    def load(cls, folder: Path) -> "Calibration":
        """What is kept there; the default where nothing is. Raises StateError when it is damaged."""
        path = folder / _FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
        return parsed(data, str(path))

    def save(self, folder: Path) -> str:
        """Keep it; gives its SHA-256."""
        private_folder(folder)
        data = canonical.encode(self.model_dump(mode="json"))
        write_atomic(folder / _FILE, data)
        return hashlib.sha256(data).hexdigest()


def calibration_of(collection: Collection) -> Calibration:
    """What is kept for a collection. Raises StateError where it is damaged, or of words that are now others."""
    kept = Calibration.load(collection.calibration_folder)
    if kept.questions and kept.lexical_format < FORMAT:
        share = collection.lexical(collection.catalogue()).in_pieces
        if share > _MOST_IN_PIECES:
            raise StateError(
                f"collection {collection.name} was calibrated by a release that found no words in Chinese, Japanese, "
                f"Korean, Thai and their like, which are in {share:.0%} of its passages: its figures are of another "
                "search. Run `confide rag calibrate` again"
            )
    return kept


def parsed(data: bytes, what: str) -> Calibration:
    """The content of a calibration's file. Raises StateError."""
    try:
        if len(data) > MOST_BYTES:
            raise ValueError("it is too large")
        return Calibration.model_validate_json(data)
    except (ValidationError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise StateError(f"{what} does not hold a calibration ({reason}); run `confide rag calibrate` again") from None
