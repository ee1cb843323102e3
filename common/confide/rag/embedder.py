"""Sentence embeddings by a model folder that is pinned by its hash: the mean over the tokens, of length 1.

all-MiniLM-L6-v2 as a package brings it, or an encoder that the consortium trained with the contrastive method and
exported. An index says which embedder made it; another one is refused by name, since its numbers mean something else.

    embedder = Embedder(Path("all-minilm-l6-v2"))
    embedder.embed(["Who pays?"]).shape          # (1, 384)
"""

import functools
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.models.store import folder_digest

_TOKENS_AT_ONCE = 1024
"""More is slower: what a layer makes of it falls out of the cache."""
_LONG = 128
"""Tokens above which only texts of equal length go together: nothing is padded, and attention needs no mask."""
_STEP = 16
"""Shorter texts are padded to a multiple of it: a product whose shape is new costs some milliseconds to prepare."""
_FEWEST_AT_ONCE = 256
"""Tokens that a core gets at least, where there are several."""


class Embedder:
    """One model, loaded at its first use. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when the folder holds no model."""
        self.folder = folder
        self.sha256 = folder_digest(folder)
        self.name = folder.name

    @functools.cached_property
    def dimension(self) -> int:
        """Numbers in an embedding."""
        from confide.models.architecture import load_config

        return int(load_config(self.folder).hidden_size)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import tokenizers

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        path = self.folder / "tokenizer.json"
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"{path} is missing or damaged; name a folder with tokenizer.json") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @functools.cached_property
    def _model(self) -> Any:
        import torch
        import transformers

        from confide.models import precision
        from confide.models.pretrained import load_pretrained, pooler_names
        from confide.rag import plain_attention

        narrow = precision.choice("cpu").arithmetic == "bfloat16"
        model = load_pretrained(
            transformers.AutoModel,
            self.folder,
            torch.bfloat16 if narrow else torch.float32,
            what="embedder",
            remedy="take its whole folder",
            may_lack=pooler_names,
        )
        if not hasattr(model.config, "max_position_embeddings"):
            raise ModelError(f"the model in {self.folder} does not say how many tokens it reads; it is no embedder")
        if narrow and model.config._attn_implementation == "sdpa":
            plain_attention.register()
            model.set_attn_implementation(plain_attention.NAME)
        return model

    @functools.cached_property
    def most_tokens(self) -> int:
        """The longest text that is embedded whole, in tokens with its two ends."""
        from confide.models.architecture import load_config

        return int(load_config(self.folder).max_position_embeddings)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without the two ends."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(one.ids) for one in encoded]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), each of length 1. A text that is longer than `most_tokens` is cut at its end."""
        import torch

        model = self._model
        rows = [one.ids[: self.most_tokens] for one in self._tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)

        def fill(batch: list[int]) -> None:
            vectors[batch] = _embedded(model, [rows[place] for place in batch])

        cores = torch.get_num_threads()
        share = math.ceil(sum(map(len, rows)) / cores)
        batches = _batches(rows, max(_FEWEST_AT_ONCE, min(_TOKENS_AT_ONCE, share)))
        # The long ones first, so that no core is left with one at the end.
        list((_pool(cores).map if cores > 1 else map)(fill, reversed(batches)))
        return vectors


@functools.cache
def _pool(cores: int) -> ThreadPoolExecutor:
    """A thread for each core, which computes by itself: cores that share a batch wait for each other at every layer."""
    import torch

    def by_itself() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # A thread's first question takes the process' number, which soon is another one.

    pool = ThreadPoolExecutor(cores, "embedder", initializer=by_itself)
    started = threading.Barrier(cores)
    list(pool.map(lambda _: started.wait(), range(cores)))
    torch.set_num_threads(cores)  # What later threads begin with; those of the pool keep theirs.
    return pool


# A fork takes no threads along.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _embedded(model: Any, rows: list[list[int]]) -> NDArray[np.float32]:
    import torch

    width = max(map(len, rows))
    if width <= _LONG:
        width = _STEP * math.ceil(width / _STEP)
    ids = torch.zeros((len(rows), width), dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask[:, :, None].float()
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        found: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return found


def _batches(rows: Sequence[Sequence[int]], tokens: int = _TOKENS_AT_ONCE) -> list[list[int]]:
    """Places of texts of like length, the short ones first, so that little of a batch is padding."""
    batches: list[list[int]] = []
    before = 0
    for place in sorted(range(len(rows)), key=lambda place: len(rows[place])):
        length = len(rows[place])
        if not batches or length > max(_LONG, before) or (len(batches[-1]) + 1) * length > tokens:
            batches.append([])
        before = length
        batches[-1].append(place)
    return batches
