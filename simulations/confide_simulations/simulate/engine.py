"""The one adapter to Flower's Ray engine and to Ray: workers that run the ClientApp for virtual nodes.

Flower's `run_simulation()` is deprecated and its engine wants an app bundle; what it stands on is used as it is: its
RayBackend starts Ray and sizes the pool, its ClientAppActor runs a ClientApp on a Message. Only the choice of the
actor differs: Flower's pool takes any idle one, here a node always comes to the same one.

    with Engine(Resources(workers=2), nodes=4) as engine:
        job = engine.submit("/folder", "hospital-a", number=0, message=message)
        done = engine.wait([job], timeout_s=1.0)
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from confide.errors import StateError
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY

from confide_simulations.simulate.worker import FOLDER, NAME, load_app


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What virtual nodes run on.

    address: of a running Ray cluster ("auto" finds one on this machine); "" starts one here for the time being.
    cpus, gpus: of one worker; gpus = 0.25 puts four workers on a GPU.
    workers: at most this many; None is as many as fit, and never more than nodes.
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    workers: int | None = None


@dataclass(frozen=True)
class Done:
    """A finished job. reply is None when its worker died; error says why there is no reply at all."""

    job: str
    reply: Message | None
    error: str = ""


@dataclass
class _Job:
    reference: Any
    number: int
    generation: int


class Engine:
    """Flower's actors. One simulation after the other may use them."""

    def __init__(self, resources: Resources, *, nodes: int) -> None:
        """Start or join Ray. Raises StateError when it is not installed or the resources are not there."""
        self._resources, self._nodes = resources, nodes
        with _python_path(), warnings.catch_warnings():
            # Of how a later Ray will treat workers without a GPU; here they get none, which is meant.
            warnings.simplefilter("ignore", FutureWarning)
            self._start()
        self._actors: list[Any] = self._pool.pool
        self._generations = [0] * len(self._actors)
        self._jobs: dict[str, _Job] = {}
        self._shared: tuple[Message, Any] | None = None

    def _start(self) -> None:
        try:
            import ray
            from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
            from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor
        except ImportError as error:
            raise StateError("Ray is not installed; install it with `pip install 'confide[simulation]'`") from error
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._ray, resources = ray, self._resources
        # "local", as without an address Ray joins whatever cluster was last started on this machine.
        address = resources.address or "local"
        start: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local" and resources.workers is not None:
            start["num_cpus"] = max(1, round(resources.workers * resources.cpus))
        wanted: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        try:
            self._backend = RayBackend({"init_args": start, "client_resources": dict(wanted)})
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"the Ray cluster at {resources.address}" if resources.address else "Ray on this machine"
            raise StateError(f"{where} cannot be used: {error}. Check --ray-address.") from error
        try:
            self._pool = BasicActorPool(actor_type=ClientAppActor, client_resources=wanted, actor_kwargs={})
        except ValueError as error:
            ray.shutdown()
            raise StateError(
                f"no worker fits: one needs {resources.cpus:g} CPUs and {resources.gpus:g} GPUs. Lower --gpus-per-node"
            ) from error
        self._make: Callable[[], Any] = self._pool.create_actor_fn
        self._pool.add_actors_to_pool(min(self._pool.actors_capacity, self._nodes, resources.workers or self._nodes))
        self._backend.pool = self._pool

    @property
    def workers(self) -> int:
        """How many processes there are."""
        return len(self._actors)

    def generation(self, number: int) -> int:
        """How often the worker of this node was replaced."""
        return self._generations[number % self.workers]

    def submit(self, folder: str, name: str, *, number: int, message: Message) -> str:
        """Give a message to the worker of node `number` (0-based); returns the job's id. It does not wait.

        The same message object again travels to Ray's store only once.
        """
        if self._shared is None or self._shared[0] is not message:
            self._shared = (message, self._ray.put(message))
        config: dict[str, Any] = {
            PARTITION_ID_KEY: number, NUM_PARTITIONS_KEY: self._nodes, FOLDER: folder, NAME: name,
        }  # fmt: skip
        context = Context(message.metadata.run_id, number, config, RecordDict(), {})
        place = number % self.workers
        reference = self._actors[place].run.remote(load_app, self._shared[1], str(number), context)
        job = reference.hex()
        self._jobs[job] = _Job(reference, number, self._generations[place])
        return str(job)

    def wait(self, jobs: Sequence[str], timeout_s: float) -> Done | None:
        """The next of these jobs that is done; None after the timeout."""
        references = [self._jobs[job].reference for job in jobs if job in self._jobs]
        if not references:
            return None
        ready, _ = self._ray.wait(references, num_returns=1, timeout=max(0.0, timeout_s))
        if not ready:
            return None
        job = ready[0].hex()
        found = self._jobs.pop(job)
        try:
            _, reply, _ = self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError:
            self._replace(found)
            return Done(job, None)
        except self._ray.exceptions.RayError as error:
            return Done(job, None, error=f"the node's worker failed: {str(error).strip().splitlines()[-1]}"[:500])
        return Done(job, reply)

    def forget(self, jobs: Sequence[str]) -> None:
        """Nobody waits for these any more."""
        for job in jobs:
            self._jobs.pop(job, None)

    def _replace(self, job: _Job) -> None:
        """A new worker in place of one that died (out of memory, for example): once, however many jobs it had."""
        place = job.number % self.workers
        if job.generation == self._generations[place]:
            self._actors[place] = self._make()
            self._generations[place] += 1

    def kill_worker(self, number: int) -> None:
        """End the worker of a node at once, as a crash would: for tests of recovery."""
        self._ray.kill(self._actors[number % self.workers], no_restart=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        self._jobs.clear()
        self._shared = None
        self._backend.terminate()


@contextlib.contextmanager
def _python_path() -> Iterator[None]:
    """Flower's backend changes PYTHONPATH of this process for good; its other children have no use for that."""
    before = os.environ.get("PYTHONPATH")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before
