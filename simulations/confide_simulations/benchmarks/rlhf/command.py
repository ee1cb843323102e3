"""`confide bench rlhf`: what privacy costs a reward model, federation costs DPO, methods send, and TRL's wrapper takes.

    confide bench rlhf --json rlhf.json --plot rlhf.svg

Four parts, each with what it is measured against in the same run. Figures stand in docs/rlhf.md.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from confide_simulations.benchmarks.meta import meta, write_result
from confide_simulations.benchmarks.rlhf import dpo, epsilon, speed, traffic

Say = Callable[[str], None]
PARTS: dict[str, Callable[[Say], dict[str, Any]]] = {
    "epsilon": epsilon.measure,
    "bytes": traffic.measure,
    "grpo": speed.measure,
    "dpo": dpo.measure,
}


def rlhf(
    json: Annotated[Path | None, typer.Option(help="Write the figures here.", dir_okay=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against epsilon (.svg or .png).")] = None,
    part: Annotated[str, typer.Option(help="One of epsilon, bytes, grpo, dpo; default: all.")] = "",
) -> None:
    """Reward accuracy against epsilon, federated DPO against central, bytes by method, GRPO beside bare TRL.

    The curve is of the steps and the noise that nodes take and add, in this process; three draws of data and noise.
    """
    if part and part not in PARTS:
        raise typer.BadParameter(f"{part!r} is none of {', '.join(PARTS)}")
    console = Console()
    result: dict[str, Any] = {"meta": meta(seed=0, config={"parts": part or "all"}), "seconds": {}}
    for name in [part] if part else list(PARTS):
        began = time.monotonic()
        result[name] = PARTS[name](lambda text: console.print(f"[dim]{text}[/dim]", highlight=False))
        result["seconds"][name] = round(time.monotonic() - began, 1)
        console.print_json(data={name: result[name]})
    if json is not None:
        write_result(json, result)
    if plot is not None and "epsilon" in result:
        epsilon.plot(result["epsilon"], plot)
