"""Cross-entropy over a vocabulary, with logits only at positions that have a label.

Logits of every position are what fills memory in language-model training: 49,152 of them a token here. The model's
body gives hidden states; the head runs on the labelled ones, in chunks.
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from confide.methods.base import IGNORED, Batch
from confide.models.arithmetic import unpadded
from confide.models.arithmetic.frozen_prefix import FrozenPrefix

_CHUNK_ON_CPU, _CHUNK_ON_GPU = 256, 4096
"""Positions: what fits a processor's cache, and few large kernels."""


class TokenLoss:
    """Summed cross-entropy in nats of a batch whose labels (B, T) stand where they are predicted."""

    def __init__(self) -> None:
        self._checked: tuple[int, nn.Module | None] | None = None
        self._in_rows: tuple[int, bool] | None = None
        self.prefix: FrozenPrefix | None = None
        """Of the model that is trained, where its lower layers are frozen."""

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        """float32 scalar. Model: any transformers model with a language head, causal or masked."""
        wanted = batch.labels != IGNORED
        labels = batch.labels[wanted]
        head = self._head(model, batch)
        if head is None or _wants_rows(head):
            return F.cross_entropy(model(**batch.inputs).logits[wanted].float(), labels, reduction="sum")
        hidden = self._states(model, batch, wanted)
        if isinstance(head, nn.Linear) and not any(p.requires_grad or p.ndim != 2 for p in head.parameters()):
            loss: torch.Tensor = _FrozenHeadLoss.apply(hidden, head.weight, labels)  # type: ignore[no-untyped-call]
            return loss
        return F.cross_entropy(head(hidden).float(), labels, reduction="sum")

    def score(self, model: Any, batch: Batch) -> tuple[float, torch.Tensor]:
        """(summed loss, (B,): whether the likeliest token is the label at every labelled position). No gradients.

        The second is what greedy decoding writes: it follows the labels exactly when it never leaves them.
        """
        wanted = batch.labels != IGNORED
        labels = batch.labels[wanted]
        head = self._head(model, batch)
        if head is None:
            states, head = model(**batch.inputs).logits[wanted], nn.Identity()
        else:
            states = self._states(model, batch, wanted)
        total, right = 0.0, torch.empty_like(labels, dtype=torch.bool)
        chunk = _chunk_on(states.device)
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = head(states[part]).float()
            total += float(F.cross_entropy(logits, labels[part], reduction="sum"))
            right[part] = logits.argmax(dim=-1) == labels[part]
        wrong = torch.bincount(wanted.nonzero()[:, 0][~right], minlength=len(wanted))
        return total, wrong == 0

    def rows(self, model: Any, batch: Batch) -> torch.Tensor:
        """float32 (B,): the same, summed over each row. Logits of all labelled positions exist at once."""
        wanted = batch.labels != IGNORED
        head = self._head(model, batch)
        if head is None:
            logits = model(**batch.inputs).logits[wanted]
        else:
            logits = head(body_of(model)(**batch.inputs).last_hidden_state[wanted])
        losses = F.cross_entropy(logits.float(), batch.labels[wanted], reduction="none")
        return losses.new_zeros(len(wanted)).index_add(0, wanted.nonzero()[:, 0], losses)

    def _states(self, model: Any, batch: Batch, wanted: torch.Tensor) -> torch.Tensor:
        """(labelled positions, D): hidden states, by way of one unpadded sequence where the model allows it."""
        drops = unpadded.drops(model)
        found = None if unpadded.watched(model) else unpadded.rows_of(batch.inputs, shared=not drops)
        if found is None or not self._runs_in_rows(model):
            padded: torch.Tensor = body_of(model)(**batch.inputs).last_hidden_state
            return padded[wanted]
        rows, mask = found
        kept = self.prefix is not None and not drops and not torch.is_inference_mode_enabled()
        states = self.prefix.states(rows, mask) if self.prefix and kept else rows.states(body_of(model))
        return states.index_select(0, rows.places[wanted])

    def _runs_in_rows(self, model: Any) -> bool:
        if self._in_rows is None or self._in_rows[0] != id(model):
            self._in_rows = (id(model), unpadded.runs_in_rows(model, body_of(model)))
        return self._in_rows[1]

    def _head(self, model: Any, batch: Batch) -> nn.Module | None:
        """The module that turns hidden states into logits, or None when the model does more than that (found out)."""
        if self._checked is None or self._checked[0] != id(model):
            self._checked = (id(model), _plain_head(model, batch))
        return self._checked[1]


def _chunk_on(device: torch.device) -> int:
    return _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK_ON_GPU


def _wants_rows(head: nn.Module) -> bool:
    """Whether hooks on a trained head take gradients row by row (DP-SGD): then it must see (B, T, D), not positions."""
    return any(len(module._forward_hooks) > 0 for module in head.modules())


def body_of(model: Any) -> Any:
    """The model without its head."""
    return getattr(model, model.base_model_prefix)


def accepts(module: Any, argument: str) -> bool:
    """Whether a module's forward takes an argument by this name."""
    return argument in inspect.signature(module.forward).parameters


def _plain_head(model: Any, batch: Batch) -> nn.Module | None:
    """Some models scale or cap their logits after the head: compare on one short row instead of keeping a list."""
    training = model.training
    model.eval()
    ids = batch.inputs["input_ids"][:1, :8]
    try:
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            expected = model(input_ids=ids).logits
            hidden = body_of(model)(input_ids=ids).last_hidden_state
            for head in (getattr(model, "cls", None), model.get_output_embeddings(), getattr(model, "lm_head", None)):
                if isinstance(head, nn.Module) and _same(head, hidden, expected):
                    return head
    finally:
        model.train(training)
    return None


def _same(head: nn.Module, hidden: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        logits = head(hidden)
    except RuntimeError:  # shapes do not fit: a head that expects something else than hidden states
        return False
    return logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen linear head: its gradient is made in the forward pass, chunk by chunk.

    hidden: (N, D); weight: (V, D); labels: (N,). Logits of one chunk of positions exist at a time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        chunk = _chunk_on(hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ weight.T.to(hidden.dtype)).float()
            log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += (log_z - logits.gather(1, labels[part, None])).sum()
            if gradient is not None:
                probabilities = logits.sub_(log_z).exp_()
                probabilities.scatter_add_(1, labels[part, None], torch.full_like(log_z, -1.0))
                gradient[part] = probabilities.to(hidden.dtype) @ weight.to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None
