"""A consortium on one machine for the coordinator's tests: real keys, rosters, certificates, real TLS on loopback."""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from confide.codec.tensors import model_digest
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.keys import SigningKey
from confide.identity.roster import Role
from confide.identity.submission import sign_stop, sign_submission
from confide.runs.specification import Specification
from confide_server.coordinator.process import Settings, write_settings
from confide_server.state.runs.service import Submission
from confide_simulations.forks import Fork, shared

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class World:
    """The folders of a consortium: root, coordinator, administrator and nodes."""

    folder: Path
    consortium: Consortium
    node_names: tuple[str, ...]
    processes: list[Fork] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, nodes: int = 3, groups: Sequence[str] = ()) -> "World":
        """Everyone admitted, accepted, and on the newest roster. groups: of each node in turn."""
        names = tuple(f"hospital-{chr(97 + i)}" for i in range(nodes))
        consortium = Consortium.create(folder / "root", "example", demo=True)
        world = cls(folder, consortium, names)
        members = [("coordinator", Role.COORDINATOR), ("administrator", Role.ADMINISTRATOR)]
        members += [(name, Role.NODE) for name in names]
        for name, role in members:
            request = make_request(world.of(name), name, role, ["127.0.0.1"] if role is Role.COORDINATOR else [])
            group = groups[names.index(name)] if groups and name in names else ""
            accept_admission(world.of(name), consortium.admit(request, group=group), time.time())
        world.publish()
        write_settings(world.server, Settings(bind="127.0.0.1", fleet_port=0, control_port=0))
        return world

    def of(self, name: str) -> Path:
        """The folder of a member."""
        return self.folder / name

    @property
    def server(self) -> Path:
        """The coordinator's folder."""
        return self.of("coordinator")

    def publish(self) -> None:
        """Put the newest roster into the coordinator's folder, as PublishRoster would."""
        from confide.identity.member import load_member

        load_member(self.server).roster.accept(self.consortium.roster.signed)

    def submission(self, specification: Specification, model: np.ndarray) -> Submission:
        """What the administrator signs and submits."""
        data = model.astype("<f4").tobytes()
        digest, body = model_digest(data), specification.canonical_bytes()
        key = SigningKey.load(self.of("administrator") / "identity.key")
        return Submission(sign_submission(key, "administrator", body, digest), data)

    def stop_order(self, run_id: str) -> tuple[str, bytes]:
        """Who orders a run to stop, and the order."""
        return "administrator", sign_stop(SigningKey.load(self.of("administrator") / "identity.key"), run_id)

    # --- real processes

    def start_server(self) -> int:
        """`confide server start` as a process; returns its fleet port once it is ready."""
        log = (self.folder / "server.log").open("ab")
        (self.server / "addresses.json").unlink(missing_ok=True)
        self.processes.append(shared().start("confide", ["server", "start", str(self.server)], log.fileno()))
        log.close()
        return int(self.addresses()["fleet_port"])

    def addresses(self) -> dict[str, int]:
        """addresses.json of the process that was started last."""
        for _ in range(600):
            if (self.server / "addresses.json").exists():
                found: dict[str, int] = json.loads((self.server / "addresses.json").read_text())
                return found
            if self.processes and self.processes[-1].poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def start_node(self, name: str, *arguments: str) -> Fork:
        """tests.fleet_node as a process."""
        log = (self.folder / f"{name}.log").open("ab")
        command = [str(self.of(name)), str(self.server), *arguments]
        process = shared().start("tests.fleet_node", command, log.fileno(), directory=ROOT)
        log.close()
        self.processes.append(process)
        return process

    def end_processes(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def specification(nodes: Sequence[str] = (), sealing: str = "none", **federation: object) -> Specification:
    """A small run; keywords change [federation], None leaves out."""
    from confide.runs.specification import parse_toml

    options = {"rounds": 2, "data": "notes", "min_cohort": 2, "step_deadline_s": 30.0, "exchange_deadline_s": 10.0}
    lines = [f"{key} = {json.dumps(value)}" for key, value in (options | federation).items() if value is not None]
    text = f"""
version = 1
name = "small"
[model]
sha256 = "{"0" * 64}"
[training]
local_steps = 1
batch_size = 1
learning_rate = 0.1
[sealing]
kind = "{sealing}"
[federation]
nodes = {json.dumps(list(nodes))}
"""
    return parse_toml(text + "\n".join(lines))
