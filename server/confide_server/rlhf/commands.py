"""`confide rlhf`: candidates, annotation, snapshots, reward models, policies, the gate. All of it works on files."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from confide.errors import DataError, StateError
from confide.files import private_folder, sha256_file, write_atomic
from confide.text import line

from confide_server.rlhf import feedback_commands
from confide_server.rlhf.annotation import commands as annotation_commands
from confide_server.rlhf.annotation import upload_commands
from confide_server.state.release_subject import FILE_NAME, AlignedModel

if TYPE_CHECKING:
    from confide_server.rlhf.training.documents import RlhfSpecification
    from confide_server.rlhf.training.trl_adapter import Trained

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
    adjudicated: Annotated[list[Path] | None, typer.Option(help="Decisions on open pairs.", exists=True)] = None,
    imported: Annotated[bool, typer.Option("--import", help="The files hold chosen and rejected answers.")] = False,
    out: Annotated[Path, typer.Option(help="Folder.", file_okay=False)] = Path("snapshots"),
) -> None:
    """Freeze comparisons under a hash, with their statistics."""
    from confide_server.rlhf.annotation.preferences import Candidate, Comparison, check_annotators, read_lines, standing
    from confide_server.rlhf.annotation.snapshots import Filters, Snapshot, load_rows

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
        settled = [one for path in adjudicated or [] for one in read_lines(path, Comparison)]
        made = Snapshot.of(
            read_lines(candidates_file, Candidate), judged, gold=answers, filters=filters, adjudicated=settled
        )
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
    from confide_server.rlhf.annotation.snapshots import Snapshot
    from confide_server.rlhf.annotation.snapshots import export as write

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
    from confide.methods.preference import turns_of
    from confide.models.reward_folder import write_reward
    from confide.models.store import folder_digest

    from confide_server.rlhf import central_reward
    from confide_server.rlhf.annotation.snapshots import Snapshot
    from confide_server.rlhf.reward_model import FeatureReader

    made = Snapshot.read(snapshot_file)
    rows = made.preferences()
    reader = FeatureReader(base, pooling, max_length)
    turns = [turns_of(row.get("prompt"), row["chosen"], row["rejected"]) for row in rows]
    asked, chosen, rejected = [one for one, _, _ in turns], [one for _, one, _ in turns], [one for _, _, one in turns]
    differences = (reader.of(asked, chosen) - reader.of(asked, rejected)).astype(float)
    longer = [len(a) - len(b) for a, b in zip(chosen, rejected, strict=True)]
    weight, report = central_reward.fit(
        differences,
        longer_N=longer,
        organizations=made.organizations,
        texts_N=[("\n".join(turn["content"] for turn in prompt), a, b) for prompt, a, b in turns],
        seed=seed,
    )
    lineage = {"snapshot": made.sha256, "seed": seed, "privacy": "none: the snapshot was read as it is"}
    sha256 = folder_digest(base)
    write_reward(
        out, weight, base_sha256=sha256, pooling=pooling, max_length=max_length, lineage=lineage,
        reads_prompts=any(asked),
    )  # fmt: skip
    write_atomic(out / "report.json", json.dumps(asdict(report), indent=1).encode())
    central_reward.plot(report, out / "reliability.png")
    typer.echo(
        f"accuracy {report.accuracy:.3f} ({report.interval[0]:.3f} to {report.interval[1]:.3f}) on {report.held_out} "
        f"held-out pairs; calibration error {report.calibration_error:.3f}; in {out}"
    )
    if report.seen:
        typer.echo(f"{report.seen:.0%} of them have an answer that other pairs have too: their accuracy is too good")
    if report.worst is not None:
        typer.echo(f"worst organization: {line(report.worst[0])}, accuracy {report.worst[1]:.3f}")


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
    from confide_server.rlhf.training import trl_adapter
    from confide_server.rlhf.training.documents import parse_toml
    from confide_server.rlhf.training.inputs import Inputs

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
    with _alone(out):
        _same_run(out, specification.digest)
        trained = trl_adapter.train(
            specification, base=base, folder=out, records=records, adapter=adapter, reward=scored, say=_figures
        )
        _keep(out, specification, trained)
    typer.echo(f"{trained.steps} steps; adapter in {trained.adapter}")
    if trained.stopped is not None:
        typer.echo(line(trained.detail), err=True)
        raise typer.Exit(4)


def _figures(metrics: Mapping[str, float]) -> None:
    """Of one step, on one line."""
    shown = ("step", "loss", "reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")
    _say("  ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics))


def _keep(out: Path, specification: "RlhfSpecification", trained: "Trained") -> None:
    """Where the adapter comes from, what was measured, and what a release of it names."""
    from confide.models.adapter_hash import ADAPTER_FILE

    lineage = {
        "specification": specification.digest, "base": specification.base.sha256,
        "started_from": specification.base.adapter, "snapshot": specification.data.snapshot,
        "prompts": specification.data.prompts,
        "reward": specification.reward.model, "adapter": sha256_file(trained.adapter / ADAPTER_FILE),
        "steps": trained.steps, "stopped": trained.stopped or "", "detail": trained.detail,
    }  # fmt: skip
    write_atomic(out / "lineage.json", json.dumps(lineage, indent=1).encode())
    write_atomic(out / "metrics.json", json.dumps(trained.history, indent=1).encode())
    write_atomic(out / FILE_NAME, _aligned_model(specification, trained).to_bytes())


def _aligned_model(specification: "RlhfSpecification", trained: "Trained") -> AlignedModel:
    """What a release of the adapter names."""
    from confide.models.adapter_hash import content_hash

    return AlignedModel(
        version=1, adapter_sha256=content_hash(trained.adapter), base_sha256=specification.base.sha256,
        specification=specification.model_dump(mode="json"), specification_sha256=specification.digest,
        steps=trained.steps, stopped=trained.stopped.value if trained.stopped else "",
    )  # fmt: skip


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A folder of `confide rlhf train`.", exists=True, file_okay=False)],
    base: Base,
    out: Annotated[Path | None, typer.Option(help="Folder; default: merged, in the run's.", file_okay=False)] = None,
) -> None:
    """Add a run's adapter to its base: a whole model, which the gate and a release take like the adapter."""
    from confide_server.rlhf import merging

    target = out or run / "merged"
    model = merging.merge(run, base, target)
    typer.echo(f"model {model.merged_sha256} in {target}: the base {model.base_sha256[:16]}")
    typer.echo(f"and the adapter {model.adapter_sha256}; next: confide rlhf evaluate {line(str(target))}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Raise StateError where another process trains into the folder: the two would go on from each other's steps."""
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StateError(f"another process trains into {out}; wait for it, or give another --out") from error
    finally:
        os.close(descriptor)


def _same_run(out: Path, digest: str) -> None:
    """Raise StateError when the folder holds another run's checkpoints."""
    mark = out / "specification.sha256"
    if mark.exists() and mark.read_text().strip() != digest:
        raise StateError(f"{out} holds the run {mark.read_text()[:16]}, and this is {digest[:16]}; give another --out")
    write_atomic(mark, digest.encode())


@app.command()
def evaluate(
    candidate: Annotated[
        Path, typer.Argument(help="The candidate: an adapter, or a whole model.", exists=True, file_okay=False)
    ],
    base: Base,
    prompts: Annotated[Path, typer.Option(help="Gate prompts, one a line.", exists=True, dir_okay=False)],
    reward_model: Annotated[
        Path, typer.Option(help="The judge: a reward model's folder.", exists=True, file_okay=False)
    ],
    reward_base: Annotated[Path | None, typer.Option(help="The judge's base, if it is another.")] = None,
    against: Annotated[Path | None, typer.Option(help="The baseline, likewise; default: the base alone.")] = None,
    trained_on: Annotated[
        Path | None, typer.Option(help="Training prompts, which must be others.", exists=True)
    ] = None,
    general: Annotated[Path | None, typer.Option(help="Plain text, one passage a line.", exists=True)] = None,
    member: Annotated[
        Path | None, typer.Option(help="A member's folder whose identity key signs the evidence.")
    ] = None,
    opinions: Annotated[
        Path | None, typer.Option(help="Export of a feedback run that asked nodes about both.", file_okay=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder.", file_okay=False)] = Path("gate"),
    organizations: Annotated[
        Path | None, typer.Option(help="Whose each gate prompt is, one name a line: the worst counts.", exists=True)
    ] = None,
    count: Annotated[int, typer.Option(help="Answers to each prompt.", min=1)] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Pass a candidate by the gate: evidence as JSON and one page. Status 3: it did not pass."""
    from confide.identity.member import load_member
    from confide.models.store import folder_digest

    from confide_server.rlhf import gate, gate_subject, page
    from confide_server.rlhf.candidates import prompt_set
    from confide_server.rlhf.opinions_of_nodes import check_subject, read_opinions
    from confide_server.rlhf.policy import Policy, Sampling
    from confide_server.rlhf.reward_model import RewardModel

    asked, digest = prompt_set(prompts)
    training = _training_of(candidate)
    gate.check_other_prompts(training, digest, "" if trained_on is None else prompt_set(trained_on)[1])
    if trained_on is not None:
        gate.check_no_leak(prompt_set(trained_on)[0], asked)
    judged_on = reward_base or base
    judge = gate.RewardJudge(RewardModel(reward_model, judged_on, folder_digest(judged_on)))
    sampling = Sampling(max_new_tokens=max_new_tokens, seed=seed)
    models = [
        Policy(folder) if folder is not None and gate_subject.is_whole(folder) else Policy(base, adapter=folder)
        for folder in (candidate, against)
    ]
    gate.check_same_tokens(models[0].tokenizer, models[1].tokenizer)
    sides = [
        [[one.text for one in group] for group in model.sample(asked, count=count, sampling=sampling)]
        for model in models
    ]
    passages = prompt_set(general)[0] if general is not None else ()
    figures = gate.measure(
        models[0], models[1], judge, asked, (sides[0], sides[1]), general=passages, seed=seed,
        organizations=gate.whose(organizations, asked),
        tokens=models[0].counted,
    )  # fmt: skip
    thresholds = gate.Thresholds()
    said_by_nodes = read_opinions(opinions) if opinions is not None else None
    verdict = gate.decide(figures, thresholds, said_by_nodes=said_by_nodes)
    if trained_on is None:
        verdict = replace(verdict, unknown=(*verdict.unknown, "whether gate prompts were trained on: none were named"))
    lineage: dict[str, Any] = {
        "base": folder_digest(base), "candidate": gate_subject.digest_of(candidate),
        "baseline": gate_subject.digest_of(against),
        "judge": sha256_file(reward_model / "reward_head.safetensors"), "prompts": digest,
    }  # fmt: skip
    released = gate_subject.released(candidate, against, base)
    if released is not None:
        lineage["released"] = released
    if said_by_nodes is not None:
        ours = (released["model_sha256"], released["baseline_sha256"]) if released is not None else (
            lineage["candidate"], lineage["baseline"],
        )  # fmt: skip
        check_subject(said_by_nodes, *ours)
    if training:
        lineage["training"] = training
    evidence = gate.evidence_of(figures, thresholds, verdict, lineage=lineage, made_at=time.time())
    if said_by_nodes is not None:
        evidence["nodes"] = said_by_nodes
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


def _training_of(candidate: Path) -> dict[str, Any]:
    """What `confide rlhf train` wrote of the run beside its adapter, or beside the merged model; nothing of others."""
    path = candidate.parent / "lineage.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


annotation_commands.register(app)
feedback_commands.register(app)
upload_commands.register(app)
