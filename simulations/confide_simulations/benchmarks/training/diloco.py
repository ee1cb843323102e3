"""DiLoCo (Douillard et al. 2023) against synchronous data parallel at equal tokens, on Shakespeare's plays by bytes.

Four nodes hold different plays. All runs share the first, synchronous steps (one AdamW over the pooled batch, which is
what averaging gradients at every step computes) and one cosine schedule. From there each node takes H AdamW steps at a
time by itself, starting from the optimizer state of the synchronous phase, and the mean update goes through the outer
Nesterov step; or every step stays synchronous. Local step, codec, error feedback and outer step are the product's own.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide import canonical
from confide.codec.layout import VectorLayout
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.proto import fleet_pb2
from confide.rounds.outer_step import OuterStep
from confide.runs.metrics import Metric
from confide.runs.schedule import clip_norm
from confide.runs.specification import Specification
from confide_client.data.datasets import LocalData
from confide_client.training import LocalTrainer
from numpy.typing import NDArray

Say = Callable[[str], None]
Flat = NDArray[np.float32]
Run = dict[str, Any]

NODES = 4
_ROUNDING = b"training benchmark, rounding key"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """steps: of a whole run, in all phases; warm_steps: synchronous ones at its beginning. batch: sequences a node."""

    steps: int = 360
    warm_steps: int = 120
    local_steps: int = 30
    batch: int = 8
    length: int = 128
    width: int = 96
    layers: int = 4
    held_out: int = 96
    learning_rate: float = 3e-3
    outer_learning_rate: float = 0.7
    momentum: float = 0.6


@dataclass(frozen=True)
class Corpus:
    """base: an untrained byte-level Llama. nodes: plays of each; held_out: plays of none."""

    base: Path
    nodes: tuple[list[dict[str, str]], ...]
    held_out: list[dict[str, str]]


def save_byte_model(folder: Path, scale: Scale) -> None:
    """A Llama over bytes with random weights, and its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=scale.width,
        intermediate_size=scale.width * 8 // 3,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=scale.length,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def specification(scale: Scale, local_steps: int, batch: int, seed: int, clip: float = 1.0) -> Specification:
    """Rounds of `local_steps` that together make the whole run, so that one schedule spans all phases.

    clip: L2 norm for an update at the full learning rate; used where updates are coded.
    """
    document = {
        "version": 1,
        "name": "diloco",
        "reproducible": True,
        "seed": seed,
        "model": {"sha256": "0" * 64},
        "adapter": {"kind": "full"},
        "method": {"name": "causal_lm", "max_length": scale.length},
        "training": {
            "local_steps": local_steps,
            "batch_size": batch,
            "micro_batch_size": 32,
            "learning_rate": scale.learning_rate,
            "schedule": "cosine",
            "warmup_steps": min(50, scale.steps // 10),
            "keep_optimizer_state": True,
        },
        "federation": {
            "rounds": scale.steps // local_steps,
            "data": "plays",
            "clip_norm": clip,
            "clip_schedule": "learning_rate",
            "outer": {
                "learning_rate": scale.outer_learning_rate,
                "momentum": scale.momentum,
                "nesterov": scale.momentum > 0,
            },
        },
        "sealing": {"kind": "none"},
    }
    return Specification.model_validate_json(canonical.encode(document))


def _slot(number: int, *, evaluate_only: bool = False) -> fleet_pb2.SlotOpen:
    return fleet_pb2.SlotOpen(slot=number, round=number, attempt=1, evaluate_only=evaluate_only)


class Study:
    """Runs that share their synchronous beginning."""

    def __init__(self, corpus: Corpus, scale: Scale, folder: Path, seed: int) -> None:
        self._corpus, self._scale, self._folder, self._seed = corpus, scale, folder, seed
        self._pooled = self._trainer(folder / "pooled", "pooled", scale.local_steps, NODES * scale.batch)
        self._pool = LocalData(train=[play for plays in corpus.nodes for play in plays], evaluation=[])
        self._held_out = LocalData(train=[], evaluation=corpus.held_out)
        self.parameters = self._pooled.schema.size

    def _trainer(self, folder: Path, node: str, local_steps: int, batch: int) -> LocalTrainer:
        """node: its name decides the order of its batches."""
        spec = specification(self._scale, local_steps, batch, self._seed)
        return LocalTrainer(spec, self._corpus.base, node=node, folder=folder, threads=1, device="cpu")

    def loss(self, model: Flat) -> float:
        """Held-out nats per byte."""
        return self._pooled.contribute(model, self._held_out, _slot(1, evaluate_only=True)).metrics[Metric.EVAL_LOSS]

    def synchronous(self, model: Flat, first_step: int, last_step: int) -> tuple[Flat, Run]:
        """Steps [first, last) with the gradient averaged at every step."""
        every, curve = self._scale.local_steps, []
        for number in range(first_step // every + 1, last_step // every + 1):
            model = model + self._pooled.contribute(model, self._pool, _slot(number)).update
            curve.append([number * every, round(self.loss(model), 4)])
        bits = 32 * self.parameters * (last_step - first_step)
        return model, {"loss": self.loss(model), "curve": curve, "bits": bits}

    def local(self, name: str, model: Flat, local_steps: int, *, bits: int | None = None, clip: float = 1.0) -> Run:
        """The rest of the run after the warm start, H steps at a time, every run of an H on the same batches.

        bits: None sends float32, unsealed. clip: of an update at the full learning rate; goes with bits.
        """
        scale = self._scale
        trainers = []
        for number in range(NODES):
            folder = self._folder / f"{name}-{number}"
            shutil.copytree(self._folder / "warm", folder)
            _renumber(folder, scale.warm_steps // local_steps)
            trainers.append(self._trainer(folder, f"h{local_steps}-{number}", local_steps, scale.batch))
        spec = specification(scale, local_steps, scale.batch, self._seed, clip)
        outer = OuterStep(spec.federation.outer, b"")
        feedback = [np.zeros(self.parameters, dtype=np.float32) for _ in trainers]
        curve, norms, sent = [], [], 0
        for number in range(scale.warm_steps // local_steps + 1, scale.steps // local_steps + 1):
            updates = [
                trainer.contribute(model, LocalData(train=plays, evaluation=[]), _slot(number)).update
                for trainer, plays in zip(trainers, self._corpus.nodes, strict=True)
            ]
            norms.append(max(float(np.linalg.norm(update)) for update in updates))
            if bits is None:
                total, size = np.sum(np.stack(updates), axis=0), 4 * self.parameters
            else:
                total, size = self._coded(updates, feedback, bits, clip_norm(spec, number), number)
            sent += 8 * size
            model = outer.apply(model, total, weight_sum=NODES)
            curve.append([number * local_steps, round(self.loss(model), 4)])
        return {"loss": self.loss(model), "curve": curve, "bits": sent, "largest_norms": norms}

    def _coded(
        self, updates: list[Flat], feedback: list[Flat], bits: int, clip: float, number: int
    ) -> tuple[Flat, int]:
        """(sum of the updates as the coordinator opens it, bytes that a node sent). Masks cancel: none are added."""
        seed = canonical.hash_fields("rotation", number.to_bytes(8, "big"))
        layout = VectorLayout(
            parameters=self.parameters, scalars=1, bits=bits, members=NODES, clip=clip, rotation_seed=seed
        )
        total = UploadSum(layout)
        for node, (update, lost) in enumerate(zip(updates, feedback, strict=True)):
            out = self._folder / f"upload-{node}"
            key = canonical.hash_fields(_ROUNDING.decode(), bytes([node]), number.to_bytes(8, "big"))
            out.unlink(missing_ok=True)
            digest = encode_upload(update, [1], layout, rounding_key=key, masks=[], out=out, feedback=lost)
            total.add(out, digest)
        return total.open(NODES)[0], layout.wire_bytes

    def warm_start(self) -> Flat:
        """The shared beginning; its optimizer state is kept for every run."""
        from confide.models.trainable import initial_state

        spec = specification(self._scale, self._scale.local_steps, self._scale.batch, self._seed)
        start = self._pooled.schema.flatten(initial_state(spec, self._corpus.base))
        model, _ = self.synchronous(start, 0, self._scale.warm_steps)
        shutil.copytree(self._folder / "pooled", self._folder / "warm")
        return model


def _renumber(folder: Path, last_round: int) -> None:
    """Rounds of another length: the newest state is that of the last round before the first local one."""
    newest = max(folder.glob("optimizer-*.safetensors"))
    newest.rename(folder / "newest")
    for path in folder.glob("optimizer-*.safetensors"):
        path.unlink()
    (folder / "newest").rename(folder / f"optimizer-{last_round:06d}.safetensors")


def compare(corpus: Corpus, scale: Scale, folder: Path, seed: int, say: Say) -> Run:
    """All runs: {"synchronous", "h30", "h30_4bit": loss, "bits_ratio": ..., "runs": curves}."""
    study = Study(corpus, scale, folder, seed)
    say(f"{study.parameters:,} parameters: {scale.warm_steps} synchronous steps that all runs share")
    warm = study.warm_start()
    runs: dict[str, Run] = {}
    h = scale.local_steps
    runs[f"h{h}"] = study.local(f"h{h}", warm, h)
    say(f"H = {h}, float32: {runs[f'h{h}']['loss']:.4f} nats a byte")
    # A run's operator sets the clip from what updates measure; the code's scale hangs on it.
    unit, first = specification(scale, h, scale.batch, seed, clip=1.0), scale.warm_steps // h + 1
    clip = max(norm / clip_norm(unit, first + i) for i, norm in enumerate(runs[f"h{h}"]["largest_norms"]))
    runs[f"h{h}_4bit"] = study.local(f"h{h}_4bit", warm, h, bits=4, clip=clip)
    say(f"H = {h}, 4 bits: {runs[f'h{h}_4bit']['loss']:.4f}")
    runs["h10"] = study.local("h10", warm, 10)
    say(f"H = 10, float32: {runs['h10']['loss']:.4f}")
    _, runs["synchronous"] = study.synchronous(warm, scale.warm_steps, scale.steps)
    say(f"synchronous: {runs['synchronous']['loss']:.4f}")
    warm_bits = 32 * study.parameters * scale.warm_steps
    coded, synchronous = runs[f"h{h}_4bit"]["bits"], runs["synchronous"]["bits"]
    losses = {name: round(run["loss"], 4) for name, run in runs.items()}
    return {
        **losses,
        "after_warm_start": round(study.loss(warm), 4),
        "bits_ratio": round(synchronous / coded, 1),
        "bits_ratio_warm_start_counted": round((warm_bits + synchronous) / (warm_bits + coded), 2),
        "gap": round(losses[f"h{h}"] / losses["synchronous"] - 1, 4),
        "gap_of_4_bits": round(losses[f"h{h}_4bit"] / losses[f"h{h}"] - 1, 4),
        "clip": round(clip, 4),
        "parameters": study.parameters,
        "curves": {name: run["curve"] for name, run in runs.items()},
    }


def plays_of(folder: Path, scale: Scale, base: Path) -> Corpus:
    """The plays' speeches, whole plays dealt to the nodes in turn; every ninth is held out."""
    from confide_simulations.benchmarks.privacy.task import speeches

    plays: dict[str, list[str]] = {}
    for genre in sorted(path for path in folder.iterdir() if path.is_dir()):
        for record in speeches(genre):
            plays.setdefault(record["play"], []).append(record["prompt"] + record["completion"])
    texts = [{"text": "\n".join(plays[name])} for name in sorted(plays)]
    held_out = [{"text": text["text"][: scale.held_out * scale.length // 4]} for text in texts[::9][:4]]
    rest = [text for number, text in enumerate(texts) if number % 9]
    save_byte_model(base, scale)
    return Corpus(base, tuple(rest[node::NODES] for node in range(NODES)), held_out)
