"""`confide demo`: four organizations, as real processes, fine-tune one model on real text."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

app = typer.Typer(invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def fine_tuning(
    context: typer.Context,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1, max=100)] = 3,
    nodes: Annotated[int, typer.Option(help="Organizations.", min=2, max=16)] = 4,
    data: Annotated[
        Path | None,
        typer.Option(help='Your own questions: JSON lines {"question", "answer", "category"}.', exists=True),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model folder instead of SmolLM2.", exists=True, file_okay=False)
    ] = None,
    sealing: Annotated[Literal["sealed", "none"], typer.Option(help="none: for comparison only.")] = "sealed",
    output: Annotated[Path, typer.Option(help="Where adapter and plot go.", file_okay=False)] = Path("demo-output"),
    held_out: Annotated[int, typer.Option(help="Questions that nobody trains on.", min=1)] = 40,
    local_steps: Annotated[int, typer.Option(help="Optimizer steps of a node in a round.", min=1)] = 3,
    keep: Annotated[bool, typer.Option("--keep", help="Keep state folders and logs.")] = False,
    web: Annotated[
        bool, typer.Option("--console", help="Show the run live in the web console, and stay until Ctrl-C.")
    ] = False,
) -> None:
    """Start a coordinator and nodes, train one model together, and score it against training alone."""
    if context.invoked_subcommand is not None:
        return
    from confide_simulations.demo import report
    from confide_simulations.demo.run import Options, run

    console = Console()
    options = Options(
        rounds=rounds,
        nodes=nodes,
        data=data,
        model=model,
        sealing=sealing,
        output=output,
        held_out=held_out,
        local_steps=local_steps,
        keep=keep,
        console=web,
    )

    def show(result: report.DemoResult) -> None:
        report.print_report(console, result)
        console.print(f"adapter: {result.adapter}   plot: {output / 'loss.png'}", highlight=False)
        console.print(f"{result.seconds:.0f} s, peak memory of all processes {result.peak_memory_mib:.0f} MiB (PSS)")
        if json is not None:
            report.write_json(json, result)

    run(options, console, show)


@app.command()
def rlhf(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    policy: Annotated[
        bool, typer.Option(help="Also align SmolLM2 by the private reward, and pass it by the gate.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Keep state folders and logs.")] = False,
) -> None:
    """Learn a reward from people's comparisons that stay at four organizations, and align a model by it."""
    from confide.files import write_atomic

    from confide_simulations.rlhf.report import print_report, to_bytes
    from confide_simulations.rlhf.run import Options, run

    console = Console()
    result = run(Options(policy=policy, keep=keep), console)
    print_report(console, result)
    if json is not None:
        write_atomic(json, to_bytes(result), mode=0o644)


@app.command()
def rag(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the library.")] = False,
    adapter: Annotated[
        Path,
        typer.Option(help="Of SmolLM2: its answers are shown too, where it is there.", file_okay=False),
    ] = Path("demo-output/adapter"),
) -> None:
    """Answers from three organizations' documents: searched, quoted, checked, erased, and kept apart."""
    from confide_simulations.demo.rag import run as demo_rag

    console = Console()
    result = demo_rag.run(console, keep=keep, adapter=adapter)
    demo_rag.print_report(console, result)
    if json is not None:
        demo_rag.write_json(json, result)


@app.command()
def whole(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.", dir_okay=False)] = None,
    output: Annotated[Path, typer.Option(help="Where the lineage page goes.", file_okay=False)] = Path("demo-whole"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep state folders and logs.")] = False,
) -> None:
    """The whole mission: sealed and private training, a private reward, gate, release, served with documents, asked."""
    import json as json_module

    from confide.files import write_atomic

    from confide_simulations.whole import run as demo_whole

    console = Console()
    result = demo_whole.run(console, output, keep=keep)
    demo_whole.print_report(console, result)
    if json is not None:
        write_atomic(json, (json_module.dumps(result.to_json(), indent=2) + "\n").encode(), mode=0o644)
