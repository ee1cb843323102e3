"""`confide ledger`: what this node's data has spent of its privacy budgets, and whether the record of it is whole.

All commands only read: they work while the agent runs.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from confide import canonical, journal
from confide.errors import LedgerError
from confide.files import write_atomic
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, open_roster
from confide.privacy.filter import Budget
from confide.privacy.ledger import LEDGER_NAME, balances, replay
from confide.privacy.ledger_entries import events_digest
from confide.privacy.ledger_state import LedgerState, RunState, charge
from confide.privacy.receipts import DOMAIN, check_receipt, read_receipts
from confide.secrecy import private_files
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from confide_client.policy.policy import load_policy
from confide_client.state import StateFolder

app = typer.Typer(
    callback=private_files, no_args_is_help=True, help="The privacy ledger: what was set aside, spent and released."
)

State = Annotated[Path, typer.Option("--state", envvar="CONFIDE_STATE", help="The node's state folder.")]
_STATE = Path("~/.confide/node")


class Export(BaseModel):
    """What `confide ledger export` writes, apart from the lines: enough to check that they are whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    length: int
    head: str
    lines: list[dict[str, Any]]


def _read(state: Path) -> tuple[list[dict[str, Any]], str, LedgerState]:
    """(lines, head, what they add up to). Raises StateError or LedgerError for a ledger that does not verify."""
    bodies, head = journal.read(StateFolder.at(state).root / LEDGER_NAME)
    return bodies, head, replay(bodies)


@app.command()
def show(state: State = _STATE) -> None:
    """Every group's balance and every run."""
    bodies, head, ledger = _read(state)
    console = Console()
    if not bodies:
        console.print("the ledger is empty: no run with privacy was approved here")
        return
    console.print(_group_table(ledger, _policy_budgets(state)))
    console.print(_run_table(ledger))
    console.print(f"{len(bodies)} lines, head {head}", highlight=False)


def _policy_budgets(state: Path) -> dict[str, Budget]:
    path = StateFolder.at(state).policy
    if not path.exists():
        return {}
    budgets = load_policy(path).budgets
    return {group: Budget(epsilon=budget.epsilon, delta=budget.delta) for group, budget in budgets.items()}


def _group_table(ledger: LedgerState, budgets: dict[str, Budget]) -> Table:
    table = Table(
        Column("group", overflow="fold"), Column("protects each", overflow="fold"), Column("runs", justify="right"),
        Column("spent epsilon", justify="right"), Column("with what is set aside", justify="right"),
        Column("at delta", justify="right"), Column("policy's budget", justify="right"), Column("fits"),
        title="groups of data sets",
    )  # fmt: skip
    for balance in balances(ledger):
        budget = budgets.get(balance.group)
        fits = budget is not None and ledger.basis(balance.group, None, budget) is not None
        table.add_row(
            balance.group, escape(balance.protects), str(balance.runs), f"{balance.spent_epsilon:.3f}",
            f"{balance.held_epsilon:.3f}", f"{balance.delta:g}",
            "none" if budget is None else f"{budget.epsilon:g} at {budget.delta:g}",
            "[green]yes" if fits else "[bold red]no",
        )  # fmt: skip
    return table


def _run_table(ledger: LedgerState) -> Table:
    table = Table(
        Column("run", no_wrap=True, min_width=12), Column("data", overflow="fold"), Column("accounting"),
        Column("slots spent", justify="right"),
        Column("approved", justify="right"), Column("epsilon spent", justify="right"),
        Column("approved", justify="right"), Column("state"), title="runs",
    )  # fmt: skip
    for run in ledger:
        table.add_row(
            run.approved.run[:12], run.approved.data, "alone" if run.approved.basis == "alone" else "beside others",
            str(run.spent_slots), str(run.approved.cost.slots), *_epsilons(run), "ended" if run.ended else "open",
        )  # fmt: skip
    return table


def _epsilons(run: RunState) -> tuple[str, str]:
    delta, tight = run.approved.budget_delta, run.approved.basis == "alone"
    spent = charge(run.spent(), delta=delta, tight=tight)
    whole = charge(run.approved.cost.whole, delta=delta, tight=tight)
    return f"{spent:.3f}", f"{whole:.3f}"


@app.command(name="verify")
def verify_ledger(
    state: State = _STATE,
    length: Annotated[int | None, typer.Option(help="A length that somebody remembers; goes with --head.")] = None,
    head: Annotated[str | None, typer.Option(help="The head at that length.")] = None,
    receipts: Annotated[
        Path | None, typer.Option(help="JSON list of receipts, as a run's manifest holds them.", dir_okay=False)
    ] = None,
    export_file: Annotated[
        Path | None, typer.Option("--export", help="Verify an exported ledger instead of the node's.", dir_okay=False)
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="With --receipts: the node's identity key (hex), as you learned it elsewhere.")
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option(help="Instead of --key: the signed roster; goes with --root and --node.", dir_okay=False),
    ] = None,
    root: Annotated[str | None, typer.Option(help="The consortium root's public key, for --roster.")] = None,
    node: Annotated[str | None, typer.Option(help="Whose receipts are checked; needed with --roster.")] = None,
) -> None:
    """Check chain, rules, and against what others remember. Exits non-zero when anything does not agree.

    Receipts are checked under the key of the node in --state, or of an auditor's --key, or out of --roster.
    """
    if (length is None) != (head is None):
        raise typer.BadParameter("--length and --head go together")
    if export_file is None:
        bodies, newest, ledger = _read(state)
        heads = journal.heads(bodies)
    else:
        bodies, heads = _read_export(export_file)
        newest, ledger = heads[-1], replay(bodies)
    if length is not None and not (0 <= length < len(heads) and heads[length] == head):
        raise LedgerError(
            f"at length {length} this ledger does not have the head {head}: it was cut, restored from an older state, "
            "or replaced. Ask for the newest state, and do not train with it"
        )
    checked = 0
    if receipts is not None:
        checked = _check_receipts(receipts, _receipt_key(state, key, roster, root, node), node, ledger, heads)
    also = f", {checked} receipts agree" if receipts is not None else ""
    typer.echo(f"the ledger verifies: {len(bodies)} lines, head {newest}{also}")


def _receipt_key(state: Path, key: str | None, roster: Path | None, root: str | None, node: str | None) -> bytes:
    """Under which receipts have to verify. Raises LedgerError when there is none: unsigned, they would say nothing."""
    if key is not None:
        try:
            return bytes.fromhex(key.strip())
        except ValueError as error:
            raise LedgerError(f"--key {key[:80]!r} is not 64 characters of hex") from error
    if roster is not None:
        if root is None or node is None:
            raise LedgerError("--roster goes with --root (the consortium's key) and --node (whose receipts these are)")
        return _key_in_roster(roster, root, node)
    own = state.expanduser() / "identity.key"
    if own.exists():
        return SigningKey.load(own).public
    raise LedgerError(
        f"the receipts' signatures cannot be verified: {state} holds no identity key. Give --key, the node's identity "
        "key, or --roster with --root and --node"
    )


def _key_in_roster(path: Path, root: str, node: str) -> bytes:
    try:
        found = open_roster(path.read_bytes(), bytes.fromhex(root.strip()))
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} or the root's key cannot be read: {error}") from error
    for member in found.members:  # who was revoked later spent before
        if member.name == node and member.role is Role.NODE:
            return bytes.fromhex(member.identity_key)
    raise LedgerError(f"{node!r} is no node of version {found.version} of the roster")


def _check_receipts(path: Path, public: bytes, node: str | None, ledger: LedgerState, heads: list[str]) -> int:
    """How many agree. node: those of other nodes, in a manifest's list, are passed over."""
    count = 0
    for receipt, signature in read_receipts(path.read_text(encoding="utf-8"), node):
        verify(public, DOMAIN, receipt.canonical_bytes(), signature)
        approved = ledger.run(receipt.run_id).approved
        check_receipt(receipt, events_digest(approved), lambda at: heads[at], len(heads) - 1)
        count += 1
    if not count:
        raise LedgerError(f"{path} holds no receipt{f' of {node}' if node else ''}; nothing was compared")
    return count


@app.command()
def export(
    state: State = _STATE,
    to: Annotated[Path | None, typer.Option("--to", help="File; default standard output.", dir_okay=False)] = None,
) -> None:
    """Write the whole ledger as JSON, for an auditor. Its sampling rates tell how many records there are."""
    bodies, head, _ = _read(state)
    document = {"version": 1, "length": len(bodies), "head": head, "lines": bodies}
    if to is None:
        typer.echo(canonical.encode(document).decode())
    else:
        write_atomic(to.resolve(), canonical.encode(document) + b"\n")
        typer.echo(f"wrote {len(bodies)} lines to {to}; it is for an auditor's eyes: batch rates tell the data's size")


def _read_export(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(lines, heads) of an export; the chain is calculated anew. Raises LedgerError."""
    try:
        export = Export.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise LedgerError(f"{path} is not an exported ledger: {error}") from error
    heads = journal.heads(export.lines)
    if export.version != 1 or export.length != len(export.lines) or heads[-1] != export.head:
        raise LedgerError(f"{path} was altered: its lines do not add up to the length and head that it names")
    return export.lines, heads
