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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.memory import nothing_to_collect
from confide.models.store import folder_digest, model_files
from confide.models.weights import check_whole
from confide.rag.encoders import Encoder
from confide.rag.encoders.bert_shape import shape_of

_TOKENS_AT_ONCE = 1024
"""More is slower: what a layer makes of it falls out of the cache."""
_CHARACTERS_AT_ONCE = 1 << 20
_TEXTS_AT_ONCE = 1 << 14
_FEWEST_AT_ONCE = 256
"""Tokens that a core gets at least, where there are several."""


class Embedder:
    """One model, loaded at its first use. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when the folder holds no model."""
        self.folder = folder
        self.sha256 = folder_digest(folder)
        self.name = folder.name
        self._shape = shape_of(folder)
        self._loaded: Future[Encoder] | None = None

    @functools.cached_property
    def dimension(self) -> int:
        """Numbers in an embedding."""
        return self._shape.width if self._shape is not None else int(self._config().hidden_size)

    def _config(self) -> Any:
        from confide.models.architecture import load_config

        return load_config(self.folder)

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

    def load_soon(self) -> "Future[Encoder]":
        """Begin to load the model in a thread of its own, unless that was begun. What fails is told by `embed`."""
        if self._loaded is None:
            loader = ThreadPoolExecutor(1, "embedder-loader")
            self._loaded = loader.submit(self._read)
            loader.shutdown(wait=False)
        return self._loaded

    def _read(self) -> Encoder:
        with nothing_to_collect():
            from confide.models.arithmetic import precision
            from confide.rag.encoders import bert

        check_whole(model_files(self.folder))
        dtype = precision.DTYPES[precision.choice("cpu").arithmetic]
        if self._shape is not None:
            found = bert.read(self.folder, self._shape, dtype)
            if found is not None:
                return found
        with nothing_to_collect():
            from confide.rag.encoders.general import General

        return General(self.folder, dtype)

    @functools.cached_property
    def most_tokens(self) -> int:
        """The longest text that is embedded whole, in tokens with its two ends."""
        return self._shape.most_tokens if self._shape is not None else int(self._config().max_position_embeddings)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without the two ends."""
        counts: list[int] = []
        for some in _by_characters(texts):
            encoded = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            counts += [len(one.ids) for one in encoded]
        return counts

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), each of length 1. A text that is longer than `most_tokens` is cut at its end."""
        encoder = self.load_soon().result()
        import torch  # by now it is there

        rows = [one.ids[: self.most_tokens] for one in self._tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)

        def fill(batch: list[int]) -> None:
            vectors[batch] = encoder.vectors([rows[place] for place in batch])

        cores = torch.get_num_threads()
        share = math.ceil(sum(map(len, rows)) / cores)
        batches = encoder.batches(rows, max(_FEWEST_AT_ONCE, min(_TOKENS_AT_ONCE, share)))
        # The long ones first, so that no core is left with one at the end.
        list((_pool(cores).map if cores > 1 else map)(fill, reversed(batches)))
        return vectors


def _by_characters(texts: Sequence[str]) -> Iterator[list[str]]:
    """Some at a time: an encoding takes a hundred times the memory of its text."""
    some, characters = list[str](), 0
    for text in texts:
        some.append(text)
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE or len(some) >= _TEXTS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


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
