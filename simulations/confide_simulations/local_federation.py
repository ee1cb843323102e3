"""A whole federation on this machine: a root, a coordinator and nodes, made by the commands that people type.

Set-up commands run in this process, one after the other; the coordinator and every node are processes of their own.
The demo, the benchmarks and the integration tests stand on it.

    with ProcessGroup() as processes:
        federation = LocalFederation(folder, nodes={"hospital-a": Path("a.jsonl"), ...}, base=model_folder)
        federation.set_up()
        federation.start(processes)
        run_id = federation.submit(specification)
        for event in federation.watch(run_id): ...

All on one machine is one trust domain: the root is a demo root, which production nodes refuse.
"""

import contextlib
import io
import json
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from confide.cli import app
from confide.errors import TransportError
from confide.files import private_folder, write_atomic
from confide.identity.member import load_member
from confide.models.sent_coordinates import needs_names
from confide.models.store import ModelStore
from confide.runs.specification import Specification
from confide.transport.admin import AdminClient, event_data
from typer.main import get_command

from confide_simulations.forks import ONE_THREAD
from confide_simulations.processes import ProcessGroup

_POLICY = """version = 1
consortium_root = "{root}"
allow_demo_root = true
methods = ["{method}"]
models = ["{model}"]
data_sets = ["{data}"]
min_cohort = {min_cohort}
max_rounds = {rounds}
max_local_steps = {local_steps}
max_attempts = {max_attempts}
training_hours = ["00:00-24:00"]
sealing = "{sealing}"
waive_colluding = {waive_colluding}
differences = "{differences}"
reproducible = {reproducible}
privacy_units = ["{unit}"]
shared_noise = {shared_noise}
approval = "auto"
hardware = ["cores", "memory", "vector_units", "accelerator"]
"""


def policy_text(
    specification: Specification, *, root_public: str, data: str, budget_epsilon: float | None = None
) -> str:
    """A node's policy.toml that allows exactly this run, a private one's whole cost included."""
    sealing, privacy = specification.sealing, specification.privacy
    text = _POLICY.format(
        root=root_public,
        method=specification.method.name,
        model=specification.model.sha256,
        data=data,
        min_cohort=specification.federation.min_cohort,
        rounds=specification.federation.rounds,
        local_steps=specification.training.local_steps,
        max_attempts=sealing.max_attempts,
        sealing="required" if specification.sealed else "optional",
        waive_colluding="true" if sealing.colluding == 0 else "false",
        differences=sealing.differences,
        reproducible=str(specification.reproducible).lower(),
        unit=privacy.unit,
        shared_noise=str(privacy.noise == "shared").lower(),
    )
    if specification.asks_feedback:
        # A day's room for several runs: what earlier ones asked about counts.
        text += f'[feedback]\npurposes = ["{specification.feedback.purpose}"]\nanswers_a_day = 10000\n'
    if privacy.unit != "none":
        text += f'[budgets."{data}"]\nepsilon = {budget_epsilon or privacy.epsilon}\ndelta = {privacy.delta}\n'
    if privacy.user_key is not None:
        text += f"user_key = {json.dumps(privacy.user_key)}\n"
    return text


def run_command(*arguments: str) -> str:
    """Run one `confide` command in this process and return what it printed. Raises ConfideError as it does."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            get_command(app).main(args=list(arguments), prog_name="confide", standalone_mode=False)
        except typer.Exit as end:
            if end.exit_code:
                raise TransportError(f"`confide {' '.join(arguments)}` ended with {end.exit_code}") from end
    return printed.getvalue()


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class LocalFederation:
    """One federation below `folder`; each member has a state folder there."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: Mapping[str, Path],
        base: Path,
        data: str = "shard",
        model_name: str = "base",
        node_program: Sequence[str] = ("-m", "confide", "node", "start"),
        console: bool = False,
    ) -> None:
        """nodes: each node's own data file. base: a model folder. node_program: what Python runs as a node.

        console: the consortium has a web console too.
        """
        self.folder = private_folder(folder)
        self.nodes = dict(nodes)
        self.data = data
        self.base = base
        self.model_name = model_name
        self.node_program = tuple(node_program)
        self.console = console
        self.fleet_port, self.control_port = free_ports(2)
        self.models = folder / "models"
        self.model_sha256 = ""
        self.root_public = ""

    def node_folder(self, name: str) -> Path:
        """A node's state folder."""
        return self.folder / "nodes" / name

    @property
    def server_folder(self) -> Path:
        """The coordinator's state folder."""
        return self.folder / "coordinator"

    @property
    def console_folder(self) -> Path:
        """The web console's state folder."""
        return self.folder / "console"

    @property
    def admin_folder(self) -> Path:
        """The administrator's folder."""
        return self.folder / "administrator"

    def set_up(self) -> None:
        """Keys, admissions, data sets and the base model; no process yet."""
        root = self.folder / "consortium"
        fleet, control = f"127.0.0.1:{self.fleet_port}", f"127.0.0.1:{self.control_port}"
        addresses = ("--fleet-address", fleet, "--control-address", control)
        run_command(
            "consortium", "init", str(root), "--name", "demo", "--demo", *addresses, "--admin", str(self.admin_folder)
        )
        self.root_public = load_member(self.admin_folder).root_public.hex()
        self.model_sha256 = ModelStore(self.models).add(str(self.base), self.model_name)
        for name, path in self.nodes.items():
            folder = self.node_folder(name)
            run_command("node", "init", str(folder), "--name", name, "--models", str(self.models), "--threads", "1")
            admission = self._admit(folder, root)
            run_command("node", "init", str(folder), "--admission", str(admission), "--root", self.root_public)
            run_command("data", "add", str(folder), self.data, str(path))
        if self.console:
            run_command("console", "init", str(self.console_folder))
            admission = self._admit(self.console_folder, root)
            run_command("console", "init", str(self.console_folder), "--admission", str(admission))
        # Last, so that its admission carries the roster with everybody in it.
        ports = ("--fleet-port", str(self.fleet_port), "--control-port", str(self.control_port))
        run_command(
            "server", "init", str(self.server_folder), "--name", "coordinator", "--address", "127.0.0.1", *ports
        )
        admission = self._admit(self.server_folder, root)
        run_command("server", "init", str(self.server_folder), "--admission", str(admission))

    def _admit(self, folder: Path, root: Path) -> Path:
        admission = folder / "admission.json"
        run_command("consortium", "admit", str(folder / "request.json"), "--folder", str(root), "--out", str(admission))
        return admission

    def allow(self, specification: Specification, *, budget_epsilon: float | None = None) -> None:
        """Write every node's policy so that it allows exactly this run.

        budget_epsilon: of the data over all runs, where others were or will be over the same; default the run's own.
        """
        text = policy_text(specification, root_public=self.root_public, data=self.data, budget_epsilon=budget_epsilon)
        for name in self.nodes:
            write_atomic(self.node_folder(name) / "policy.toml", text.encode())

    def start(self, processes: ProcessGroup, *, nodes: Sequence[str] | None = None, timeout_s: float = 120.0) -> None:
        """Start the coordinator, wait until it answers, then start the nodes."""
        self.start_server(processes)
        self.wait_for_server(processes, timeout_s)
        for name in self.nodes if nodes is None else nodes:
            self.start_node(processes, name)

    def start_server(self, processes: ProcessGroup, environment: dict[str, str] | None = None) -> None:
        """Start (or start again) the coordinator's process."""
        program = ("-m", "confide", "server", "start")
        self._start(processes, "coordinator", [*program, str(self.server_folder)], environment)

    def start_node(self, processes: ProcessGroup, name: str, environment: dict[str, str] | None = None) -> None:
        """Start (or start again) one node's process."""
        self._start(processes, name, [*self.node_program, str(self.node_folder(name))], environment)

    def start_console(self, processes: ProcessGroup, *, port: int = 0, timeout_s: float = 120.0) -> str:
        """Start the web console on loopback and wait for it; returns the link that makes its first account."""
        log = self.folder / "console.log"
        program = ["-m", "confide", "console", "start", str(self.console_folder), "--port", str(port)]
        self._start(processes, "console", program, None)
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(r"https?://\S+/welcome\?link=\S+", log.read_text())):
            processes.check_alive()
            if time.monotonic() > deadline:
                raise TransportError(f"the console printed no link within {timeout_s:g} s; {log} says more")
            time.sleep(0.1)
        return found.group()

    def console_link(self) -> str:
        """Another one-time link for an administrator, as `confide console link` prints it."""
        return run_command("console", "link", str(self.console_folder)).strip()

    def restart_console(self, processes: ProcessGroup, port: int, *, timeout_s: float = 120.0) -> None:
        """Start the web console again, on the port that browsers know, and wait until it answers."""
        program = ["-m", "confide", "console", "start", str(self.console_folder), "--port", str(port)]
        self._start(processes, "console", program, None)
        deadline = time.monotonic() + timeout_s
        while True:
            processes.check_alive()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
            if time.monotonic() > deadline:
                raise TransportError(f"the console does not listen on port {port} within {timeout_s:g} s")
            time.sleep(0.1)

    def _start(
        self, processes: ProcessGroup, name: str, arguments: list[str], environment: dict[str, str] | None
    ) -> None:
        command = [sys.executable, *arguments]
        processes.start(name, command, self.folder / f"{name}.log", {**ONE_THREAD, **(environment or {})})

    def wait_for_server(self, processes: ProcessGroup, timeout_s: float) -> None:
        """Until the control service answers. Raises TransportError when it does not in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            processes.check_alive()
            try:
                with self.client() as client:
                    client.hello()
                return
            except TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def client(self) -> AdminClient:
        """The coordinator's services as the administrator."""
        return AdminClient.of_member(load_member(self.admin_folder), f"127.0.0.1:{self.control_port}")

    def submit(self, specification: Specification, initial_model: bytes | None = None) -> str:
        """Sign and submit; returns the run id. initial_model: raw tensors, when not the base model's own."""
        from confide.methods.first_model import first_model

        schema = None
        if initial_model is None or needs_names(specification):  # else nothing of the base is needed
            first, schema = first_model(specification, self.base)
            initial_model = initial_model or first
        member = load_member(self.admin_folder)
        with self.client() as client:
            return client.submit_run(specification, initial_model, member.identity, schema)

    def watch(self, run_id: str, after: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of each event until the run has ended; comes back by itself when the coordinator restarts."""
        while True:
            try:
                with self.client() as client:
                    for event in client.watch(run_id, after=after):
                        after = event.number
                        yield event.kind, event_data(event)
                return
            except TransportError:
                time.sleep(0.2)

    def checkpoint(self, run_id: str, round_number: int | None = None) -> tuple[dict[str, Any], bytes]:
        """(manifest, raw trainable tensors) of a committed round."""
        with self.client() as client:
            return client.export_run(run_id, round_number)
