"""`confide report`: what a run promised, what it measured, and what it spent, for a privacy officer."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from confide import journal
from confide.errors import IdentityError, LedgerError, StateError
from confide.files import write_atomic
from confide.identity.keys import SigningKey
from confide.identity.signed import parse_document
from confide.planning.run_plan import two_sums
from confide.privacy.accounting import epsilon
from confide.privacy.events import Event, SkellamRelease
from confide.privacy.ledger import LEDGER_NAME, balances, replay
from confide.privacy.report import Facts, Spend, build_report, open_report, render_page, sign_report
from confide.runs.specification import Specification
from confide.text import line

from confide_client.policy.policy import load_policy
from confide_client.runs.offers import load_offer
from confide_client.state import StateFolder, read_json

State = Annotated[Path, typer.Option("--state", envvar="CONFIDE_STATE", help="The node's state folder.")]
_STATE = Path("~/.confide/node")
_CONTRADICTED = 3


def report(
    run: Annotated[str, typer.Argument(help="The run's id, or its first characters.")] = "",
    state: State = _STATE,
    manifest: Annotated[
        Path | None, typer.Option(help="manifest.json of an export: who contributed.", dir_okay=False)
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder for report.json and report.html.", file_okay=False)] = Path(
        "privacy-report"
    ),
    verify: Annotated[
        Path | None, typer.Option(help="Check a report.json under a node's key instead of making one.", dir_okay=False)
    ] = None,
    key: Annotated[str, typer.Option(help="With --verify: the node's identity key, hex; default this node's.")] = "",
) -> None:
    """Write the signed report of a run, as JSON and as a page. Status 3: the audit contradicts the claim."""
    node = StateFolder.at(state)
    if verify is not None:
        document = _verified(verify, key, node)
    elif run:
        document = _make(node, run, manifest, to)
    else:
        raise typer.BadParameter("name a run, or a file with --verify")
    typer.echo(line(f"{document['run']['name']} on {document['node']}: the claim is {document['verdict']}"))
    if document["verdict"] == "contradicted":
        raise typer.Exit(_CONTRADICTED)


def _verified(path: Path, key: str, node: StateFolder) -> dict[str, Any]:
    try:
        public = bytes.fromhex(key) if key else SigningKey.load(node.root / "identity.key").public
        data = path.read_bytes()
    except ValueError as error:
        raise IdentityError(f"--key is {key!r}; it must be 64 hex characters") from error
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    parse_document(data, str(path))
    return open_report(data, public)


def _make(node: StateFolder, run: str, manifest: Path | None, to: Path) -> dict[str, Any]:
    member = node.member()
    run_id = node.find_run(run)
    folder = node.run(run_id)
    offer = load_offer(folder, member)
    document = build_report(
        Facts(
            run_id=run_id,
            node=member.name,
            consortium=member.membership.consortium,
            administrator=offer.administrator,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            specification=offer.specification,
            sealing_promise=_promise(offer.specification, manifest is not None),
            spend=_spend(node, run_id),
            audit=_audit(folder),
            rounds=None if manifest is None else _rounds(manifest, run_id, offer.specification),
        )
    )
    to.mkdir(parents=True, exist_ok=True)
    write_atomic(to / "report.json", sign_report(document, member.identity))
    write_atomic(to / "report.html", render_page(document, key=member.identity.public).encode())
    typer.echo(f"wrote {to / 'report.html'} and {to / 'report.json'}, signed by {member.name}")
    return document


def _promise(specification: Specification, has_rounds: bool) -> str:
    if not specification.sealed:
        return (
            "Nothing was sealed: the coordinator saw this node's update by itself. Differential privacy, where it was "
            "claimed, is the only protection."
        )
    given = specification.sealing.colluding
    colluding = "third, at least 1," if given is None else given
    held = " What held in each round stands in the signed JSON." if has_rounds else ""
    return (
        f"Sealed: the coordinator, also together with any {colluding} of the nodes, learns nothing of this node's "
        f"update but a sum over at least {specification.federation.min_cohort} organizations.{held} "
        f"{two_sums(specification)[0].upper()}{two_sums(specification)[1:]}."
    )


def _audit(folder: Path) -> dict[str, Any] | None:
    stored = read_json(folder / "audit.json")
    if stored and set(stored) != {"kind", "at", "result"}:
        raise StateError(f"{folder / 'audit.json'} is damaged; run `confide audit` again")
    return stored or None


def _spend(node: StateFolder, run_id: str) -> Spend | None:
    """From the node's ledger, verified as it is read; None when the run was never charged here."""
    bodies, head = journal.read(node.root / LEDGER_NAME)
    ledger = replay(bodies)
    try:
        run = ledger.run(run_id)
    except LedgerError:
        return None
    approved = run.approved
    balance = next(balance for balance in balances(ledger) if balance.group == approved.group)
    budget = load_policy(node.policy).budgets.get(approved.group)
    spent = run.spent()
    return Spend(
        group=approved.group,
        slots_spent=run.spent_slots,
        slots_approved=approved.cost.slots,
        run_epsilon_spent=epsilon(spent, delta=approved.budget_delta) if spent else 0.0,
        group_epsilon_spent=balance.spent_epsilon,
        group_epsilon_held=balance.held_epsilon,
        budget_epsilon=None if budget is None else budget.epsilon,
        delta=approved.budget_delta,
        ledger_length=len(bodies),
        ledger_head=head,
        noise_multiplier=_noise_multiplier(approved.cost.slot[0]),
    )


def _noise_multiplier(event: Event) -> float:
    """Standard deviation of the noise over the longest contribution."""
    if isinstance(event, SkellamRelease):
        return math.sqrt(event.variance) / event.l2
    return event.noise_multiplier


def _rounds(path: Path, run_id: str, specification: Specification) -> list[dict[str, Any]]:
    """Of a manifest that belongs to this run. Raises StateError for another one."""
    try:
        manifest = json.loads(path.read_bytes())
        if (manifest["run_id"], manifest["specification_sha256"]) != (run_id, specification.digest):
            raise StateError(f"{path} is the manifest of another run; export run {run_id[:8]}")
        keys = ("round", "contributors", "dropped", "promise")
        return [{key: entry[key] for key in keys} for entry in manifest["rounds"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"{path} is not a run's manifest ({type(error).__name__}); use that of an export") from error
