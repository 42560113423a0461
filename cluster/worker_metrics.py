"""What a worker counts, in Prometheus' text format.

Invariant: read off the worker's own state when asked for, so a metric never disagrees with /info and /health. Labels
have few values: routes are the templates of cluster/wire.py, never what a client wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.bearer import Bearer
from cluster.serving import Serving

STATES = ("starting", "ready", "activating", "restarting", "failed")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class WorkerMetrics:
    """One worker's."""

    def __init__(self, serving: Serving, bearer: Bearer) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(serving, bearer))
        self._requests = Counter(
            "sumrl_worker_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "sumrl_worker_request_seconds",
            "Seconds from a request's header to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, serving: Serving, bearer: Bearer) -> None:
        self._serving = serving
        self._bearer = bearer

    def collect(self) -> Iterator[Metric]:
        health, load = self._serving.health(), self._serving.load()
        state = GaugeMetricFamily("sumrl_worker_state", "1 for the state it is in.", labels=["state"])
        for one in STATES:
            state.add_metric([one], float(one == health.state))
        yield state
        yield GaugeMetricFamily(
            "sumrl_worker_policy_version", "What is sampled from.", value=health.policy_version
        )
        yield GaugeMetricFamily("sumrl_worker_running", "Requests being answered.", value=load.running)
        yield GaugeMetricFamily("sumrl_worker_waiting", "Requests held back.", value=load.waiting)
        yield CounterMetricFamily(
            "sumrl_worker_tokens_sampled", "Tokens sampled.", value=self._serving.tokens_sampled
        )
        yield CounterMetricFamily(
            "sumrl_worker_engine_restarts", "Restarts of the engine.", value=health.restarts
        )
        yield CounterMetricFamily(
            "sumrl_worker_weight_bytes",
            "Bytes of weights received.",
            value=self._serving.store.bytes_received,
        )
        yield CounterMetricFamily(
            "sumrl_worker_failed_logins", "Wrong tokens.", value=self._bearer.failed_logins
        )
