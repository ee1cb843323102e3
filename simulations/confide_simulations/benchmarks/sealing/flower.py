"""Flower's SecAgg+ under measurement, as installed.

It runs whole: the unmodified `SecAggPlusWorkflow` talks to n unmodified `secaggplus_mod` clients through a grid
that calls them in this process, so that every line of both is executed and none of transport is. The client's
figure leaves out its local training (a constant here); the coordinator's leaves out the strategy's
`aggregate_fit`, which would run over n copies of the one aggregate.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide_simulations.benchmarks.meta import cpu_seconds, peak_mib

_ROUND = 1

# (stage, node) -> the client's reply message.
Replies = dict[tuple[int, int], Any]


class FlowerSecAggPlus:
    """One federation of n clients that all hold the same update."""

    def __init__(self, update: NDArray[np.float32], nodes: int) -> None:
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.supercore.task_identity import TaskIdentity

        logging.getLogger("flwr").setLevel(logging.ERROR)
        # Messages of an installed Flower carry the identity of the process's task.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
        self._nodes, self._update = nodes, update
        self._fit = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), 500, {})

    def run(self, dropped: int, replies: Replies | None = None) -> "SecAggRound":
        """All four stages; the first `dropped` clients answer the third with an error. Checks the result.

        Given the replies of an earlier round of the same kind, only the coordinator's work is done again.
        """
        grid = _Grid(self._nodes, dropped, self._fit, replies=replies)
        context, strategy = self._context()
        workflow = _workflow()
        total = cpu_seconds(lambda: workflow(grid, context))
        self._check(context)
        return SecAggRound(
            client_seconds=list(grid.client_seconds.values())[dropped:],
            coordinator_seconds=total - grid.seconds - strategy.seconds,
            wire_bytes=grid.wire_bytes,
            replies=grid.replies,
        )

    def client_peak_mib(self) -> float | None:
        """Highest memory of one client's third stage beyond what it held before."""
        grid = _Grid(self._nodes, 0, self._fit, watch_memory=True)
        context, _ = self._context()
        _workflow()(grid, context)
        return grid.peak

    def _context(self) -> tuple[Any, Any]:
        from flwr.app import ConfigRecord, Context, RecordDict
        from flwr.common import ndarrays_to_parameters
        from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
        from flwr.server import SimpleClientManager
        from flwr.server.compat.legacy_context import LegacyContext

        manager = SimpleClientManager()
        for node in range(1, self._nodes + 1):
            manager.register(_proxy(node))
        strategy = _timed_fedavg(self._nodes)
        base = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        context = LegacyContext(base, strategy=strategy, client_manager=manager)
        context.state.config_records["config"] = ConfigRecord({"current_round": _ROUND})
        initial = ndarrays_to_parameters([np.zeros(1, dtype=np.float32)])
        context.state.array_records["parameters"] = parameters_to_arrayrecord(initial, keep_input=True)
        return context, strategy

    def _check(self, context: Any) -> None:
        from flwr.common import parameters_to_ndarrays
        from flwr.compat.common.recorddict_compat import arrayrecord_to_parameters

        [mean] = parameters_to_ndarrays(arrayrecord_to_parameters(context.state.array_records["parameters"], True))
        if not np.abs(mean - self._update).max() < 1e-3:
            raise AssertionError("Flower's SecAgg+ did not open to the mean: the benchmark drives it wrongly")


@dataclass(frozen=True, kw_only=True)
class SecAggRound:
    """CPU seconds of one whole round, all stages, and the size of one masked upload."""

    client_seconds: list[float]
    coordinator_seconds: float
    wire_bytes: int
    replies: Replies


class _Grid:
    """Calls the clients instead of sending. Copies what a network would have copied, outside the timed parts."""

    def __init__(
        self, nodes: int, dropped: int, fit: Any, *, watch_memory: bool = False, replies: Replies | None = None
    ) -> None:
        from flwr.app import Context, RecordDict

        self._dropped, self._fit, self._watch, self._stage = dropped, fit, watch_memory, 0
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in range(1, nodes + 1)
        }
        self.client_seconds: dict[int, float] = dict.fromkeys(self._contexts, 0.0)
        self.seconds, self.wire_bytes = 0.0, 0
        self.peak: float | None = None
        self.replies: Replies = dict(replies or {})

    def send_and_receive(self, messages: Iterable[Any], timeout: float | None = None) -> list[Any]:
        start, replies = time.process_time(), []
        self._stage += 1
        for message in messages:
            asked = (self._stage, message.metadata.dst_node_id)
            if asked not in self.replies:
                self.replies[asked] = self._deliver(message)
            replies.append(self.replies[asked])
        self.seconds += time.process_time() - start
        return replies

    def _deliver(self, message: Any) -> Any:
        from flwr.app import Error, Message

        node = message.metadata.dst_node_id
        if self._stage == 3 and node <= self._dropped:
            return Message(Error(code=0, reason="dropped"), reply_to=message)
        replies: list[Any] = []
        training = [0.0]
        work = self._client(_private_copy(message), node, training, replies)
        if self._watch and self._stage == 3 and node == 1:
            self.peak = peak_mib(work)
        else:
            self.client_seconds[node] += cpu_seconds(work) - training[0]
        if self._stage == 3:
            from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key

            vectors = replies[0].content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
            self.wire_bytes = sum(len(vector) for vector in vectors)
        return replies[0]

    def _client(self, message: Any, node: int, training: list[float], replies: list[Any]) -> Callable[[], None]:
        from flwr.app import Message
        from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
        from flwr.compat.common.recorddict_compat import fitres_to_recorddict

        def train(asked: Any, _: Any) -> Any:
            start = time.process_time()
            reply = Message(fitres_to_recorddict(self._fit, keep_input=True), reply_to=asked)
            training[0] = time.process_time() - start
            return reply

        return lambda: replies.append(secaggplus_mod(message, self._contexts[node], train))


def _workflow() -> Any:
    """Complete graph, threshold 5/8 of the clients, everything else at Flower's defaults."""
    from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow

    return SecAggPlusWorkflow(1.0, 0.625)


def _private_copy(message: Any) -> Any:
    """The message with its own configuration record: clients remove entries from it, and here they share one."""
    import copy

    from flwr.app import ConfigRecord, RecordDict
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS

    content = RecordDict()
    content.update(message.content)
    content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
    own = copy.copy(message)
    own.__dict__["_content"] = content
    return own


def _timed_fedavg(nodes: int) -> Any:
    from flwr.server.strategy import FedAvg

    class TimedFedAvg(FedAvg):
        seconds = 0.0

        def aggregate_fit(self, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return super().aggregate_fit(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

    return TimedFedAvg(fraction_fit=1.0, min_fit_clients=nodes, min_available_clients=nodes)


def _proxy(node: int) -> Any:
    from flwr.server.client_proxy import ClientProxy

    class Proxy(ClientProxy):
        def _unused(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError("the workflow sends through the grid")

        get_properties = get_parameters = fit = evaluate = reconnect = _unused

    proxy = Proxy(str(node))
    proxy.node_id = node
    return proxy


def measure_secagg_plus(
    update: NDArray[np.float32], nodes: int, drops: Iterable[int], repetitions: int
) -> dict[str, Any]:
    """Figures of SecAgg+ per number of dropped clients; at least `repetitions` samples of each."""
    flower = FlowerSecAggPlus(update, nodes)
    dropouts: dict[str, Any] = {}
    wire = 0
    for dropped in drops:
        whole = [flower.run(dropped) for _ in range(-(-repetitions // (nodes - dropped)))]
        again = [flower.run(dropped, whole[0].replies) for _ in range(repetitions - len(whole))]
        wire = whole[0].wire_bytes
        clients = [seconds for finished in whole for seconds in finished.client_seconds]
        coordinators = [finished.coordinator_seconds for finished in whole + again]
        dropouts[str(dropped)] = {
            "client_ns_per_param": statistics.median(clients) / update.size * 1e9,
            "coordinator_ns_per_param": statistics.median(coordinators) / update.size * 1e9,
        }
    return {
        "dropouts": dropouts,
        "wire_bits_per_param": 8 * wire / update.size,
        "client_peak_mib": flower.client_peak_mib(),
    }
