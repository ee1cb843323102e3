"""`confide audit`: measure what training remembers, with made-up records, and set it against what is claimed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from confide.errors import PolicyRefusal, SpecificationError, StateError
from confide.models.store import ModelStore
from confide.secrecy import private_files

from confide_client.audit.canaries import plant as keep_canaries
from confide_client.audit.canaries import planted
from confide_client.data.datasets import DataSets
from confide_client.policy.policy import load_policy
from confide_client.runs.offers import VerifiedOffer, load_offer
from confide_client.runs.records import OfferStatus, Record
from confide_client.state import StateFolder

if TYPE_CHECKING:
    from confide.privacy.audit.scoring import AuditResult

app = typer.Typer(
    callback=private_files,
    no_args_is_help=True,
    help="Audit what training remembers, with made-up records (canaries).",
)

State = Annotated[Path, typer.Option("--state", envvar="CONFIDE_STATE", help="The node's state folder.")]
Run = Annotated[str, typer.Argument(help="The run's id, or its first characters.")]
Count = Annotated[int, typer.Option(help="Canaries to make; each is included by the toss of a coin.", min=2)]
_STATE = Path("~/.confide/node")
_CONTRADICTED = 3


def _offer(state: StateFolder, run: str) -> tuple[VerifiedOffer, Path, Path]:
    """(offer, the run's folder, base model)."""
    folder = state.run(state.find_run(run))
    offer = load_offer(folder, state.member())
    if not offer.specification.trains_model:
        raise SpecificationError("this run learns a tokenizer; canaries audit a model, and there is none")
    return offer, folder, ModelStore(state.models).path(offer.specification.model.sha256)


@app.command()
def plant(run: Run, count: Count = 400, state: State = _STATE) -> None:
    """Plant canaries into a run that waits for approval here; audit its release later with `score`."""
    from confide.models.architecture import load_tokenizer
    from confide.privacy.audit.canaries import make_canaries

    node = StateFolder.at(state)
    offer, folder, base = _offer(node, run)
    policy = load_policy(node.policy)
    if not policy.canaries:
        raise PolicyRefusal(
            "this node's policy does not consent to made-up records in training; set canaries = true in policy.toml"
        )
    canaries = make_canaries(offer.specification, load_tokenizer(base), count)
    record = Record.load(folder)
    keep_canaries(folder, canaries, policy, begun=record is None or record.status != OfferStatus.WAITING)
    _say_power(count, offer)
    typer.echo("they are made up and hold nothing of anybody; which ones are included stays on this node")


def _say_power(count: int, offer: VerifiedOffer) -> None:
    from confide.privacy.audit.one_run import detectable_epsilon

    shown = detectable_epsilon(count, delta=offer.specification.privacy.delta or 0.0, confidence=0.95)
    typer.echo(
        f"{count} canaries: if every coin were guessed right, they would show an epsilon of at least {shown:.2f}"
    )


@app.command()
def rehearse(run: Run, count: Count = 400, state: State = _STATE) -> None:
    """Train the run here, alone and for nobody's eyes, with canaries among the records, and audit the model.

    Exits with status 3 when the audit contradicts the claim.
    """
    from confide.models.architecture import load_tokenizer
    from confide.privacy.audit.canaries import make_canaries

    from confide_client.audit import auditing

    node = StateFolder.at(state)
    offer, folder, base = _offer(node, run)
    data = DataSets(node.root).load(offer.specification.federation.data)
    canaries = make_canaries(offer.specification, load_tokenizer(base), count)
    result = auditing.rehearse(
        offer.specification,
        base,
        data,
        canaries,
        folder=folder / "rehearsal",
        say=typer.echo,
        threads=node.settings.threads,
    )
    auditing.keep_result(folder, "rehearsal", result)
    _tell(result)


@app.command()
def score(
    run: Run,
    release: Annotated[Path, typer.Argument(help="Folder that `confide run export` wrote.", file_okay=False)],
    state: State = _STATE,
) -> None:
    """Audit a released model with the canaries that were planted in its run. Status 3: the claim is contradicted."""
    from confide_client.audit import auditing

    node = StateFolder.at(state)
    offer, folder, base = _offer(node, run)
    canaries = planted(folder)
    if canaries is None:
        raise StateError(
            "no canaries were planted in this run before it was approved here; use `confide audit rehearse`"
        )
    result = auditing.score_release(offer.specification, base, canaries, release)
    auditing.keep_result(folder, "release", result)
    _tell(result)


@app.command("verify-manifest")
def verify_manifest_command(
    path: Annotated[Path, typer.Argument(help="manifest.json, or the folder that `confide run export` wrote.")],
    root: Annotated[str, typer.Option(help="The consortium root's public key, as you learned it elsewhere.")],
    model_folder: Annotated[
        Path | None,
        typer.Option(
            help="The base model: the adapter's tensors are then checked against the signed model.", file_okay=False
        ),
    ] = None,
) -> None:
    """Check a run's manifest offline: everything that the root, administrator, members and coordinator signed.

    Exits non-zero, with the name of what does not hold. Needs no node and no network.
    """
    from confide.models.adapter_hash import ADAPTER_FILE
    from confide.sealing.manifest import verify_manifest

    file = path / "manifest.json" if path.is_dir() else path
    try:
        key, manifest = bytes.fromhex(root.strip()), json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{file} or the key cannot be read: {error}; give the manifest of an export") from error
    if not isinstance(manifest, dict) or len(key) != 32:
        raise StateError(f"{file} is no manifest, or the root's key is not 64 characters of hex")
    found = verify_manifest(manifest, key, path if path.is_dir() else None)
    if model_folder is not None:
        from confide.models.bound import check_bound

        check_bound(path, manifest, model_folder)
    typer.echo(f"the manifest holds: run {found.run_id}, {found.name}, {found.rounds} rounds")
    if model_folder is not None:
        typer.echo("the adapter in the folder is the model that was signed")
    elif (path / ADAPTER_FILE).exists():
        typer.echo(
            "the list of the files' hashes is not signed: give --model-folder to check the adapter itself as well"
        )
    if found.sealed:
        typer.echo(
            f"{found.signatures} signatures of members under the lists of what was summed; {found.receipts} receipts"
        )
    else:
        typer.secho(
            "unsealed: the coordinator saw each update, and no member signed what was summed", fg="red", err=True
        )
    typer.echo(f"in some sum: {', '.join(found.members) or 'nobody'}")
    typer.echo("on the coordinator's word alone: metrics, who was dropped and why, and that the last model follows")


@app.command()
def heads(
    run: Run,
    output: Annotated[Path, typer.Option(help="File to write, for another organization.", dir_okay=False)],
    state: State = _STATE,
) -> None:
    """Write what the coordinator signed of a run's rounds here, so that others can compare it with theirs."""
    from confide import canonical
    from confide.files import write_atomic

    from confide_client.runs.heads import kept_heads

    node = StateFolder.at(state)
    kept = kept_heads(node.run(node.find_run(run)))
    roster = json.loads(node.member().roster.signed)
    shown = {"version": 1, "kind": "heads", "roster": roster, "heads": [one.model_dump(mode="json") for one in kept]}
    write_atomic(output, canonical.encode(shown))
    typer.echo(f"wrote {len(kept)} signed heads to {output}; there is nothing of this organization in them")


@app.command()
def equivocation(
    files: Annotated[list[Path], typer.Argument(help="A proof; or what `confide audit heads` wrote, of two nodes.")],
    root: Annotated[str, typer.Option(help="The consortium root's public key, as you learned it elsewhere.")],
    output: Annotated[Path | None, typer.Option(help="Where to write the proof, if there is one.")] = None,
) -> None:
    """Whether a coordinator signed two logs of one run. Status 3, and a proof for everybody, if it did."""
    from confide import canonical
    from confide.files import write_atomic
    from confide.rounds.heads import compare

    try:
        documents, key = [json.loads(file.read_bytes()) for file in files], bytes.fromhex(root.strip())
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"the files or the key cannot be read: {error}") from error
    found = compare(documents, key)
    if found is None:
        typer.echo("the heads are of one log: nobody is convicted")
        return
    typer.secho(f"convicted: {found.detail}", fg="red")
    if output is not None:
        write_atomic(output, canonical.encode(found.proof(documents[0]["roster"])))
        typer.echo(f"wrote the proof to {output}; `confide audit equivocation {output} --root KEY` checks it anywhere")
    raise typer.Exit(_CONTRADICTED)


def _tell(result: "AuditResult") -> None:
    bound = result.bound
    claim = (
        "no privacy is claimed" if result.claimed_epsilon is None else f"claimed: epsilon {result.claimed_epsilon:g}"
    )
    typer.echo(
        f"{bound.correct} of {bound.guesses} guesses right over {bound.canaries} canaries: epsilon is at least "
        f"{bound.epsilon:.2f} ({bound.confidence:.0%} confidence, delta {bound.delta:g}); {claim}"
    )
    typer.echo(
        f"membership: AUC {result.calibrated_attack.auc:.3f} calibrated, {result.loss_attack.auc:.3f} by plain loss; "
        f"{result.calibrated_attack.tpr_at_1_percent_fpr:.1%} found at 1% falsely accused"
    )
    if result.extraction is not None:
        typer.echo(
            f"verbatim extraction: {result.extraction.included_extracted} of {result.extraction.included} included "
            f"canaries, {result.extraction.left_out_extracted} of {result.extraction.left_out} that were left out"
        )
    if result.contradicted:
        typer.secho("the audit CONTRADICTS the claim: do not release this model", fg=typer.colors.RED, err=True)
        raise typer.Exit(_CONTRADICTED)
    typer.echo(
        "the audit does not contradict the claim; it could not have shown more than epsilon "
        f"{result.detectable_epsilon:.2f}"
    )
