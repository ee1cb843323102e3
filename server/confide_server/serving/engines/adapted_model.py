"""A base model with adapters side by side, each under its content's hash, in one batch.

    model = AdaptedModel(base_folder)
    model.add(sha256, folder)                      # checked, loaded, tried
    logits = model.forward(ids_BT, batch, [sha256, BASE])

Guarantee: a row is computed with the adapter that is named for it, or with none; which one is said anew for every
forward pass, and there is no "active" adapter that two requests could disagree about.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from confide.errors import ModelError
from confide.models.answering import check_adapter, ends, load_writer, with_adapter
from confide.models.store import folder_digest
from peft import PeftModel
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import LoraLayer

from confide_server.serving.engines.padded_batch import PaddedBatch, batches_rows
from confide_server.serving.port import BASE

log = logging.getLogger(__name__)

_PEFT_BASE = "__base__"
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "use_qalora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "use_bdlora": None,
    "velora_config": None,
    "monteclora_config": None,
    "kasa_config": None,
    "megatron_config": None,
}
"""What an adapter must be to share a batch with others: two matrices beside a linear layer, and nothing else."""
_PROBE = "The quick brown fox jumps over the lazy dog. 0123456789 Does a sole trader need a permit?"
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Of the largest logit: so far two shapes of one batch may lie apart. SmolLM2-135M in bfloat16 was seen to differ by up
to 0.033 by rounding alone, and by 0.22 to 0.71 where it read padding; in float32 by 3e-6."""
_CLEAR = 10.0
"""How many times rounding's own difference at one shape an adapter's effect must be."""


class AdaptedModel:
    """Used from one thread at a time."""

    def __init__(self, base_folder: Path, device: str | None = None) -> None:
        """Raises ModelError for a base that writes no text, or whose attention is not torch's (sdpa)."""
        self.folder = base_folder
        self.sha256 = folder_digest(base_folder)
        self._model, self.tokenizer = load_writer(base_folder, device)
        self.config = self._model.config.get_text_config(decoder=True)
        used = self._model.config._attn_implementation
        if used != "sdpa":
            raise ModelError(
                f"the {self.config.model_type} model in {base_folder} computes attention by {used!r}; only sdpa is "
                "served, since other ways were seen to answer padded batches wrongly. Serve another base model"
            )
        self._takes_positions = "position_ids" in _parameters(self._model.forward)
        self.device = self._model.device
        self.vocabulary = int(self.config.vocab_size)
        self.ends = frozenset(ends(self._model, self.tokenizer))
        self.context = int(getattr(self.config, "max_position_embeddings", None) or 1 << 20)
        self.parameters = int(self._model.num_parameters())
        self._rounding = _ROUNDING.get(self._model.dtype, 0.1)
        self.plain = batches_rows(self._model.config)
        """Whether rows can share a batch."""
        self._names: list[str] = []
        self._hooked: set[int] = set()
        self.adapters: set[str] = set()
        self._try_out()

    @property
    def bare(self) -> Any:
        """transformers' own model, for who compares."""
        return self._model

    def batch(self, mask_BT: torch.Tensor) -> PaddedBatch:
        """An empty batch for rows with this mask."""
        return PaddedBatch(self._model.config, mask_BT.to(self.device), plain=self.plain)

    def forward(self, ids_BT: torch.Tensor, batch: PaddedBatch, adapters: Sequence[str], keep: int = 1) -> torch.Tensor:
        """float32 logits of the last `keep` columns, shape (rows, keep, vocabulary); the batch has seen the columns.

        adapters: one hash (or BASE) a row.
        """
        unknown = set(adapters) - self.adapters - {BASE}
        if unknown:  # else PEFT would answer with the base model, in silence
            raise ModelError(f"adapter {min(unknown)[:12]} is not loaded here")
        self._names[:] = [name or _PEFT_BASE for name in adapters]
        fed = batch.feed(ids_BT.shape[1])
        if not self._takes_positions:
            fed.pop("position_ids")
        with torch.inference_mode():
            output = self._model(
                input_ids=ids_BT.to(self.device),
                past_key_values=batch.cache,
                use_cache=True,
                logits_to_keep=keep,
                **fed,
            )
        logits: torch.Tensor = output.logits[:, -keep:].float()
        return logits

    def _try_out(self) -> None:
        """Raises ModelError where the model does not compute; one that batching disturbs takes one row at a time."""
        whole = [int(token) for token in self.tokenizer(_PROBE)["input_ids"][: self.context]]
        prompts = [whole, whole[: max(1, len(whole) // 3)]]
        try:
            alone = [self._last_logits([prompt])[0] for prompt in prompts]
            together = self._last_logits(prompts) if self.plain else None
            undisturbed, disturbed = (self._next_logits(*prompts, between=between) for between in (False, True))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"the model in {self.folder} does not compute here: {reason}; serve another") from error
        if not all(bool(one.isfinite().all()) for one in alone):
            raise ModelError(f"the model in {self.folder} makes numbers that are not finite; serve another one")
        scale = max(float(one.abs().max()) for one in alone)
        if float((undisturbed - disturbed).abs().max()) > self._rounding * scale:
            raise ModelError(
                f"the {self.config.model_type} model keeps what it has read in itself, and not in its cache: one "
                "answer would leak into another. Serve another base model"
            )
        if together is not None and float((together - torch.stack(alone)).abs().max()) > self._rounding * scale:
            log.warning("padding disturbs this %s model; answers are written one at a time", self.config.model_type)
            self.plain = False

    def _last_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return self.forward(ids, self.batch(mask), [BASE] * len(prompts))[:, -1]

    def _next_logits(self, prompt: Sequence[int], other: Sequence[int], *, between: bool) -> torch.Tensor:
        """After the prompt and one token more; perhaps another prompt is read in between."""
        ids, others = torch.tensor([list(prompt)]), torch.tensor([list(other)])
        batch = self.batch(torch.ones_like(ids))
        self.forward(ids, batch, [BASE])
        if between:
            self.forward(others, self.batch(torch.ones_like(others)), [BASE])
        batch.add_column()
        return self.forward(ids[:, :1], batch, [BASE])

    def add(self, sha256: str, folder: Path) -> None:
        """Load an adapter and try it. Raises ModelError for one that does not fit, or changes nothing."""
        if sha256 in self.adapters:
            return
        check_adapter(folder, self.folder)
        _check_plain(folder)
        before = self._logits(BASE)
        try:
            self._model = with_adapter(self._model, folder, sha256)
            self._model.to(self.device).eval()
            self._hook()
            self.adapters.add(sha256)
            self._probe(sha256, before)
        except Exception as error:
            self.remove(sha256)
            if isinstance(error, ModelError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"the adapter in {folder} cannot be loaded onto this base model: {reason}") from error

    def remove(self, sha256: str) -> None:
        """Forget an adapter, or what a load that failed left of one; no row may use it any more."""
        self.adapters.discard(sha256)
        if not self.adapters:
            self._model = _bare(self._model)
            self._hooked.clear()
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of which adapter is "active" then: none is asked by that here
            if sha256 in self._model.peft_config:
                self._model.delete_adapter(sha256)
            for module in self._model.modules():  # where PEFT gave up in the middle it knows nothing of it any more
                if isinstance(module, LoraLayer):
                    module.delete_adapter(sha256)

    def _hook(self) -> None:
        """Tell every adapted layer, at each pass, which adapter each row has."""
        for module in self._model.modules():
            if isinstance(module, LoraLayer) and id(module) not in self._hooked:
                module.register_forward_pre_hook(self._name_rows, with_kwargs=True)
                self._hooked.add(id(module))

    def _name_rows(self, _: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**options, "adapter_names": self._names}

    def _logits(self, *adapters: str) -> torch.Tensor:
        ids = torch.tensor([self.tokenizer(_PROBE)["input_ids"][: self.context]] * len(adapters))
        if not self.plain:
            rows = [self.forward(ids[:1], self.batch(torch.ones_like(ids[:1])), [one]) for one in adapters]
            return torch.cat(rows)[:, -1]
        return self.forward(ids, self.batch(torch.ones_like(ids)), adapters)[:, -1]

    def _probe(self, sha256: str, before: torch.Tensor) -> None:
        """The adapter must change an answer by more than rounding does, and base and adapter each answer as alone.

        Its effect is taken at one shape: between two shapes bfloat16 rounds by more than a short training changes.
        """
        base, again, adapted = before[0], self._logits(BASE)[0], self._logits(sha256)[0]
        noise, effect = _apart(base, again), _apart(base, adapted)
        if not bool(adapted.isfinite().all()):
            raise ModelError(f"adapter {sha256[:12]} makes numbers that are not finite of this base model; train anew")
        if effect <= _CLEAR * noise:
            raise ModelError(
                f"adapter {sha256[:12]} changes nothing on this base model ({effect:.2g} at most, rounding {noise:.2g}"
                "): its names do not match the model's, or it is as training began. Export it again for this base"
            )
        scale = max(float(base.abs().max()), float(adapted.abs().max()))
        mixed = self._logits(BASE, sha256)
        if max(_apart(base, mixed[0]), _apart(adapted, mixed[1])) > self._rounding * scale:
            raise ModelError(
                f"base model and adapter {sha256[:12]} answer differently in one batch than alone; do not serve it"
            )


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _bare(model: Any) -> Any:
    """The base model as it was before any adapter, also where PEFT gave up in the middle of its layers."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in list(base.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, own = name.rpartition(".")
            setattr(base.get_submodule(parent), own, module.get_base_layer())
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base


def _check_plain(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fields that a newer release of PEFT wrote: each is judged here
        try:
            config = LoraConfig.from_pretrained(str(folder)).to_dict()
        except (TypeError, ValueError, KeyError, OSError) as error:
            raise ModelError(f"{folder / 'adapter_config.json'} describes no LoRA adapter: {error}") from error
    for name, wanted in _PLAIN.items():
        found = config.get(name, wanted)
        if (getattr(found, "value", found) or None) != (wanted or None):
            raise ModelError(
                f"the adapter in {folder} has {name} = {found!r}; adapters with {name} = {wanted!r} are served. Merge "
                "it into its base (`confide run export --merged`) and serve that"
            )


def _parameters(function: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(function).parameters)
