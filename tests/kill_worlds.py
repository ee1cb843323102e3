"""A federation of real processes in which one is killed at a named boundary, and what must hold afterwards."""

import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confide import journal
from confide.proto import fleet_pb2
from confide.runs.specification import Specification
from confide.sealing import crash_points
from confide.sealing.member import seal_log
from confide_simulations.benchmarks.fleet import stand_in
from confide_simulations.benchmarks.fleet.round import make_federation, specification
from confide_simulations.local_federation import LocalFederation
from confide_simulations.processes import ProcessGroup
from numpy.typing import NDArray

PARAMETERS = 64
MEMBERS = 4
VICTIM = "organization-1"
COORDINATOR = "coordinator"
DEADLINE_S = 20.0
"""Long enough for a process to come back on a busy machine. Nothing waits for it as long as everybody does."""
PATIENCE_S = 90.0
"""For whatever comes next; far above what it takes."""

Events = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Killed:
    """One run in which a process was killed and started again, perhaps several times."""

    world: "KillWorld"
    run_id: str
    rounds: int
    events: Events

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [data for name, data in self.events if name == kind]

    @property
    def collector(self) -> list[dict[str, Any]]:
        """The collector's journal."""
        return _entries(self.world.federation.server_folder / "runs" / self.run_id / "collector.jsonl")

    @property
    def slots(self) -> list[int]:
        """Slots that the collector opened, in order."""
        return [_opened_slot(event) for event in self.collector if event["event"] == "slot"]

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the last round."""
        return self.world.federation.checkpoint(self.run_id)[0]

    def seal_log(self, node: str) -> Path:
        """One node's log of this run."""
        return self.world.federation.node_folder(node) / "runs" / self.run_id / "member" / "seal-log.jsonl"


class KillWorld:
    """Four stand-in nodes and a coordinator; processes are started once and only the victims again."""

    def __init__(self, folder: Path, processes: ProcessGroup) -> None:
        self.processes = processes
        self.federation: LocalFederation = make_federation(folder, MEMBERS)
        self.specification = specification(self.federation, rounds=1, sealing="sealed", bits=16)

    def start(self) -> None:
        """Everybody, nobody doomed."""
        self.federation.start_server(self.processes)
        self.federation.wait_for_server(self.processes, PATIENCE_S)
        for name in self.federation.nodes:
            self._start(name)

    def _start(self, name: str, crash_at: str | None = None) -> None:
        environment = {stand_in.PARAMETERS: str(PARAMETERS)}
        if crash_at is not None:
            environment[crash_points.VARIABLE] = crash_at
        if name == COORDINATOR:
            self.federation.start_server(self.processes, environment)
        else:
            self.federation.start_node(self.processes, name, environment)

    def specified(self, name: str, rounds: int) -> Specification:
        """A run of its own name with short deadlines."""
        changes = {"step_deadline_s": DEADLINE_S, "exchange_deadline_s": DEADLINE_S, "min_cohort": 3, "rounds": rounds}
        federation = self.specification.federation.model_copy(update=changes)
        # Whoever is killed before its upload is left out of the sum.
        sealing = self.specification.sealing.model_copy(update={"differences": "accepted"})
        return self.specification.model_copy(update={"name": name, "federation": federation, "sealing": sealing})

    def kill_in_a_run(self, name: str, moments: Sequence[str], rounds: int) -> Killed:
        """One run in which the process that passes the moments dies at each of them, and is started again at once.

        moments: all of a member or all of the collector; each is counted by the process that is to die there.
        """
        victim = COORDINATOR if moments[0].startswith("collector.") else VICTIM
        return self.kill_several_in_a_run(name, {victim: moments}, rounds)

    def kill_several_in_a_run(self, name: str, doomed: Mapping[str, Sequence[str]], rounds: int) -> Killed:
        """The same with several victims, each dying by itself. doomed: moments by victim."""
        for victim, moments in doomed.items():
            self.processes.stop(victim)
            self._start(victim, moments[0])
        self.federation.wait_for_server(self.processes, PATIENCE_S)
        chosen = self.specified(name, rounds)
        self.federation.allow(chosen)
        run_id = self.federation.submit(chosen, bytes(4 * PARAMETERS))
        with _watched(self.federation, run_id) as seen, ThreadPoolExecutor(len(doomed)) as pool:
            for _ in pool.map(self._die_again_and_again, doomed, doomed.values()):
                pass  # raises what went wrong
            return Killed(self, run_id, rounds, list(seen))

    def _die_again_and_again(self, victim: str, moments: Sequence[str]) -> None:
        for moment, following in itertools.zip_longest(moments, moments[1:]):
            code = self.processes.children[victim].wait(PATIENCE_S)
            assert code == -9, f"{victim} ended with {code} before {moment}; SIGKILL is -9"
            self._start(victim, following)

    def expected(self, contributors: list[list[str]]) -> NDArray[np.float64]:
        """The model after these rounds: from zero, the mean of what each contributor is known to send."""
        clip = self.specification.federation.clip_norm
        assert clip is not None
        model = np.zeros(PARAMETERS)
        for number, names in enumerate(contributors, start=1):
            updates = [stand_in.stand_in_update(name, number, PARAMETERS, clip) for name in names]
            model += np.mean(updates, axis=0, dtype=np.float64)
        return model


@contextmanager
def _watched(federation: LocalFederation, run_id: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """The run's events, watched from a thread: the watcher comes back by itself, this iterator gives up in the end."""
    arrived: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue()

    def watch() -> None:
        for event in federation.watch(run_id):
            arrived.put(event)
        arrived.put(None)

    def events() -> Iterator[tuple[str, dict[str, Any]]]:
        while (event := arrived.get(timeout=PATIENCE_S)) is not None:
            yield event

    threading.Thread(target=watch, name="watch", daemon=True).start()
    yield events()


def check_rounds(killed: Killed) -> None:
    """Every round was committed once, stayed what it was, and is the sum of exactly those it names."""
    assert killed.events[-1][0] == "run_finished", killed.events[-3:]
    committed = killed.of_kind("round_committed")
    assert [data["round"] for data in committed] == list(range(1, killed.rounds + 1))
    manifest = killed.manifest
    assert [data["model_sha256"] for data in committed] == manifest["chain"][1:]
    contributors = [entry["contributors"] for entry in manifest["rounds"]]
    assert contributors == [data["contributors"] for data in committed]
    assert all(len(names) >= 3 for names in contributors)
    for number in range(1, killed.rounds + 1):
        _, raw = killed.world.federation.checkpoint(killed.run_id, number)
        expected = killed.world.expected(contributors[:number])
        assert np.abs(np.frombuffer(raw, "<f4") - expected).max() < 5e-3


def check_logs(killed: Killed) -> None:
    """No node signed, sent or revealed twice in a slot; all who signed one, signed the same list."""
    lists: dict[int, set[str]] = {}
    spent: dict[tuple[int, str], str] = {}
    for node in killed.world.federation.nodes:
        bodies = _entries(killed.seal_log(node))
        for event in ("reserved", "spent", "signed", "revealed"):
            slots = [body["slot"] for body in bodies if body["event"] == event]
            assert slots == sorted(set(slots)), f"{node}: {event} in slots {slots}"
        epochs = [body["epoch"] for body in bodies if body["event"] == "epoch"]
        assert epochs == sorted(set(epochs))
        for row in seal_log.rows(killed.seal_log(node)):
            if "spent" in row:
                spent[row["slot"], node] = row["spent"]["upload_digest"]
            if "signed" in row:
                lists.setdefault(row["slot"], set()).add(row["signed"]["list_sha256"])
            if "revealed" in row:
                assert not set(row["revealed"]["self_masks"]) & set(row["revealed"]["mask_secrets"])
                assert row["revealed"]["self_masks"] == row["signed"]["survivors"]
    assert all(len(signed) == 1 for signed in lists.values()), lists
    assert len(set(spent.values())) == len(spent)
    _check_collector(killed, spent)


def _check_collector(killed: Killed, spent: dict[tuple[int, str], str]) -> None:
    """Each slot was opened once, one list and one outcome each; every upload held is the one that its node spent."""
    of_slot: set[str]
    uploads: list[str]
    slot, of_slot, uploads = 0, set(), []
    for event in killed.collector:
        if event["event"] == "slot":
            number = _opened_slot(event)
            assert number > slot
            slot, of_slot, uploads = number, set(), []
        if event["event"] in {"list", "quorum", "decided", "ended"}:
            assert event["event"] not in of_slot
            of_slot.add(event["event"])
        if event["event"] == "upload":
            assert spent[slot, event["node"]] == event["digest"]
            uploads.append(event["node"])
        if event["event"] == "list":
            assert event["nodes"] == sorted(uploads)


def _opened_slot(event: dict[str, Any]) -> int:
    """The number of the slot that a journal's event "slot" opens."""
    return fleet_pb2.SlotOpen.FromString(bytes.fromhex(event["plan"])).slot


def _entries(path: Path) -> list[dict[str, Any]]:
    bodies, _ = journal.read(path)
    assert bodies, f"{path} holds nothing"
    return bodies
