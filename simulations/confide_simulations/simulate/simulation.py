"""One simulated run, from specification and shards to the final model; the same command again goes on with it.

    job = Job(specification=..., base=model_folder, shards={"hospital-a": path, ...})
    with Engine(Resources(), nodes=len(job.shards)) as engine:
        finished = Simulation(folder, job).run(engine)

Coordinator (run journal, driver, rounds, outer step), protocol and node runtime are the product's own. Nothing is
exchanged over a network, and a node's deadlines do not run while it waits for its turn at a worker.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide import canonical
from confide.codec.tensors import model_digest
from confide.errors import SpecificationError, StateError, TrainingError
from confide.files import private_folder, sha256_file, write_atomic
from confide.identity.submission import sign_submission
from confide.methods.first_model import first_model
from confide.models.sent_coordinates import needs_names
from confide.models.store import ModelStore, folder_digest, require_base
from confide.planning.run_plan import render
from confide.runs.specification import Specification
from confide_server.rounds.driver import Parts
from confide_server.rounds.scheduler import Scheduler
from confide_server.state.checkpoints import CheckpointStore
from confide_server.state.database import Database
from confide_server.state.runs.journal import RunJournal
from confide_server.state.runs.service import RunEvent, Submission
from confide_server.state.runs.status import ENDED

from confide_simulations.simulate.engine import Engine
from confide_simulations.simulate.link import SimulatedLink
from confide_simulations.simulate.population import ADMINISTRATOR, COORDINATOR, Population

Watch = Callable[[str, Mapping[str, Any]], None]
"""Takes (kind, data) of every event of the run, as confide_server.state.runs.service.RunEvent lists them."""
_PATIENCE = 1e6
_MARKER = "simulation.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is simulated. base: the model's folder, None for a tokenizer. shards: each node's own data file, by node
    name. evaluation: share of its records on which a node evaluates received models. groups: of the roster, each with
    a sum of its own.
    """

    specification: Specification
    base: Path | None
    shards: Mapping[str, Path]
    evaluation: float = 0.1
    groups: int = 1

    def check(self) -> str:
        """Refuse what cannot work before anything is made; returns the plan in words. Raises ConfideError by name."""
        specification, nodes = self.specification, len(self.shards)
        federation = specification.federation
        if specification.trains_model:
            held = folder_digest(require_base(specification, self.base))
            if held != specification.model.sha256:
                raise SpecificationError(
                    f"the specification names the base model {specification.model.sha256}, and {self.base} hashes to "
                    f"{held}. Write that into model.sha256, or name another --model-folder."
                )
        if federation.min_cohort > nodes:
            raise SpecificationError(
                f"federation.min_cohort is {federation.min_cohort}, and there are {nodes} nodes; lower it or use more"
            )
        if federation.nodes and set(federation.nodes) != set(self.shards):
            raise SpecificationError(
                f"federation.nodes names {len(federation.nodes)} nodes, and {nodes} are simulated; use --nodes "
                f"{len(federation.nodes)}, or remove the names"
            )
        return render(specification, nodes=nodes, base=self.base, groups=self.groups)

    @property
    def digest(self) -> str:
        """Names the simulation: the same digest is the same work."""
        shards = {name: sha256_file(path) for name, path in self.shards.items()}
        others = {"evaluation": str(self.evaluation), "groups": self.groups}
        return canonical.digest(["confide/v1/simulation", self.specification.digest, shards, others])


@dataclass(frozen=True)
class Finished:
    """What a simulated run left. models: raw bytes of what it learned, at first and after each round."""

    run_id: str
    manifest: Mapping[str, Any]
    events: tuple[RunEvent, ...]
    models: tuple[bytes, ...]


class Simulation:
    """A simulation's folder, mode 0700."""

    def __init__(self, folder: Path, job: Job, *, models: Path | None = None) -> None:
        """models: a store of base models to share with other simulations; default one in the folder."""
        self.folder = folder
        self.job = job
        self._models = models or folder / "models"

    def run(self, engine: Engine, watch: Watch | None = None) -> Finished:
        """Begin or go on, to the end. Raises TrainingError when the run failed, StateError for another's folder."""
        population = self._prepare()
        database = Database(f"sqlite:///{self.folder.resolve() / 'coordinator.db'}")
        try:
            checkpoints = CheckpointStore(str(private_folder(self.folder / "checkpoints")))
            book = RunJournal(database, checkpoints, population.roster)
            run_id = self._submitted(book, population)
            link = SimulatedLink(engine, folder=self.folder, names=list(self.job.shards), spool=self.folder / "spool")
            parts = Parts(
                book=book,
                link=link,
                roster=population.roster,
                name=COORDINATOR,
                identity=population.coordinator,
                folder=private_folder(self.folder / "runs"),
                deadline_factor=_PATIENCE,
            )
            self._drive(Scheduler(parts), book, run_id, watch or (lambda kind, data: None))
            return self._finished(book, run_id)
        finally:
            database.close()

    def _prepare(self) -> Population:
        """Keys, policies and shards, made once."""
        marker, digest = self.folder / _MARKER, self.job.digest.encode()
        if marker.exists():
            if marker.read_bytes() != digest:
                raise StateError(
                    f"{self.folder} holds another simulation (specification, seed, data or nodes differ); choose "
                    "another --output, or remove that one"
                )
            return Population.open(self.folder)
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "nodes").is_dir():
            raise StateError(f"{self.folder} is not empty and holds no simulation; choose another --output")
        shutil.rmtree(self.folder / "nodes", ignore_errors=True)  # a set-up that was cut short
        (self.folder / "roster.json").unlink(missing_ok=True)
        private_folder(self.folder / "nodes")
        if self.job.specification.trains_model:
            ModelStore(self._models).add(str(self.job.base), self.job.specification.model.name)
        population = Population.create(self.folder, sorted(self.job.shards), self.job.groups)
        population.equip(self.job.specification, self.job.shards, self._models, self.job.evaluation)
        write_atomic(marker, digest)
        return population

    def _submitted(self, book: RunJournal, population: Population) -> str:
        """The run that is open or finished here, else a new one."""
        known = book.runs()
        if known and known[0].status not in ("failed", "stopped"):
            return known[0].run_id
        specification = self.job.specification
        model, schema = first_model(specification, self.job.base)
        document = specification.canonical_bytes()
        return book.submit(
            Submission(
                signed=sign_submission(population.administrator, ADMINISTRATOR, document, model_digest(model)),
                initial_model=model,
                schema=schema.to_bytes() if needs_names(specification) else b"",
            )
        )

    def _drive(self, driver: Scheduler, book: RunJournal, run_id: str, watch: Watch) -> None:
        seen = 0
        driver.start()
        try:
            while True:
                status, detail = self._standing(book, run_id)
                if detail.startswith("waiting: "):  # a coordinator tries again; here nobody mends it meanwhile
                    raise StateError(f"the simulation cannot go on: {detail.removeprefix('waiting: ')}")
                ended = status in ENDED
                for event in book.events(run_id, seen, 0.0 if ended else 0.5):
                    seen = event.sequence
                    watch(event.kind, event.data)
                if ended:
                    return
        finally:
            driver.stop()

    def _standing(self, book: RunJournal, run_id: str) -> tuple[str, str]:
        return next((run.status, run.detail) for run in book.runs() if run.run_id == run_id)

    def _finished(self, book: RunJournal, run_id: str) -> Finished:
        events = tuple(book.events(run_id, 0, 0.0))
        if events[-1].kind != "run_finished":
            reason = events[-1].data.get("reason", events[-1].kind)
            dropped = [event.data["reason"] for event in events if event.kind == "dropped"][-1:]
            refused = [e.data["reason"] for e in events if e.kind == "offer_answered" and not e.data["accepted"]][-1:]
            raise TrainingError("the simulated run did not finish: " + "; ".join([reason, *dropped, *refused]))
        rounds = self.job.specification.federation.rounds
        manifest, _ = book.checkpoint(run_id, None)
        return Finished(
            run_id, manifest, events, tuple(book.checkpoint(run_id, number)[1] for number in range(rounds + 1))
        )
