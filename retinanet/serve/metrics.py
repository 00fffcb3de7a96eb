"""What the server tells Prometheus about itself, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Requests by path and status, images by outcome, batch sizes, the queue, and where the seconds go."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        text = "Requests that were answered."
        self.requests = Counter("retinanet_requests", text, ["path", "status"], registry=registry)
        name, text = "retinanet_request_seconds", "From the head of a request to its answer."
        self.latency = Histogram(name, text, ["path"], buckets=SECONDS, registry=registry)
        text = "Images by outcome: answered, unreadable, failed, gone."
        self.images = Counter("retinanet_images", text, ["outcome"], registry=registry)
        text = "Seconds of an image: decode (and resize), wait (for its batch). Of a batch: detect."
        self.seconds = Histogram(
            "retinanet_stage_seconds", text, ["stage"], buckets=SECONDS, registry=registry
        )
        text = "Images that the detector was given at once."
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch = Histogram("retinanet_batch_size", text, buckets=sizes, registry=registry)
        text = "Images between their request and their answer."
        self.queue = Gauge("retinanet_queue_length", text, registry=registry)

    def watch(self, held: Callable[[], int]) -> None:
        """Read the queue's length when asked."""
        self.queue.set_function(held)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
