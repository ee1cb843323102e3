"""A small consortium on one machine for tests of the node: real keys, real roster, a real fleet port."""

import contextlib
import hashlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from confide.codec.tensors import model_digest
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.keys import verify
from confide.identity.member import LocalMember
from confide.identity.submission import SignedEnd, SignedSubmission, sign_end, sign_stop, sign_submission
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.transport.envelope import payload_digest
from confide_client.state import Settings, StateFolder
from confide_server.fleet.flower import FleetLink

from tests.waiting import until

POLICY = """
version = 1
consortium_root = "{root}"
allow_demo_root = true
methods = ["sft"]
models = ["{model}"]
data_sets = ["faq"]
min_cohort = {min_cohort}
max_rounds = 5
max_local_steps = 8
training_hours = ["00:00-24:00"]
sealing = "optional"
differences = "accepted"
reproducible = true
privacy_units = ["none"]
approval = "{approval}"
"""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class World:
    """A consortium with a coordinator, an administrator and nodes, each in its own folder."""

    root: Path
    consortium: Consortium
    port: int
    members: dict[str, LocalMember]

    @classmethod
    def make(cls, root: Path, nodes: tuple[str, ...], *, demo: bool = True) -> "World":
        port = free_port()
        address = f"127.0.0.1:{port}"
        consortium = Consortium.create(root / "root", "trial", demo=demo, fleet_address=address)
        admissions = {}
        for name, role in [("coordinator", "coordinator"), ("admin", "administrator"), *((n, "node") for n in nodes)]:
            addresses = ["127.0.0.1"] if role == "coordinator" else []
            admissions[name] = consortium.admit(make_request(root / name, name, role, addresses))
        members = {name: accept_admission(root / name, data, time.time()) for name, data in admissions.items()}
        world = cls(root, consortium, port, members)
        for member in members.values():
            member.roster.accept(consortium.roster.signed)
        return world

    def state(self, node: str) -> StateFolder:
        return StateFolder(self.root / node)

    def equip(
        self, node: str, model: str, models: Path, records: Path, *, approval: str = "auto", min_cohort: int = 2
    ) -> StateFolder:
        """Policy, settings and data of a node."""
        from confide_client.data.datasets import DataSets

        state = self.state(node)
        root = self.consortium.root.public.hex()
        policy = POLICY.format(root=root, model=model, approval=approval, min_cohort=min_cohort)
        state.policy.write_text(policy)
        state.save_settings(Settings(models=str(models), threads=1))
        DataSets(state.root).add("faq", records, evaluation_fraction=0.25)
        return state

    def offer(
        self, specification: Specification, initial: bytes, run_id: str, *, administrator: str = "admin", **terms: Any
    ) -> fleet_pb2.Offer:
        """A freshly signed offer. terms: of confide.identity.submission.sign_submission."""
        key, document = self.members[administrator].identity, specification.canonical_bytes()
        signed = sign_submission(key, administrator, document, model_digest(initial), run_id=run_id, **terms)
        return self.offered(signed)

    def offered(self, signed: SignedSubmission) -> fleet_pb2.Offer:
        """The offer of what was signed."""
        return fleet_pb2.Offer(roster=self.consortium.roster.signed, **vars(signed))

    def end(self, run_id: str, failure: str = "", stopped_by: str = "") -> fleet_pb2.End:
        """The end of a run, as the coordinator says it."""
        order = sign_stop(self.members[stopped_by].identity, run_id) if stopped_by else b""
        said = SignedEnd(run_id, failure, stopped_by, order)
        end = vars(sign_end(self.members["coordinator"].identity, "coordinator", said)) | {"run_ended": True}
        end.pop("run_id")
        return fleet_pb2.End(committed=not failure, **end)

    @contextlib.contextmanager
    def fleet(self, *, folder: str = "fleet") -> Iterator[FleetLink]:
        """The coordinator's fleet port, over TLS, in a thread."""
        coordinator = self.members["coordinator"]
        link = FleetLink(self.root / folder)
        link.admit(self.consortium.roster.current)
        server = uvicorn.Server(
            uvicorn.Config(
                link.app(),
                host="127.0.0.1",
                port=self.port,
                log_level="warning",
                ssl_keyfile=str(coordinator.tls_key_path),
                ssl_certfile=str(coordinator.tls_certificate_path),
                timeout_graceful_shutdown=1,
            )
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            until(lambda: server.started)
            yield link
        finally:
            link.close()
            server.should_exit = True
            thread.join(timeout=60)


class Instructions:
    """Makes the instructions of one run."""

    def __init__(self) -> None:
        self.run_id = secrets.token_hex(16)
        self._sequence = 0

    def make(
        self,
        step: "fleet_pb2.Step.ValueType",
        body: bytes,
        payload: dict[str, bytes] | None = None,
        /,
        **changes: object,
    ) -> bytes:
        self._sequence += 1
        instruction = fleet_pb2.Instruction(
            version=1,
            release="0.1.0",
            run_id=self.run_id,
            step=step,
            sequence=self._sequence,
            body=body,
            payload_digest=payload_digest(payload or {}),
        )
        for name, value in changes.items():
            setattr(instruction, name, value)
        return instruction.SerializeToString(deterministic=True)

    def slot(self, model: bytes, round: int = 1, **changes: object) -> tuple[bytes, dict[str, bytes]]:
        """TRAIN of one round."""
        slot = fleet_pb2.SlotOpen(slot=round, round=round, attempt=1, model_sha256=model_digest(model))
        for name, value in changes.items():
            setattr(slot, name, value)
        payload = {"model": model}
        return self.make(fleet_pb2.TRAIN, slot.SerializeToString(deterministic=True), payload), payload


def opened(signed: bytes, member: LocalMember) -> fleet_pb2.Reply:
    """The reply, its signature checked."""
    envelope = fleet_pb2.SignedReply.FromString(signed)
    verify(member.identity.public, "reply", envelope.reply, envelope.signature)
    return fleet_pb2.Reply.FromString(envelope.reply)


def faq(path: Path, records: int, salt: str = "") -> Path:
    """A small jsonl file of questions and answers."""
    lines = [
        {
            "prompt": f"what is {salt} {i}?",
            "completion": f"it is {hashlib.sha256(f'{salt}{i}'.encode()).hexdigest()[:6]}",
        }
        for i in range(records)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
