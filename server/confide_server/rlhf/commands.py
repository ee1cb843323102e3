"""`confide rlhf`: candidates, annotation, snapshots, reward models, policies, the gate. All of it works on files."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from confide.errors import DataError, StateError
from confide.files import private_folder, sha256_file, write_atomic
from confide.text import line

app = typer.Typer(no_args_is_help=True, help="Preferences, reward models, and policies that are optimised for them.")

Base = Annotated[Path, typer.Option("--base", help="The base model's folder.", exists=True, file_okay=False)]
Out = Annotated[Path, typer.Option("--out", help="Where the result goes.")]


def _say(text: str) -> None:
    typer.echo(line(text), err=True)


@app.command()
def candidates(
    prompts: Annotated[Path, typer.Argument(help="UTF-8 text, one prompt a line.", exists=True, dir_okay=False)],
    base: Base,
    out: Out = Path("candidates.jsonl"),
    adapter: Annotated[list[Path] | None, typer.Option(help="Adapters to compare, as often as needed.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="As often as needed.", min=0.0)] = None,
    count: Annotated[int, typer.Option(help="Answers to each prompt at each temperature.", min=1, max=64)] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Have models answer a set of prompts; goes on where it was cut off."""
    from confide.models.store import folder_digest

    from confide_server.rlhf.candidates import make, prompt_set

    asked, digest = prompt_set(prompts)
    held = make(
        asked, base, folder_digest(base), adapters=adapter or [None], temperatures=temperature or [1.0], count=count,
        max_new_tokens=max_new_tokens, seed=seed, out=out, say=_say,
    )  # fmt: skip
    typer.echo(f"{held} candidates in {out}; prompt set {digest[:16]}")


@app.command()
def annotate(
    file: Annotated[Path, typer.Argument(help="candidates.jsonl.", exists=True, dir_okay=False)],
    annotator: Annotated[str, typer.Option(help="Your name, in small letters.")],
    out: Annotated[Path | None, typer.Option(help="Default: ratings-NAME.jsonl beside the candidates.")] = None,
    rubric: Annotated[str, typer.Option(help="Version of the instructions.")] = "1",
) -> None:
    """Judge pairs of answers, blind: 1 or 2 the better, t tie, b both bad, s skip, u undo, q stop. Resumes."""
    from pydantic import TypeAdapter, ValidationError

    from confide_server.rlhf.annotating import KEYS, Session
    from confide_server.rlhf.preferences import Candidate, Person, check_candidates, read_lines

    try:
        TypeAdapter(Person).validate_python(annotator)
    except ValidationError as error:
        raise DataError(
            f"the annotator's name is {line(annotator)!r}; use small letters, digits, '.', '_' and '-'"
        ) from error
    known = read_lines(file, Candidate)
    check_candidates(known)
    session = Session(known, annotator, out or file.with_name(f"ratings-{annotator}.jsonl"), rubric=rubric)
    while (task := session.next()) is not None:
        typer.echo(f"\n[{session.done + 1} of {session.total}] {line(task.prompt)}")
        typer.echo(f"  1: {line(task.first.text)}\n  2: {line(task.second.text)}")
        key = ""
        while key not in {*KEYS, "u", "q"}:
            typer.echo("1 2 t b s u q: ", nl=False)
            read = sys.stdin.readline()
            key = "q" if read == "" else read.strip().lower()
        if key == "q":
            break
        if key == "u":
            session.undo()
        else:
            session.judge(task, KEYS[key])
    typer.echo(f"{session.done} of {session.total} pairs judged")


@app.command()
def snapshot(
    ratings: Annotated[
        list[Path], typer.Argument(help="ratings-*.jsonl, or preferences in TRL's format with --import.")
    ],
    candidates_file: Annotated[Path | None, typer.Option("--candidates", help="candidates.jsonl.")] = None,
    gold: Annotated[Path | None, typer.Option(help="Ratings whose answer is known.", exists=True)] = None,
    least_gold: Annotated[
        float, typer.Option(help="Leave out annotators who agree less with gold.", min=0, max=1)
    ] = 0.0,
    unanimous: Annotated[bool, typer.Option(help="Only pairs on which all agree; default: more than half.")] = False,
    annotators: Annotated[str, typer.Option(help="Who may have judged, with commas; default: anybody.")] = "",
    imported: Annotated[bool, typer.Option("--import", help="The files hold chosen and rejected answers.")] = False,
    out: Annotated[Path, typer.Option(help="Folder.", file_okay=False)] = Path("snapshots"),
) -> None:
    """Freeze comparisons under a hash, with their statistics."""
    from confide_server.rlhf.preferences import Candidate, Comparison, check_annotators, read_lines, standing
    from confide_server.rlhf.snapshots import Filters, Snapshot, load_rows

    if imported:
        made = Snapshot.imported([row for path in ratings for row in load_rows(path)])
    else:
        if candidates_file is None:
            raise DataError("name the file of candidates that was judged: --candidates candidates.jsonl")
        judged = [one for path in ratings for one in read_lines(path, Comparison)]
        if annotators:
            check_annotators(judged, [name.strip() for name in annotators.split(",")])
        known = standing(read_lines(gold, Comparison)) if gold is not None else []
        answers = {one.pair: one.preferred for one in known if one.preferred is not None}
        filters = Filters(least_gold=least_gold, disagreement="unanimous" if unanimous else "majority")
        made = Snapshot.of(read_lines(candidates_file, Candidate), judged, gold=answers, filters=filters)
    path = made.write(out)
    typer.echo(json.dumps(made.document["statistics"], indent=1, sort_keys=True))
    typer.echo(str(path))


@app.command()
def export(
    snapshot_file: Annotated[Path, typer.Argument(help="A snapshot.", exists=True, dir_okay=False)],
    to: Annotated[Path, typer.Option(help="A .jsonl or .parquet file.", dir_okay=False)],
    unpaired: Annotated[bool, typer.Option(help="One row an answer with a label, for KTO.")] = False,
) -> None:
    """Write a snapshot's preferences in TRL's format."""
    from confide_server.rlhf.snapshots import Snapshot
    from confide_server.rlhf.snapshots import export as write

    made = Snapshot.read(snapshot_file)
    rows = made.unpaired() if unpaired else made.preferences()
    write(rows, to)
    typer.echo(f"{len(rows)} rows in {to}")


@app.command()
def reward(
    snapshot_file: Annotated[Path, typer.Argument(help="A snapshot.", exists=True, dir_okay=False)],
    base: Base,
    out: Annotated[Path, typer.Option(help="Folder.", file_okay=False)] = Path("reward-model"),
    pooling: Annotated[str, typer.Option(help="mean or last.")] = "mean",
    max_length: Annotated[int, typer.Option(min=8)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a reward model from a snapshot, with its accuracy, calibration and length bias."""
    from confide.models.reward_folder import write_reward
    from confide.models.store import folder_digest

    from confide_server.rlhf import central_reward
    from confide_server.rlhf.reward_model import FeatureReader
    from confide_server.rlhf.snapshots import Snapshot

    made = Snapshot.read(snapshot_file)
    rows = made.preferences()
    reader = FeatureReader(base, pooling, max_length)
    asked = [str(row.get("prompt", "")) for row in rows]
    chosen, rejected = ([str(row[side]) for row in rows] for side in ("chosen", "rejected"))
    differences = (reader.of(asked, chosen) - reader.of(asked, rejected)).astype(float)
    longer = [len(a) - len(b) for a, b in zip(chosen, rejected, strict=True)]
    weight, report = central_reward.fit(differences, longer_N=longer, seed=seed)
    lineage = {"snapshot": made.sha256, "seed": seed, "privacy": "none: the snapshot was read as it is"}
    sha256 = folder_digest(base)
    write_reward(out, weight, base_sha256=sha256, pooling=pooling, max_length=max_length, lineage=lineage)
    write_atomic(out / "report.json", json.dumps(asdict(report), indent=1).encode())
    central_reward.plot(report, out / "reliability.png")
    typer.echo(
        f"accuracy {report.accuracy:.3f} ({report.interval[0]:.3f} to {report.interval[1]:.3f}) on {report.held_out} "
        f"held-out pairs; calibration error {report.calibration_error:.3f}; in {out}"
    )


@app.command()
def train(
    specification_file: Annotated[Path, typer.Argument(help="An RLHF specification.", exists=True, dir_okay=False)],
    base: Base,
    snapshot_file: Annotated[Path | None, typer.Option("--snapshot", help="dpo, kto.", exists=True)] = None,
    prompts: Annotated[Path | None, typer.Option(help="grpo, rloo.", exists=True)] = None,
    adapter: Annotated[Path | None, typer.Option(help="What the run starts from.", file_okay=False)] = None,
    reward_model: Annotated[Path | None, typer.Option(help="Folder, for reward.kind model.", file_okay=False)] = None,
    reward_base: Annotated[Path | None, typer.Option(help="The reward model's base, if it is another.")] = None,
    out: Annotated[Path, typer.Option(help="Folder.", file_okay=False)] = Path("rlhf-run"),
) -> None:
    """Optimise a policy as a specification says; goes on where it was cut off. Status 4: stopped for a named reason."""
    from confide_server.rlhf import trl_adapter
    from confide_server.rlhf.documents import parse_toml
    from confide_server.rlhf.inputs import Inputs

    specification = parse_toml(specification_file.read_text("utf-8"), str(specification_file))
    private_folder(out)
    inputs = Inputs(
        base=base,
        snapshot=snapshot_file,
        prompts=prompts,
        adapter=adapter,
        reward_model=reward_model,
        reward_base=reward_base,
    )
    records, scored = inputs.of(specification)
    _same_run(out, specification.digest)

    def said(metrics: Mapping[str, float]) -> None:
        shown = ("step", "loss", "reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")
        _say("  ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics))

    trained = trl_adapter.train(
        specification, base=base, folder=out, records=records, adapter=adapter, reward=scored, say=said
    )
    lineage = {
        "specification": specification.digest, "base": specification.base.sha256,
        "started_from": specification.base.adapter, "snapshot": specification.data.snapshot,
        "prompts": specification.data.prompts,
        "reward": specification.reward.model, "adapter": sha256_file(trained.adapter / "adapter_model.safetensors"),
        "steps": trained.steps, "stopped": trained.stopped or "", "detail": trained.detail,
    }  # fmt: skip
    write_atomic(out / "lineage.json", json.dumps(lineage, indent=1).encode())
    write_atomic(out / "metrics.json", json.dumps(trained.history, indent=1).encode())
    typer.echo(f"{trained.steps} steps; adapter in {trained.adapter}")
    if trained.stopped is not None:
        typer.echo(line(trained.detail), err=True)
        raise typer.Exit(4)


def _same_run(out: Path, digest: str) -> None:
    """Raise StateError when the folder holds another run's checkpoints."""
    mark = out / "specification.sha256"
    if mark.exists() and mark.read_text().strip() != digest:
        raise StateError(f"{out} holds the run {mark.read_text()[:16]}, and this is {digest[:16]}; give another --out")
    write_atomic(mark, digest.encode())


@app.command()
def evaluate(
    candidate: Annotated[Path, typer.Argument(help="The candidate's adapter.", exists=True, file_okay=False)],
    base: Base,
    prompts: Annotated[Path, typer.Option(help="Gate prompts, one a line.", exists=True, dir_okay=False)],
    reward_model: Annotated[
        Path, typer.Option(help="The judge: a reward model's folder.", exists=True, file_okay=False)
    ],
    reward_base: Annotated[Path | None, typer.Option(help="The judge's base, if it is another.")] = None,
    against: Annotated[Path | None, typer.Option(help="The baseline's adapter; default: the base alone.")] = None,
    trained_on: Annotated[
        Path | None, typer.Option(help="Training prompts, which must be others.", exists=True)
    ] = None,
    general: Annotated[Path | None, typer.Option(help="Plain text, one passage a line.", exists=True)] = None,
    member: Annotated[
        Path | None, typer.Option(help="A member's folder whose identity key signs the evidence.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder.", file_okay=False)] = Path("gate"),
    count: Annotated[int, typer.Option(help="Answers to each prompt.", min=1)] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Pass a candidate by the gate: evidence as JSON and one page. Status 3: it did not pass."""
    from confide.identity.member import load_member
    from confide.models.store import folder_digest

    from confide_server.rlhf import gate, gate_subject, page
    from confide_server.rlhf.candidates import adapter_digest, prompt_set
    from confide_server.rlhf.policy import Policy, Sampling
    from confide_server.rlhf.reward_model import RewardModel

    asked, digest = prompt_set(prompts)
    if trained_on is not None:
        gate.check_no_leak(prompt_set(trained_on)[0], asked)
    judged_on = reward_base or base
    judge = gate.RewardJudge(RewardModel(reward_model, judged_on, folder_digest(judged_on)))
    sampling = Sampling(max_new_tokens=max_new_tokens, seed=seed)
    models = [Policy(base, adapter=candidate), Policy(base, adapter=against)]
    sides = [
        [[one.text for one in group] for group in model.sample(asked, count=count, sampling=sampling)]
        for model in models
    ]
    passages = prompt_set(general)[0] if general is not None else ()
    tokenizer = models[0].tokenizer
    figures = gate.measure(
        models[0], models[1], judge, asked, (sides[0], sides[1]), general=passages, seed=seed,
        tokens=lambda text: len(tokenizer(text)["input_ids"]),
    )  # fmt: skip
    thresholds = gate.Thresholds()
    verdict = gate.decide(figures, thresholds)
    lineage: dict[str, Any] = {
        "base": folder_digest(base), "candidate": adapter_digest(candidate), "baseline": adapter_digest(against),
        "judge": sha256_file(reward_model / "reward_head.safetensors"), "prompts": digest,
    }  # fmt: skip
    released = gate_subject.released(candidate, against, base)
    if released is not None:
        lineage["released"] = released
    if (candidate.parent / "lineage.json").exists():
        lineage["training"] = json.loads((candidate.parent / "lineage.json").read_bytes())
    if trained_on is None:
        lineage["leak"] = "not checked: no training prompts were named"
    evidence = gate.evidence_of(figures, thresholds, verdict, lineage=lineage, made_at=time.time())
    private_folder(out)
    signer = ""
    if member is not None:
        identity = load_member(member)
        signer = identity.name
        write_atomic(out / "evidence.json", gate.sign_evidence(evidence, identity.identity))
    else:
        write_atomic(out / "evidence.json", json.dumps({"document": evidence, "signature": ""}).encode())
    write_atomic(out / "evidence.html", page.render(evidence, signer=signer).encode())
    typer.echo(f"{'passed' if verdict.passed else 'NOT passed'}: win rate {figures.win_rate:.3f}; evidence in {out}")
    for text in verdict.failed:
        typer.echo(f"  {text}")
    if not verdict.passed:
        raise typer.Exit(3)
