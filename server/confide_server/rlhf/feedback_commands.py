"""`confide rlhf feedback` and `pairs`: ask nodes about public answers, and what to make of what they said."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from confide.errors import SpecificationError
from confide.files import write_atomic


class Purpose(StrEnum):
    """What is asked."""

    SCORES = "scores"
    GATE = "gate"


def register(app: typer.Typer) -> None:
    """Add them to `confide rlhf`."""
    app.command()(feedback)
    app.command("feedback-pairs")(feedback_pairs)
    app.command()(pairs)


def feedback(
    candidates: Annotated[Path, typer.Argument(help="candidates.jsonl.", exists=True, dir_okay=False)],
    base: Annotated[Path, typer.Option("--base", help="The base of the nodes' judges.", exists=True, file_okay=False)],
    source: Annotated[str, typer.Option(help="Where the prompts come from; every node reads them.")],
    data: Annotated[str, typer.Option(help="The nodes' data set of comparisons.")] = "preferences",
    purpose: Annotated[
        Purpose, typer.Option(help="A score an answer, or candidate against baseline.")
    ] = Purpose.SCORES,
    candidate: Annotated[Path | None, typer.Option(help="gate: the candidate's adapter.", file_okay=False)] = None,
    baseline: Annotated[Path | None, typer.Option(help="gate: the baseline's adapter; default: none.")] = None,
    policy_base: Annotated[
        Path | None, typer.Option(help="gate: the base of both, where they are exports of runs.", file_okay=False)
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Of each organization; 0: without privacy.", min=0)] = 8.0,
    delta: Annotated[float, typer.Option(min=0, max=1)] = 1e-5,
    min_cohort: Annotated[int, typer.Option(min=2)] = 3,
    out: Annotated[Path, typer.Option(help="The specification to write.", dir_okay=False)] = Path("feedback.toml"),
) -> None:
    """Write the run that asks nodes about these answers; then `confide run plan`, `submit` and `export` it."""
    from confide.models.store import folder_digest

    from confide_server.rlhf.annotation.preferences import Candidate, read_lines
    from confide_server.rlhf.candidates import adapter_digest
    from confide_server.rlhf.gate_subject import released
    from confide_server.rlhf.opinions_of_nodes import question

    if (purpose is Purpose.GATE) != (candidate is not None):
        raise SpecificationError("--candidate goes with --purpose gate, and only with it")
    names = None
    if candidate is not None and policy_base is not None:
        names = released(candidate, baseline, policy_base)
    text = question(
        read_lines(candidates, Candidate), folder_digest(base), data=data, purpose=purpose.value, source=source,
        privacy=(epsilon, delta) if epsilon else None, candidate=adapter_digest(candidate),
        baseline=adapter_digest(baseline), min_cohort=min_cohort, released=names,
    )  # fmt: skip
    write_atomic(out, text.encode())
    typer.echo(f"wrote {out}; next: confide run plan {out}")


def feedback_pairs(
    candidate: Annotated[Path, typer.Argument(help="A run's export.", exists=True, file_okay=False)],
    data: Annotated[str, typer.Option(help="The nodes' data set of comparisons.")] = "preferences",
    epsilon: Annotated[float, typer.Option(help="Of each organization; 0: without privacy.", min=0)] = 8.0,
    delta: Annotated[float, typer.Option(min=0, max=1)] = 1e-5,
    min_cohort: Annotated[int, typer.Option(min=2)] = 3,
    out: Annotated[Path, typer.Option(help="The specification to write.", dir_okay=False)] = Path("feedback.toml"),
) -> None:
    """Write the run that holds a candidate against its base on nodes' own comparisons; submit it --from its run."""
    from confide_server.rlhf.gate_subject import manifest_of
    from confide_server.rlhf.opinions_of_nodes import question_of_pairs

    manifest = manifest_of(candidate)
    privacy = (epsilon, delta) if epsilon else None
    write_atomic(out, question_of_pairs(manifest, data=data, privacy=privacy, min_cohort=min_cohort).encode())
    typer.echo(f"wrote {out}; next: confide run submit {out} --from {str(manifest.get('run_id', 'RUN'))[:8]}")


def pairs(
    opinions: Annotated[Path, typer.Argument(help="Export of a feedback run.", exists=True, file_okay=False)],
    to: Annotated[Path, typer.Option(help="A .jsonl or .parquet file.", dir_okay=False)],
) -> None:
    """Make preferences of what nodes said: each prompt's best and worst answer. Costs no further privacy."""
    from confide_server.rlhf.annotation.snapshots import export
    from confide_server.rlhf.opinions_of_nodes import preferred, read_opinions

    rows = preferred(read_opinions(opinions))
    export(rows, to)
    typer.echo(f"{len(rows)} rows in {to}; next: confide rlhf snapshot {to} --import")
