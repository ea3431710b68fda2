"""What GET /metrics shows, in a registry of its own: Ray's own metrics stay with Ray."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        where: Any = {"registry": self.registry, "namespace": "ensemble_kd"}
        self.requests = Counter("requests", "Requests answered.", ["path", "status"], **where)
        self.rows = Counter("rows", "Rows of answered requests.", ["outcome"], **where)
        self.seconds = Histogram(
            "predict_seconds", "From the request's head to the last byte.", buckets=SECONDS, **where
        )
        self.batch_rows = Histogram("batch_rows", "Rows of a forward pass.", buckets=ROWS, **where)
        self.batch_requests = Histogram(
            "batch_requests", "Requests answered by one forward pass.", buckets=ROWS, **where
        )
        self.in_flight = Gauge("predict_in_flight", "Requests to /predict not answered yet.", **where)
        for outcome in ("answered", "bad"):
            self.rows.labels(outcome)

    def batch(self, rows: int, requests: int) -> None:
        self.batch_rows.observe(rows)
        self.batch_requests.observe(requests)

    def text(self) -> bytes:
        shown: bytes = generate_latest(self.registry)
        return shown
