"""TRL behind one module: nothing else of the project imports it.

What it would do that a privacy product must not: telemetry (switched off before its import), prompts and completions in
clear in its log when every reward is missing (filtered), rewards that are missing or NaN counted as nothing (an error
here), a completion cap that clips everything in silence (a named stop here), and a reference that follows the adapter
(guarded: what the reference is at the end is compared with what it was at the start).
"""

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from confide.errors import TrainingError
from confide.files import private_folder

from confide_server.rlhf.training.documents import RlhfSpecification

for _name, _value in (
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("TRL_EXPERIMENTAL_SILENCE", "1"),
    ("TQDM_DISABLE", "1"),
):
    os.environ.setdefault(_name, _value)

RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, completions) -> one finite number each."""


class StopReason(StrEnum):
    """Why a run ended before its last step."""

    REWARDS_EQUAL = "REWARDS_EQUAL"
    ALL_CLIPPED = "ALL_CLIPPED"
    KL_LIMIT = "KL_LIMIT"
    REWARDS_LATE = "REWARDS_LATE"
    REWARD_NOT_FINITE = "REWARD_NOT_FINITE"


class Stopped(TrainingError):
    """A run that would go on learning nothing, or the wrong thing."""

    def __init__(self, reason: StopReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


@dataclass
class Trained:
    """adapter: folder in PEFT's format. history: TRL's metrics, one document a log line. stopped: None at the end."""

    adapter: Path
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: StopReason | None = None
    detail: str = ""


class NoTexts(logging.Filter):
    """Drops TRL's warning that quotes a prompt and its completion; anything else passes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for the record that holds texts."""
        return "All reward functions returned None" not in str(record.msg)


def silence() -> None:
    """Put the filter on every logger of TRL's trainers, before and after they exist."""
    for name in ("trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, NoTexts) for one in logger.filters):
            logger.addFilter(NoTexts())


class Rewards:
    """A reward function as TRL calls it: in time, finite, one number an answer, and not all equal for ever."""

    __name__ = "reward"

    def __init__(self, function: RewardFunction, specification: RlhfSpecification) -> None:
        self._function, self._limits = function, specification.limits
        self._generations = specification.training.generations
        self._equal = 0

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Raises Stopped."""
        found = self._in_time([_text(p) for p in prompts], [_text(c) for c in completions])
        if len(found) != len(completions):
            raise TrainingError(
                f"the reward gave {len(found)} numbers for {len(completions)} answers; it must give one each"
            )
        values = [float(value) if value is not None else math.nan for value in found]
        bad = sum(not math.isfinite(value) for value in values)
        if bad:
            raise Stopped(
                StopReason.REWARD_NOT_FINITE,
                f"{bad} of {len(values)} rewards are missing, NaN or infinite; repair the reward",
            )
        groups = [values[start : start + self._generations] for start in range(0, len(values), self._generations)]
        self._equal = self._equal + 1 if all(len(set(group)) == 1 for group in groups) else 0
        if self._equal >= self._limits.equal_batches:
            raise Stopped(
                StopReason.REWARDS_EQUAL,
                f"in {self._equal} batches all rewards of each prompt were equal, so that nothing is learned; raise "
                "the temperature, or use a reward that tells answers apart",
            )
        return values

    def _in_time(self, prompts: list[str], completions: list[str]) -> Sequence[Any]:
        answer: list[Any] = []

        def ask() -> None:
            try:
                answer.append(self._function(prompts, completions))
            except BaseException as error:  # whoever waits raises it; else it would look like a late reward
                answer.append(error)

        thread = threading.Thread(target=ask, name="reward", daemon=True)
        thread.start()
        thread.join(self._limits.reward_deadline_s)
        if not answer:
            raise Stopped(
                StopReason.REWARDS_LATE,
                f"no rewards within limits.reward_deadline_s = {self._limits.reward_deadline_s:g} s; they are never "
                "taken to be zero. Raise the limit, or repair the reward",
            )
        if isinstance(answer[0], BaseException):
            raise answer[0]
        found: Sequence[Any] = answer[0]
        return found


def _text(value: Any) -> str:
    """Of a prompt or completion, plain or conversational."""
    return value if isinstance(value, str) else str(value[-1]["content"])


def _callback(specification: RlhfSpecification, trained: Trained, say: Callable[[Mapping[str, float]], None]) -> Any:
    from transformers import TrainerCallback

    limits = specification.limits

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships it untyped
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            line = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
            line["step"] = float(state.global_step)
            trained.history.append(line)
            say(line)
            if line.get("kl", 0.0) > limits.kl:
                raise Stopped(
                    StopReason.KL_LIMIT,
                    f"the policy is {line['kl']:.3g} nats from its reference, beyond limits.kl = {limits.kl:g}; raise "
                    "training.beta or lower the learning rate",
                )
            if line.get("completions/clipped_ratio", 0.0) >= limits.clipped_share:
                raise Stopped(
                    StopReason.ALL_CLIPPED,
                    f"{line['completions/clipped_ratio']:.0%} of the answers were cut off by training.max_new_tokens = "
                    f"{specification.training.max_new_tokens}; raise it",
                )

    return Watch()


class ReferenceGuard:
    """Holds that the reference is what the run started from: the base, or the adapter that was given.

    TRL keeps the reference of an adapter as a second adapter, "ref", copied when its trainer is made.
    """

    def __init__(self, model: Any, start: Mapping[str, bytes]) -> None:
        """start: digests of the starting adapter's tensors, or of none."""
        self._model, self._start = model, dict(start)
        self._before = self._digest()
        if self._start and self._before != self._start:
            raise TrainingError("REFERENCE_DRIFTED: the reference is not the adapter that the run starts from")

    def check(self) -> None:
        """Raise TrainingError REFERENCE_DRIFTED when it is not what it was."""
        if self._digest() != self._before:
            raise TrainingError(
                "REFERENCE_DRIFTED: the reference changed while the policy was trained; what was learned is measured "
                "against nothing and is thrown away"
            )

    def _digest(self) -> dict[str, bytes]:
        return (
            digests(
                {
                    name.replace(".ref.", "."): tensor
                    for name, tensor in self._model.state_dict().items()
                    if ".ref." in name
                }
            )
            if self._start
            else digests({name: tensor for name, tensor in self._model.state_dict().items() if "lora_" not in name})
        )


def digests(tensors: Mapping[str, Any]) -> dict[str, bytes]:
    """SHA-256 of each tensor's bytes."""
    return {
        name: hashlib.sha256(tensor.detach().float().contiguous().cpu().numpy().tobytes()).digest()
        for name, tensor in tensors.items()
    }


def train(
    specification: RlhfSpecification,
    *,
    base: Path,
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    adapter: Path | None = None,
    reward: RewardFunction | None = None,
    say: Callable[[Mapping[str, float]], None] = lambda line: None,
) -> Trained:
    """Run DPO, KTO, GRPO or RLOO to its last step or to a named stop; goes on from the newest checkpoint in `folder`.

    base: model folder. adapter: what the run starts from and is measured against; None: the base. records: {prompt,
    chosen, rejected} for dpo, {prompt, completion, label} for kto, {prompt} for grpo and rloo, which need `reward`.
    """
    silence()
    import datasets
    from transformers import PrinterCallback

    datasets.disable_progress_bars()
    private_folder(folder)
    model, peft_config, start = _model(specification, base, adapter)
    made = _trainer(specification, model, peft_config, folder, datasets.Dataset.from_list(list(records)), base, reward)
    trained = Trained(adapter=folder / "adapter", steps=0)
    made.remove_callback(PrinterCallback)  # it prints every metric as it comes; `say` is told of them
    made.add_callback(_callback(specification, trained, say))
    guard = ReferenceGuard(made.model, start)
    newest = _newest_checkpoint(folder)
    if newest is not None and _step(newest) >= specification.training.steps:
        _take(made, newest)  # asked to go on from its last step, transformers would do one more
        trained.history.extend(made.state.log_history)
    else:
        try:
            made.train(resume_from_checkpoint=None if newest is None else str(newest))
        except Stopped as stop:
            trained.stopped, trained.detail = stop.reason, str(stop)
    guard.check()
    _check_finite(made.model)
    trained.steps = int(made.state.global_step)
    made.model.save_pretrained(str(trained.adapter), selected_adapters=["default"])
    return trained


def _check_finite(model: Any) -> None:
    """Raise TrainingError for a policy of NaN, which TRL trains to the last step without a word."""
    bad = [name for name, tensor in model.named_parameters() if tensor.requires_grad and not tensor.isfinite().all()]
    if bad:
        raise TrainingError(
            f"POLICY_NOT_FINITE: {len(bad)} of the policy's matrices hold NaN or infinity, {bad[0]!r} first; no "
            "adapter is kept. Lower training.learning_rate, and train into another folder"
        )


def _newest_checkpoint(folder: Path) -> Path | None:
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path / "trainer_state.json")]
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _take(trainer: Any, checkpoint: Path) -> None:
    """The policy and the state of a checkpoint, without a step."""
    import peft
    from safetensors.torch import load_file
    from transformers import TrainerState

    peft.set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _is_whole(state: Path) -> bool:
    """It is written last, but not at once: who was killed in it left its beginning."""
    try:
        json.loads(state.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _model(specification: RlhfSpecification, base: Path, adapter: Path | None) -> tuple[Any, Any, dict[str, bytes]]:
    """(model, configuration of a fresh adapter or None, digests of the starting one)."""
    import peft
    import torch
    import transformers
    from confide.models.answering import with_adapter
    from confide.models.pretrained import load_pretrained

    torch.manual_seed(specification.seed)
    model = load_pretrained(transformers.AutoModelForCausalLM, base, torch.float32)
    if adapter is not None:
        started = with_adapter(model, adapter, trainable=True)
        tensors = {
            name.replace(".default.", "."): tensor
            for name, tensor in started.state_dict().items()
            if ".default." in name
        }
        return started, None, digests(tensors)
    layers = int(model.config.get_text_config().num_hidden_layers)
    training = specification.training
    config = peft.LoraConfig(
        r=training.rank, lora_alpha=training.alpha, lora_dropout=0.0, target_modules=list(training.target_modules),
        layers_to_transform=list(range(training.first_layer, layers)), task_type="CAUSAL_LM",
    )  # fmt: skip
    return model, config, {}


def _trainer(
    specification: RlhfSpecification, model: Any, peft_config: Any, folder: Path, data: Any, base: Path,
    reward: RewardFunction | None,
) -> Any:  # fmt: skip
    import trl
    from confide.models.architecture import load_tokenizer

    training, common = specification.training, _common(specification, folder)
    tokenizer = load_tokenizer(base)
    given = {"model": model, "train_dataset": data, "processing_class": tokenizer, "peft_config": peft_config}
    length = training.max_prompt_tokens + training.max_new_tokens
    if specification.method == "dpo":
        return trl.DPOTrainer(args=_dpo_config(trl, common, length, training.loss), **given)
    if specification.method == "kto":
        return trl.KTOTrainer(args=trl.KTOConfig(**common, max_length=length), **given)
    if reward is None:
        raise TrainingError(f"method {specification.method!r} needs a reward; name one under [reward]")
    tokenizer.padding_side = "left"
    kinds = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}
    trainer, config = kinds[specification.method]
    return trainer(
        args=config(**common, **_rollout(specification)), reward_funcs=[Rewards(reward, specification)], **given
    )


def _common(specification: RlhfSpecification, folder: Path) -> dict[str, Any]:
    """Arguments that all trainers take."""
    training = specification.training
    return {
        "output_dir": str(folder), "max_steps": training.steps, "learning_rate": training.learning_rate,
        "per_device_train_batch_size": training.batch_size, "logging_steps": 1, "report_to": [],
        "save_steps": training.save_steps, "save_total_limit": 2, "seed": specification.seed, "use_cpu": training.cpu,
        "beta": training.beta, "disable_tqdm": True, "push_to_hub": False, "dataloader_pin_memory": False,
        "bf16": False, "gradient_checkpointing": False, "lr_scheduler_type": "constant", "logging_strategy": "steps",
    }  # fmt: skip


def _rollout(specification: RlhfSpecification) -> dict[str, Any]:
    """Arguments of the trainers that generate."""
    training = specification.training
    return {
        "num_generations": training.generations, "max_completion_length": training.max_new_tokens,
        "temperature": training.temperature, "log_completions": False,
    }  # fmt: skip


def _dpo_config(trl: Any, common: Mapping[str, Any], length: int, loss: str) -> Any:
    """The reference's log-probabilities once before the first step, in place of in every step: they do not change."""
    return trl.DPOConfig(**common, max_length=length, loss_type=[loss], precompute_ref_log_probs=True)


def bare_grpo(
    specification: RlhfSpecification, *, base: Path, folder: Path, records: Sequence[Mapping[str, Any]],
    reward: Callable[..., list[float]], tick: Callable[[Mapping[str, Any]], None],
) -> None:  # fmt: skip
    """GRPO by TRL alone, without anything of this module but the same arguments: what a benchmark compares it with."""
    import datasets
    import trl
    from confide.models.architecture import load_tokenizer
    from transformers import PrinterCallback, TrainerCallback

    class Tick(TrainerCallback):  # type: ignore[misc]  # transformers ships it untyped
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            tick(logs or {})

    model, peft_config, _ = _model(specification, base, None)
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    made = trl.GRPOTrainer(
        model=model, train_dataset=datasets.Dataset.from_list(list(records)), processing_class=tokenizer,
        peft_config=peft_config, reward_funcs=[reward],
        args=trl.GRPOConfig(**_common(specification, folder), **_rollout(specification)),
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    made.add_callback(Tick())
    made.train()
