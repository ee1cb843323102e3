"""The one place where a folder's weights become a model: whole files, nothing unhashed, no code, nothing drawn."""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from confide.errors import ModelError
from confide.models.store import model_files, only_hashed
from confide.models.weights import check_whole

transformers.utils.logging.disable_progress_bar()

_ONE_AT_A_TIME = threading.Lock()
"""transformers keeps globals while it loads: of two threads that did so at once, one lost its model's last layer."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading reports of transformers are for its developers; what matters is checked here and raised."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def pooler_names(model: nn.Module) -> list[str]:
    """An encoder's own pooler, which takes no part where hidden states are pooled."""
    return [name for name, _ in model.named_parameters() if name.startswith("pooler.")]


def load_pretrained(
    kind: Any,
    folder: Path,
    dtype: torch.dtype | Literal["auto"],
    *,
    what: str = "model",
    remedy: str = "name a folder that holds all of it",
    source: Path | None = None,
    may_lack: Callable[[Any], Collection[str]] = lambda model: (),
    **options: Any,
) -> Any:
    """A model in evaluation mode, with every tensor that it uses from the folder.

    kind: one of transformers' Auto classes. what, remedy: what the folder should hold, and
    what to do where it lacks something, for errors. source: where the same
    weights lie in another form (widened.py); None: the folder itself. may_lack: names of the tensors that are not
    used, or set afterwards. options: more for `from_pretrained`.

    Guarantee: only files that the folder's hash covers are read, from safetensors, and no code is run. transformers
    draws a missing tensor at random and goes on; here it raises. Raises ModelError, naming the folder.
    """
    check_whole(model_files(folder))
    try:
        with _ONE_AT_A_TIME, quiet(), only_hashed(source or folder) as hashed:
            model, report = kind.from_pretrained(
                hashed,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"cannot load the {what} in {folder}: {str(error).splitlines()[0]}") from error
    missing = sorted(set(report["missing_keys"]) - set(may_lack(model)))
    if missing:
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise ModelError(f"the {what} in {folder} lacks {missing[0]!r}{more}; {remedy}")
    return model.eval()
