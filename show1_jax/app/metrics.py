"""What the service counts, for Prometheus."""

import functools
from collections.abc import Callable

import jax
import prometheus_client as prometheus

COMPILED = "/jax/core/compile/backend_compile_duration"
BUCKETS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_compilations = [0]  # of this process


@functools.cache
def _count_compilations() -> None:
    """Counts from now on; JAX's listeners cannot be taken back."""

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event == COMPILED:
            _compilations[0] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)


class Metrics:
    """Counters of one service, with a registry of their own."""

    def __init__(self, queue_length: Callable[[], int]) -> None:
        """Counts nothing yet.

        Args:
          queue_length: tells how many jobs wait.
        """
        _count_compilations()
        prometheus.disable_created_metrics()
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        gauge = prometheus.Gauge("show1_queue_length", "Videos that wait.", registry=registry)
        gauge.set_function(queue_length)
        compiled = prometheus.Gauge(
            "show1_compiled_programs", "Programs compiled or read from the cache.",
            registry=registry,
        )  # fmt: skip
        compiled.set_function(lambda: _compilations[0])
        self._videos = prometheus.Counter(
            "show1_videos", "Videos that ended.", ["status"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            "show1_stage_seconds", "Seconds of a stage for one batch, with compiling.", ["stage"],
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self._batch = prometheus.Histogram(
            "show1_batch_videos", "Videos that are sampled together.", ["stage"],
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        for status in ("completed", "failed"):
            self._videos.labels(status)

    def ended(self, status: str) -> None:
        """Counts a video that was completed or failed."""
        self._videos.labels(status).inc()

    def stage(self, name: str, seconds: float, videos: int) -> None:
        """Counts one run of a stage."""
        self._seconds.labels(name).observe(seconds)
        self._batch.labels(name).observe(videos)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
