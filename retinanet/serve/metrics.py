"""What the server tells Prometheus about itself, in a registry of its own."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Queue(Protocol):
    """What holds pictures."""

    held: int


class Metrics:
    """requests by path and status, pictures by what became of them, batch sizes, the queue, and where the
    seconds go.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "retinanet_requests", "Requests that were answered.", ["path", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "retinanet_request_seconds",
            "From the head of a request to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "retinanet_images",
            "Pictures by outcome: answered, unreadable, failed, gone.",
            ["outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "retinanet_stage_seconds",
            "Seconds of a picture: decode (and resize), wait (for its batch). Of a batch: detect.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "retinanet_batch_size",
            "Pictures that the detector was given at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.queue = Gauge(
            "retinanet_queue_length",
            "Pictures between their request and their answer.",
            registry=self.registry,
        )

    def watch(self, queue: Queue) -> None:
        """Read the queue's length when asked."""
        self.queue.set_function(lambda: queue.held)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
