"""The node's state folder, mode 0700: everything that this node is and remembers. Nobody else needs any of it.

    identity.key fleet.key tls.key      private keys, 0600       (confide.identity)
    tls.crt ca.crt root.pub             certificate, authority, the root's public key
    roster.json consortium.json         who else is a member, and where the coordinator is
    node.json                           settings of this machine: models folder, proxy, threads, precision, ...
    policy.toml                         what this node allows
    datasets.json                       data sets by name
    audit.log                           what was asked, allowed, refused and sent (a journal)
    heights.log heights.json            epochs taken part in, and what peers showed of theirs (sealing.member.heights)
    memory.log                          accepted submissions: what must never be forgotten (a journal)
    revealed.jsonl                      what was revealed for, over all sealed runs (sealing.member.revealed)
    agent.json                          what the running agent last did, for `confide node status`
    speed.json                          how fast this machine trains, by shape of the step
    progress.json                       what it is doing this moment
    pause.json                          that its operator paused it; absent otherwise
    runs/<run id>/                      offer.bin run.json approval.json heads.log member/ training/ replies/
    cache/                              what the evaluation harness keeps

Epoch secrets of sealing are never in it.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from confide import canonical
from confide.errors import StateError
from confide.files import private_folder, write_atomic
from confide.identity.member import LocalMember, load_member
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_OF_A_NODE = ("node.json", "identity.key", "policy.toml", "consortium.json")
"""One of them is in every node's folder from its first command on."""


class Settings(BaseModel):
    """node.json: settings of the machine. What the node allows stands in policy.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = Field(default=1, ge=1, le=1)
    models: str = ""
    """Folder of base models; empty: `models` inside the state folder. Several nodes of one machine may share one."""
    coordinator: str = ""
    """host:port of the coordinator's fleet port; empty: the address in consortium.json."""
    proxy: str = ""
    """Outbound proxy, http://host:port; empty: none. Environment variables are not looked at."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of local training; none: torch's choice."""
    max_rank: int | None = Field(default=None, ge=1)
    """Largest LoRA rank that this machine trains; of a run's larger adapters it trains the first rows and columns, the
    rest of its update is zero. None: the run's own."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What this machine computes in where a run allows bfloat16; auto: what it measures to be faster."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that share a local step (docs/larger-nodes.md); none: one per GPU, and one without a GPU."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Where this organization's own Prometheus asks, on 127.0.0.1 (agent/metrics.py); none: nowhere."""
    log_file: str = ""
    """Where the agent's log goes, rotated; empty: standard error."""
    notify: tuple[str, ...] = Field(default=(), strict=False)
    """Program and arguments that are run when a run waits for a person (agent/notifying.py); empty: nobody is told."""


@dataclass(frozen=True)
class StateFolder:
    """Paths and small documents of one node."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> "StateFolder":
        """The folder of a node that is there already. Raises StateError where none is: nothing is made by mistake, and
        no other folder gets its mode."""
        folder = root.expanduser()
        if not any(os.path.exists(folder / name) for name in _OF_A_NODE):
            raise StateError(f"{root} is no node's state folder; `confide node init {root} --name NAME` makes one")
        return cls.create(root)

    @classmethod
    def create(cls, root: Path) -> "StateFolder":
        """The folder, made where it is missing, and private. Raises StateError when it cannot be."""
        try:
            return cls(private_folder(root.expanduser().resolve()))
        except OSError as error:
            raise StateError(f"cannot use {root} as state folder: {error.strerror}") from error

    @property
    def policy(self) -> Path:
        """policy.toml."""
        return self.root / "policy.toml"

    @property
    def audit(self) -> Path:
        """The audit journal."""
        return self.root / "audit.log"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.root / "runs"

    @property
    def fleet_node(self) -> Path:
        """Flower's number of this node, kept so that a crashed agent can take its place again at once."""
        return self.root / "fleet-node.json"

    @property
    def speeds(self) -> Path:
        """How fast this machine trains (confide_client.runs.speed)."""
        return self.root / "speed.json"

    @property
    def progress(self) -> Path:
        """What the running agent is doing this moment; absent while it waits."""
        return self.root / "progress.json"

    def run(self, run_id: str) -> Path:
        """The folder of one run. Raises StateError for anything but 32 hex characters: the name comes from outside."""
        if not _RUN_ID.fullmatch(run_id):
            raise StateError(f"{run_id[:64]!r} is not a run id (32 characters of lower-case hex)")
        return self.runs / run_id

    def find_run(self, prefix: str) -> str:
        """The one run id that starts with what an operator typed."""
        found = [name for name in self.run_ids() if name.startswith(prefix.lower())]
        if len(found) != 1:
            known = ", ".join(name[:8] for name in self.run_ids()) or "none"
            raise StateError(f"{len(found)} runs start with {prefix!r}; known here: {known}")
        return found[0]

    def run_ids(self) -> list[str]:
        """Every run that this node was offered, oldest first."""
        if not self.runs.is_dir():
            return []
        folders = [path for path in self.runs.iterdir() if _RUN_ID.fullmatch(path.name) and path.is_dir()]
        return [path.name for path in sorted(folders, key=lambda path: (path.stat().st_ctime, path.name))]

    @property
    def settings(self) -> Settings:
        """node.json, or defaults. Raises StateError when damaged."""
        path = self.root / "node.json"
        if not path.exists():
            return Settings()
        try:
            return Settings.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise StateError(f"{path}: {place}: {first['msg']}; correct the file") from error

    def save_settings(self, settings: Settings) -> None:
        """Write node.json."""
        document = settings.model_dump(mode="json")
        write_atomic(self.root / "node.json", json.dumps(document, indent=2).encode() + b"\n")

    @property
    def models(self) -> Path:
        """Folder of base models."""
        chosen = self.settings.models
        return Path(chosen).expanduser() if chosen else self.root / "models"

    def member(self) -> LocalMember:
        """Keys, certificate and roster of this node. Raises IdentityError when it was not admitted yet."""
        return load_member(self.root)

    def note_agent(self, **facts: Any) -> None:
        """Remember for `confide node status` what the agent is doing."""
        write_atomic(self.root / "agent.json", canonical.encode({"at": time.time(), **facts}))

    def note_pause(self, **facts: Any) -> None:
        """The operator pauses the node: its agent takes no instruction until `end_pause`."""
        write_atomic(self.root / "pause.json", canonical.encode(facts))

    def end_pause(self) -> None:
        """The node goes on."""
        (self.root / "pause.json").unlink(missing_ok=True)

    def pause(self) -> dict[str, Any]:
        """What `note_pause` wrote, or nothing."""
        return read_json(self.root / "pause.json")

    def agent(self) -> dict[str, Any]:
        """What `note_agent` wrote last, or nothing."""
        return read_json(self.root / "agent.json")


def read_json(path: Path) -> dict[str, Any]:
    """A small document of our own; an absent one is empty. Raises StateError when damaged."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is damaged: {error}; remove it or restore it from a backup") from error
    if not isinstance(document, dict):
        raise StateError(f"{path} does not hold a JSON object; remove it or restore it from a backup")
    return document
