"""The demo from end to end: data, federation, scores, report."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import TrainingError
from confide.runs.specification import Specification
from rich.console import Console
from rich.progress import Progress

from confide_simulations import assets
from confide_simulations.demo import job, report, scoring, shards
from confide_simulations.demo.live import LiveRounds
from confide_simulations.demo.worker import Job
from confide_simulations.forks import shared
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import PeakMemory, ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line may vary."""

    rounds: int = 3
    nodes: int = 4
    data: Path | None = None
    model: Path | None = None
    sealing: str = "sealed"
    output: Path = Path("demo-output")
    held_out: int = 40
    local_steps: int = 3
    keep: bool = False
    console: bool = False
    """Show the run in the web console too, and stay until Ctrl-C."""


@dataclass(frozen=True)
class _Run:
    """What is left when the processes have ended."""

    specification: Specification
    manifest: dict[str, Any]
    models: tuple[Path, ...]  # initial model and the one after each round, raw tensors
    train_loss: tuple[tuple[int, float], ...]


def run(options: Options, console: Console, show: Callable[[report.DemoResult], None]) -> None:
    """Run the whole demo; raises ConfideError when anything failed. The output folder then has what was made so far.

    show: is given the result, before the demo stays for its web console.
    """
    base = options.model if options.model is not None else assets.smollm2(_say(console))
    records = shards.read_records(options.data) if options.data is not None else assets.construction_faq(_say(console))
    split = shards.split_by_category(records, nodes=options.nodes, held_out=options.held_out)
    started = time.monotonic()
    _fresh(options.output)
    work = Path(tempfile.mkdtemp(prefix="confide-demo-"))
    try:
        with contextlib.ExitStack() as open_processes:
            processes = open_processes.enter_context(ProcessGroup())
            # Reading it takes tens of milliseconds a process.
            with PeakMemory(interval_s=4.0) as memory:
                done = _federate(options, base, split, work, console, processes)
                if not options.console:
                    open_processes.close()
                scores = _score(options, done, base, split, work, console)
            adapter = _export(options, done, base)
            result = _result(options, done, split, scores, adapter, time.monotonic() - started, memory.peak_mib)
            report.plot(result, options.output / "loss.png", done.train_loss)
            show(result)
            if options.console:
                _stay(processes, console)
    finally:
        if options.keep:
            console.print(f"state folders and logs are kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"[dim]{text}[/dim]", highlight=False)


def _fresh(output: Path) -> None:
    for name in ("adapter", "loss.png", "specification.toml"):
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)


def _stay(processes: ProcessGroup, console: Console) -> None:
    """Until Ctrl-C, or a process ends by itself."""
    console.print("the web console, the coordinator and the nodes stay; Ctrl-C ends them")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            processes.check_alive()
            time.sleep(0.5)


def _federate(
    options: Options, base: Path, split: shards.Split, work: Path, console: Console, processes: ProcessGroup
) -> _Run:
    say = _say(console)
    files = {}
    for name, records in split.shards.items():
        files[name] = work / f"{name}.jsonl"
        shards.write_jsonl(files[name], records)
    shards.write_jsonl(work / "held-out.jsonl", split.held_out)
    shared().prepare()
    say("making keys, admissions and policies: a root, a coordinator, an administrator, " + ", ".join(files))
    federation = LocalFederation(
        work / "federation", nodes=files, base=base, model_name=_model_name(base), console=options.console
    )
    federation.set_up()
    specification = _specification(options, base, federation)
    federation.allow(specification)
    say(f"starting 1 coordinator and {len(files)} nodes, each its own process, over TLS on 127.0.0.1")
    federation.start(processes)
    if options.console:
        link = federation.start_console(processes)
        console.print(f"[bold]web console:[/bold] {link}", highlight=False, soft_wrap=True)
        console.print("open the link once, within 15 minutes; it makes an administrator's account", highlight=False)
    run_id = federation.submit(specification)
    kind = specification.sealing.kind
    train_loss = []
    with LiveRounds(console, rounds=options.rounds, nodes=options.nodes, sealing=kind) as live:
        for event, data in federation.watch(run_id):
            live.event(event, data)
            processes.check_alive()
            if event in {"run_failed", "run_stopped"}:
                raise TrainingError(f"the run did not finish: {data.get('reason', event)}")
        train_loss = live.train_loss
    models = _models(federation, run_id, specification, work)
    manifest, _ = federation.checkpoint(run_id)
    return _Run(specification, manifest, models, tuple(train_loss))


def _model_name(base: Path) -> str:
    return "smollm2-135m-instruct" if base.parent == assets.cache_folder() / "models" else "own-model"


def _specification(options: Options, base: Path, federation: LocalFederation) -> Specification:
    from confide.models.architecture import load_config

    config = load_config(base)
    return job.specification(
        sha256=federation.model_sha256,
        name=federation.model_name,
        dtype="bfloat16" if "bfloat16" in str(config.dtype) else "float32",
        layers=int(config.num_hidden_layers),
        rounds=options.rounds,
        nodes=options.nodes,
        sealing=options.sealing,
        local_steps=options.local_steps,
    )


def _models(federation: LocalFederation, run_id: str, specification: Specification, work: Path) -> tuple[Path, ...]:
    from confide.codec.tensors import TensorSchema
    from confide.models.trainable import initial_state

    state = initial_state(specification, federation.base)
    paths = [work / "model-0.f32"]
    paths[0].write_bytes(TensorSchema.of(state).encode(state))
    for number in range(1, specification.federation.rounds + 1):
        paths.append(work / f"model-{number}.f32")
        paths[-1].write_bytes(federation.checkpoint(run_id, number)[1])
    return tuple(paths)


def _score(
    options: Options, done: _Run, base: Path, split: shards.Split, work: Path, console: Console
) -> scoring.Found:
    question = split.held_out[0]["question"]
    initial, final = str(done.models[0]), str(done.models[-1])
    jobs = [Job("score", f"round {number}", str(path)) for number, path in enumerate(done.models)]
    jobs += [Job("alone", name, initial, shard=str(work / f"{name}.jsonl")) for name in split.shards]
    jobs += [Job("answer", "before", initial, question=question), Job("answer", "after", final, question=question)]
    path = work / "specification.json"
    path.write_bytes(done.specification.canonical_bytes())
    _say(console)("now each organization trains alone, and all models are scored on the held-out questions")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=len(jobs))

        def progress(count: int, what: str) -> None:
            bar.update(task, completed=count, description=what)
            if not console.is_terminal:
                console.print(f"  {count}/{len(jobs)}  {what}", highlight=False)

        return scoring.run_jobs(
            jobs,
            specification=path,
            base=base,
            held_out=work / "held-out.jsonl",
            rounds=options.rounds,
            folder=work,
            progress=progress,
        )


def _export(options: Options, done: _Run, base: Path) -> Path:
    """The adapter in PEFT's format, read back once by PEFT itself."""
    import numpy as np
    from confide.models.export import write_adapter
    from confide.models.trainable import schema_of

    schema = schema_of(done.specification, base)
    tensors = schema.unflatten(np.frombuffer(done.models[-1].read_bytes(), "<f4"))
    return write_adapter(options.output / "adapter", tensors, done.manifest, done.specification, base)


def _result(
    options: Options,
    done: _Run,
    split: shards.Split,
    scores: scoring.Found,
    adapter: Path,
    seconds: float,
    peak_mib: float,
) -> report.DemoResult:
    nll = {label: float(value) for (kind, label), value in scores.items() if kind in {"score", "alone"}}
    notes = []
    if options.sealing == "none":
        notes.append("[bold red]sealing = none:[/bold red] the coordinator saw every organization's update")
    if done.specification.adapter.aggregation == "average":
        notes.append("LoRA's A and B were averaged plainly: that is not the average of the products B A")
    return report.DemoResult(
        seconds=seconds,
        peak_memory_mib=peak_mib,
        sealing=options.sealing,
        rounds=tuple(
            report.RoundResult(
                round=entry["round"],
                nll=nll[f"round {entry['round']}"],
                contributors=tuple(entry["contributors"]),
                dropped=entry["dropped"],
            )
            for entry in done.manifest["rounds"]
        ),
        base=nll["round 0"],
        federated=nll[f"round {options.rounds}"],
        alone={name: nll[name] for name in split.shards},
        adapter=str(adapter),
        held_out=len(split.held_out),
        question=split.held_out[0]["question"],
        expected=split.held_out[0]["answer"],
        answer_before=str(scores["answer", "before"]),
        answer_after=str(scores["answer", "after"]),
        notes=tuple(notes),
    )
