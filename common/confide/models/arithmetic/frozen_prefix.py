"""What the lower layers of a model make of a record, kept: where nothing below layer k is trained, it never changes.

Adapters often sit on the upper layers only. The frozen ones below then need computing once for each record, and not at
every step and for every model that is evaluated.

    prefix = FrozenPrefix.of(model, trainable_tensors(model))     # None where the first layer is trained
    states = prefix.states(rows, mask, body)                      # as rows.states(body)

Kept in this process's memory alone, up to a limit: it is made of private text. Not under dropout, nor where gradients
of single records are taken (methods.token_loss sees to both).
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from confide.models.arithmetic import attention, unpadded
from confide.models.arithmetic.unpadded import Rows

LIMIT_BYTES = 256 << 20

_Key = tuple[bytes, bool]


class _Reached(Exception):
    """Carries the states that the first trained layer would have seen."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class FrozenPrefix:
    """Of one model, whose `layers` begin with `depth` frozen ones."""

    def __init__(self, body: nn.Module, name: str, depth: int, limit_bytes: int = LIMIT_BYTES) -> None:
        """name: of the ModuleList of layers in the model's body."""
        self._body, self._name, self._depth = body, name, depth
        self._limit, self._held = limit_bytes, 0
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()

    @classmethod
    def of(cls, model: Any, trained: Iterable[nn.Parameter], limit_bytes: int = LIMIT_BYTES) -> "FrozenPrefix | None":
        """Of a model in which `trained` are all the parameters that ever change; None where there is nothing to keep,
        or going on from kept states gives something else, as is tried out.
        """
        body: Any = None if unpadded.runs_later(model) else getattr(model, model.base_model_prefix, None)
        changing = {id(parameter) for parameter in trained}
        for name, layers in [] if body is None else body.named_children():
            if isinstance(layers, nn.ModuleList):
                depth = next((i for i, layer in enumerate(layers) if _has(layer, changing)), len(layers))
                before = [m for other, m in body.named_children() if other != name and not isinstance(m, nn.ModuleList)]
                embeds = any(_has(module, changing) for module in before)
                made = cls(body, name, depth, limit_bytes)
                return made if 0 < depth < len(layers) and not embeds and made._holds(model) else None
        return None

    @property
    def held_bytes(self) -> int:
        """Of kept states."""
        return self._held

    def states(self, rows: Rows, inputs_mask: torch.Tensor) -> torch.Tensor:
        """(N, D): as rows.states(body). inputs_mask: (B, T) bool, where rows have tokens."""
        lengths = inputs_mask.sum(1).tolist()
        cast = torch.is_autocast_enabled("cpu")
        ids = [rows.ids[0].index_select(0, rows.places[b, :length]) for b, length in enumerate(lengths)]
        keys: list[_Key] = [(row.to(torch.int32).numpy().tobytes(), cast) for row in ids]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [index for index, key in enumerate(keys) if key not in found]
        for key, states in zip([keys[i] for i in missing], self._computed([ids[i] for i in missing]), strict=True):
            found[key] = states
            self._keep(key, states)
        whole = torch.empty(rows.ids.shape[1], *found[keys[0]].shape[1:], dtype=found[keys[0]].dtype)
        for index, key in enumerate(keys):
            whole[rows.places[index, : lengths[index]]] = found[key]
            if key in self._kept:
                self._kept.move_to_end(key)
        with self._upper_layers(), attention.in_rows(rows.places, rows.ids.shape[1]):
            states = self._body(inputs_embeds=whole[None], position_ids=rows.positions).last_hidden_state
        return states[0]  # type: ignore[no-any-return]

    def _computed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        """(T, D) of each row of tokens (T,), after the frozen layers."""
        if not ids:
            return []
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
        rows = unpadded.packed(padded, mask, shared=True)
        with torch.no_grad(), self._stopping():
            try:
                rows.states(self._body)
            except _Reached as reached:
                made = reached.states[0]
                return [made.index_select(0, rows.places[b, : len(row)]) for b, row in enumerate(ids)]
        raise RuntimeError("the model's body did not run its layers")

    def _keep(self, key: _Key, states: torch.Tensor) -> None:
        size = states.numel() * states.element_size()
        if size > self._limit:
            return
        self._kept[key] = states
        self._held += size
        while self._held > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.numel() * oldest.element_size()

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """The body's forward ends, by _Reached, where the first trained layer would run."""

        def stop(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(given[0] if given else named["hidden_states"])

        hook = self._layers[self._depth].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _upper_layers(self) -> Iterator[None]:
        """The body has the layers from `depth` on only."""
        layers = self._layers
        setattr(self._body, self._name, nn.ModuleList(list(layers)[self._depth :]))
        try:
            yield
        finally:
            setattr(self._body, self._name, layers)

    @property
    def _layers(self) -> nn.ModuleList:
        return self._body.get_submodule(self._name)  # type: ignore[return-value]  # as it was found in `of`

    def _holds(self, model: Any) -> bool:
        """Whether a few tokens' states are the same by this way, cold and from what was kept."""
        with unpadded.trial(model) as (rows, mask):
            try:
                expected = rows.states(self._body)
                made = [self.states(rows, mask) for _ in range(2)]
            except (attention.NotInRows, RuntimeError, TypeError, AttributeError, IndexError, ValueError):
                return False
            finally:
                self._kept.clear()
                self._held = 0
        return all(unpadded.same(one, expected) for one in made)


def _has(module: nn.Module, changing: set[int]) -> bool:
    return any(id(parameter) in changing for parameter in module.parameters())
