"""A cross-encoder: reads question and passage together, and puts the first passages of a search in its own order.

A folder in the transformers format that holds a sequence classification model with one output, named by its hash like
the embedder. Reading both together is better than comparing embeddings, and costs one pass of the model a passage: so
only the first of the fused ranking are read, and whether that is an improvement is measured (`confide rag calibrate`).

    reranker = Reranker(Path("ms-marco-minilm"))
    reranked(ranking, reranker, first=20)
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.models.store import folder_digest
from confide.rag.retrieval import Ranking

FIRST = 20
_KIND = "ForSequenceClassification"
_AT_ONCE = 16
_MOST_TOKENS = 512


class Reranker:
    """One model, loaded at its first use. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when the folder holds no sequence classification model with one output."""
        from confide.models.architecture import load_config

        self.folder = folder
        self.sha256 = folder_digest(folder)
        self.name = folder.name
        config = load_config(folder)
        kinds = [str(kind) for kind in config.architectures or ()]
        if not any(kind.endswith(_KIND) for kind in kinds):
            raise ModelError(
                f"the model in {folder} is {', '.join(kinds) or 'of no kind that it names'}, and no cross-encoder: its "
                f"config.json must name a ...{_KIND}"
            )
        if int(config.num_labels) != 1:
            raise ModelError(
                f"the model in {folder} sorts texts into {config.num_labels} classes; a cross-encoder says one number"
            )

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from confide.models.architecture import load_tokenizer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = load_tokenizer(self.folder)
        if tokenizer.pad_token_id is None:
            raise ModelError(f"the tokenizer in {self.folder} has no token to pad with; it is none of a cross-encoder")
        return tokenizer

    @functools.cached_property
    def _model(self) -> Any:
        import torch
        import transformers

        from confide.models.pretrained import load_pretrained

        return load_pretrained(
            transformers.AutoModelForSequenceClassification,
            self.folder,
            torch.float32,
            what="cross-encoder",
            remedy="take its whole folder",
        )

    def scores(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N,): the model's one number for question and text; a long text is cut at its end."""
        import torch

        model, found = self._model, np.zeros(len(texts), np.float32)
        most = min(_MOST_TOKENS, int(getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS))
        # Texts of like length go together, so that little is padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            rows = self._tokenizer(
                [question] * len(part),
                [texts[place] for place in part],
                padding=True,
                truncation="longest_first",
                max_length=most,
                return_tensors="pt",
            )
            with torch.inference_mode():
                found[part] = model(**rows).logits[:, 0].float().numpy()
        return found


def reranked(ranking: Ranking, reranker: Reranker, *, first: int = FIRST) -> Ranking:
    """The ranking with its first passages in the cross-encoder's order; the rest follow as they were."""
    head = ranking.found[:first]
    if not head:
        return ranking
    texts = ["\n".join(filter(None, (" > ".join(one.passage.headings), one.passage.text))) for one in head]
    scores = reranker.scores(ranking.question, texts)
    order = np.argsort(-scores, kind="stable")
    found = [replace(head[place], cross=float(scores[place])) for place in order]
    crowding = ranking.crowding
    if len(crowding):
        crowding = np.concatenate([crowding[: len(head)][order], crowding[len(head) :]])
    return replace(ranking, found=(*found, *ranking.found[first:]), crowding=crowding)
