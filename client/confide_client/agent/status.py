"""What an operator sees: the agent, its runs, its data, and the end of the audit log. Reads files only.

It works while the agent runs and while it does not, and imports neither torch nor Flower.
"""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from confide import journal
from confide.errors import ConfideError, IdentityError
from confide.identity.expiry import Notice, notices
from confide.identity.member import load_member
from confide.running import runs
from confide.text import line, markup, table
from rich.console import Console
from rich.table import Table

from confide_client.data.datasets import DataSets, describe
from confide_client.policy.policy import load_policy
from confide_client.state import StateFolder, read_json


def gather(state: StateFolder, *, entries: int = 20) -> dict[str, Any]:
    """Everything that `confide node status` shows, as one document."""
    bodies, head = journal.read(state.audit)
    found = _notices(state.root)
    return {
        "folder": str(state.root),
        "membership": _attempt(lambda: _membership(state.root)),
        "notices": [vars(notice) for notice in found],
        "agent": _agent(state),
        "progress": _progress(state),
        "pause": state.pause(),
        "policy": _attempt(lambda: load_policy(state.policy).model_dump(mode="json")),
        "data_sets": [describe(name, entry) for name, entry in DataSets(state.root).all().items()],
        "runs": [{"run": run_id, **read_json(state.run(run_id) / "run.json")} for run_id in state.run_ids()],
        "audit": {"entries": len(bodies), "head": head, "newest": bodies[-entries:] if entries else []},
    }


def _membership(folder: Path) -> dict[str, Any]:
    if not (folder / "consortium.json").exists():
        raise IdentityError(
            f"give {folder / 'request.json'} to the consortium's administrator, and take the answer with "
            f"`confide node init {folder} --admission admission.json --root KEY`, the root's key as you learned it "
            "elsewhere. With a start kit run `confide node join KIT` again"
        )
    member = load_member(folder)
    roster = member.roster.current
    return {
        "name": member.name,
        "consortium": member.membership.consortium,
        "demo": member.membership.demo,
        "root": member.membership.root_public,
        "roster_version": roster.version,
        "roster_expires_at": roster.expires_at,
        "certificate_expires_at": member.claim.expires_at,
    }


def _notices(folder: Path) -> list[Notice]:
    try:
        return notices(folder, time.time())
    except ConfideError as error:
        return [Notice(str(error), over=True)]


def _attempt(read: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read()
    except ConfideError as error:
        return {"error": str(error)}
    return found


def _agent(state: StateFolder) -> dict[str, Any]:
    noted = state.agent()
    return {**noted, "running": bool(noted.get("running")) and runs(noted)}


def _progress(state: StateFolder) -> dict[str, Any]:
    """Nothing while the agent waits or does not run: a killed one leaves its last note behind."""
    return read_json(state.progress) if _agent(state)["running"] else {}


def show(document: dict[str, Any], console: Console) -> None:
    """For people. A run without sealing is red wherever it appears."""
    membership, agent = document["membership"], document["agent"]
    for notice in document["notices"]:
        colour = "bold red" if notice["over"] else "yellow"
        console.print(f"[{colour}]{markup(notice['text'], 1000)}[/]", highlight=False)
    if "error" in membership and not document["notices"]:
        why = markup(membership["error"], 1000)
        console.print(f"[yellow]not a member yet:[/] {why}", highlight=False, soft_wrap=True)
    elif "error" not in membership:
        demo = " [red](a demo's root)[/]" if membership["demo"] else ""
        console.print(
            f"[bold]{membership['name']}[/] of {membership['consortium']}{demo}, root {membership['root'][:16]}…, "
            f"roster {membership['roster_version']} until {_day(membership['roster_expires_at'])}, "
            f"certificate until {_day(membership['certificate_expires_at'])}",
            highlight=False,
        )
    console.print(_agent_line(agent), highlight=False)
    if document["pause"]:
        why = f": {markup(document['pause']['reason'])}" if document["pause"].get("reason") else ""
        console.print(f"[yellow]paused by its operator{why}[/]; `confide node resume` goes on", highlight=False)
    if document["progress"]:
        console.print(_progress_line(document["progress"]), highlight=False, markup=False)
    if "error" in document["policy"]:
        console.print(f"[red]policy: {markup(document['policy']['error'])}[/]", highlight=False)
    for data_set in document["data_sets"]:
        console.print(f"data set {line(data_set)}", highlight=False, markup=False)
    console.print(_runs(document["runs"]) if document["runs"] else "no run was offered yet")
    console.print(_audit(document["audit"]["newest"]))
    console.print(f"audit log: {document['audit']['entries']} entries, head {document['audit']['head'][:16]}…")


def _agent_line(agent: dict[str, Any]) -> str:
    if not agent.get("running"):
        return "agent: [yellow]not running[/]; start it with `confide node start`"
    if agent.get("connected"):
        return f"agent: [green]connected[/] to {markup(agent['coordinator'])}, process {agent['pid']}"
    return f"agent: [yellow]waiting[/]: {markup(agent.get('complaint', 'connecting'))}"


def _progress_line(progress: dict[str, Any]) -> str:
    ago_s = max(0, round(time.time() - progress["at"]))
    return line(f"now: run {progress['run'][:8]}, {progress['words']} (noted {ago_s} s ago)")


def _runs(runs: list[dict[str, Any]]) -> Table:
    shown = table("run", "name", "status", "round", "sealing", "sent", "reason", keys={"run": 8}, title="runs")
    for run in runs:
        sealing = "[bold red]none[/]" if run.get("sealing") == "none" else markup(run.get("sealing", ""))
        shown.add_row(
            run["run"][:8],
            markup(run.get("name", "")),
            markup(run.get("status", "")),
            f"{run.get('links', {}).get('round', 0)}/{run.get('rounds', 0)}",
            sealing,
            f"{run.get('bytes_sent', 0):,} bytes",
            markup(_standing(run)),
        )
    return shown


def _standing(run: dict[str, Any]) -> str:
    """For whom and since when an open run waits; else why it stands as it does."""
    reason = str(run.get("reason", ""))
    if run.get("status") != "waiting":
        return reason
    since = time.strftime("%m-%d %H:%M", time.localtime(run.get("offered_at", 0)))
    return f"for a person here, since {since}" + (f": {reason}" if reason else "")


def _audit(entries: list[dict[str, Any]]) -> Table:
    shown = table("when", "event", "what", keys={"when": 14}, title="newest audit entries")
    for entry in entries:
        facts = ", ".join(
            f"{_short(key)}={_short(value)}" for key, value in entry.items() if key not in {"at", "event"}
        )
        when = datetime.fromisoformat(entry["at"]).astimezone()
        shown.add_row(f"{when:%m-%d %H:%M:%S}", markup(entry["event"]), facts)
    return shown


def _short(value: object) -> str:
    return markup(value, 60)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def show_seal_log(folder: Path, console: Console) -> None:
    """One row per slot of a run: what was reserved, sent, signed and revealed."""
    from confide.sealing.member.seal_log import rows

    path = folder / "member" / "seal-log.jsonl"
    if path.exists():
        shown = table("slot", "event", "what", title=f"run {folder.name[:8]}")
        for row in rows(path):
            for event in ("reserved", "spent", "signed", "revealed", "ended"):
                if event in row:
                    facts = ", ".join(f"{key}={_short(value)}" for key, value in row[event].items())
                    shown.add_row(str(row["slot"]), event, facts)
        console.print(shown)
