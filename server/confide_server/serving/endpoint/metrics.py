"""What Prometheus reads: requests, tokens, seconds, and how busy each engine is. No text and no key is in a label."""

from confide.errors import ConfideError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from confide_server.serving.catalogue import Catalogue

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One server's, in a registry of its own."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "confide_serving_requests",
            "Requests by how they ended.",
            ["route", "model", "outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "confide_serving_tokens", "Tokens read and written.", ["model", "kind"], registry=self._registry
        )
        self._seconds = Histogram(
            "confide_serving_request_seconds",
            "From a request's arrival to its end.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._running = Gauge("confide_serving_running", "Answers being written.", ["base"], registry=self._registry)
        self._waiting = Gauge("confide_serving_waiting", "Answers in the queue.", ["base"], registry=self._registry)

    def ended(self, route: str, model: str, outcome: str, seconds: float, *, read: int = 0, written: int = 0) -> None:
        """A request ended. `model` is an alias of this server, or "" where none was found."""
        self._requests.labels(route, model, outcome).inc()
        self._seconds.labels(route).observe(seconds)
        if model:
            self._tokens.labels(model, "prompt").inc(read)
            self._tokens.labels(model, "completion").inc(written)

    def render(self) -> bytes:
        """Prometheus' text form."""
        for engine in {id(target.engine): target.engine for target in self._catalogue.targets()}.values():
            try:
                load = engine.load()
            except ConfideError:
                continue  # an engine elsewhere that cannot be reached says nothing
            self._running.labels(engine.base_sha256[:12]).set(load.running)
            self._waiting.labels(engine.base_sha256[:12]).set(load.waiting)
        return generate_latest(self._registry)
