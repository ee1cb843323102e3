"""GRPO through Confide's adapter and through bare TRL, on the same model, prompts, reward and seed: seconds a step.

The two take turns, each first as often as the other, so that what else the machine does falls on both; of each the
median step counts, the first of a turn not. Beside the clock's seconds stand those of the processors, on which others
that want them too have less of a say.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from confide import canonical
from confide_server.rlhf.training import trl_adapter
from confide_server.rlhf.training.documents import RlhfSpecification

from confide_simulations import assets
from confide_simulations.rlhf import prompts

STEPS, TURNS, BATCH, GENERATIONS, NEW_TOKENS, FIRST_LAYER = 6, 4, 4, 4, 8, 18


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Median seconds of a step by both, and ours over theirs as throughput."""
    base = assets.smollm2(say)
    taken: dict[str, list[tuple[float, float]]] = {"confide": [], "trl": []}
    arms = (("trl", _bare), ("confide", _ours))
    for turn in range(TURNS):
        for name, steps in arms if turn % 2 == 0 else arms[::-1]:
            say(f"GRPO, {STEPS} steps by {name}, turn {turn + 1} of {TURNS}")
            with tempfile.TemporaryDirectory() as folder:
                taken[name] += steps(base, Path(folder))[1:]
    clock = {name: statistics.median(wall for wall, _ in values) for name, values in taken.items()}
    processors = {name: statistics.median(cpu for _, cpu in values) for name, values in taken.items()}
    return {
        "step_s": clock, "step_cpu_s": processors, "steps": {name: len(values) for name, values in taken.items()},
        "throughput_of_bare": clock["trl"] / clock["confide"],
        "throughput_of_bare_by_cpu": processors["trl"] / processors["confide"],
        "setting": {"batch": BATCH, "generations": GENERATIONS, "new_tokens": NEW_TOKENS},
    }  # fmt: skip


def _reward(asked: Sequence[Any], answers: Sequence[Any]) -> list[float]:
    return [float(sum(map(ord, answer)) % 101 + number % 4) for number, answer in enumerate(answers)]


def _records() -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts.training(16)]


def _specification() -> RlhfSpecification:
    document = {
        "version": 1, "name": "speed", "method": "grpo", "base": {"sha256": "0" * 64}, "data": {"prompts": "1" * 64},
        "reward": {"kind": "rules", "rules": [{"name": "length", "argument": "40"}]},
        "training": {"steps": STEPS, "batch_size": BATCH, "generations": GENERATIONS, "max_new_tokens": NEW_TOKENS,
                     "first_layer": FIRST_LAYER, "save_steps": 1000, "max_prompt_tokens": 64},
        "limits": {"kl": 1e6},
    }  # fmt: skip
    made = RlhfSpecification.model_validate_json(canonical.encode(document))
    # So few tokens cut every answer off, which is no fault of a run that is only timed: beyond any share.
    return made.model_copy(update={"limits": made.limits.model_copy(update={"clipped_share": 2.0})})


class _Clock:
    """Seconds between the ends of steps: by the clock, and by the processors."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def tick(self, line: Any) -> None:
        if "loss" in line:
            self.ends.append((time.perf_counter(), time.process_time()))

    @property
    def steps(self) -> list[tuple[float, float]]:
        pairs = zip(self.ends, self.ends[1:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def _ours(base: Path, folder: Path) -> list[tuple[float, float]]:
    clock = _Clock()
    trl_adapter.train(
        _specification(), base=base, folder=folder, records=_records(), reward=_reward, say=clock.tick
    )  # fmt: skip
    return clock.steps


def _bare(base: Path, folder: Path) -> list[tuple[float, float]]:
    """TRL as its documentation shows it, with the same arguments."""
    clock = _Clock()
    trl_adapter.bare_grpo(
        _specification(), base=base, folder=folder, records=_records(),
        reward=lambda prompts, completions, **_: _reward(prompts, [one[-1]["content"] for one in completions]),
        tick=clock.tick,
    )  # fmt: skip
    return clock.steps
