"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class Metrics:
    """Counters of one server; their names and meanings are part of its interface."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ccsnet_requests",
            "Requests answered, by route and status; 499 is a client that went away.",
            ("route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "ccsnet_request_seconds",
            "From a request to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.queue = Gauge(
            "ccsnet_queue_images", "Images taken and not answered yet.", registry=registry
        )
        self.batches = Histogram(
            "ccsnet_batch_images",
            "Images in each forward pass.",
            buckets=SIZES,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "ccsnet_batch_seconds",
            "From a batch to its label maps.",
            buckets=SECONDS,
            registry=registry,
        )
        self.restarts = Counter(
            "ccsnet_worker_restarts",
            "Times that the process that computes had to be started again.",
            registry=registry,
        )
        self.ready = Gauge(
            "ccsnet_ready", "1 while images are taken, 0 while not.", registry=registry
        )

    def saw_batch(self, size: int, seconds: float) -> None:
        """Count a forward pass."""
        self.batches.observe(size)
        self.model_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self.registry)


CONTENT_TYPE = CONTENT_TYPE_LATEST
