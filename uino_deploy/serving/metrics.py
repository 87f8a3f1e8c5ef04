"""The figures of a service for Prometheus: requests, steps, the queue and the workers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from uino_deploy.serving.worker import Answer

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """What `/metrics` tells, in a registry of its own.

    Attributes:
        waiting: requests in the queue.
        ready: workers that are loaded.
        replaced: workers that died and were replaced.
        held: bytes of bodies that are held.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "uino_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.latency = Histogram(
            "uino_request_seconds",
            "From a request's head to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._steps = Histogram(
            "uino_step_seconds",
            "Time of each step of a request",
            ["step"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "uino_batch_images",
            "Images that shared the encoder's run, counted for each",
            buckets=_BATCHES,
            registry=registry,
        )
        self.waiting = Gauge("uino_waiting", "Requests in the queue", registry=registry)
        self.ready = Gauge("uino_workers_ready", "Workers that are loaded", registry=registry)
        self.replaced = Counter("uino_workers_replaced", "Workers that died", registry=registry)
        self.held = Gauge("uino_held_bytes", "Bytes of bodies that are held", registry=registry)

    def observe(self, answer: Answer, waited: float) -> None:
        """Count a worker's answer and its steps; `waited` is its time in the queue."""
        self._steps.labels("wait").observe(waited)
        for step, seconds in answer.seconds.items():
            self._steps.labels(step).observe(seconds)
        if "encode" in answer.seconds:
            self._batches.observe(answer.batch)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)
