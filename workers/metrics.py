"""What one worker process tells Prometheus: its vitals as they are when it is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from app.settings import Settings
from workers.identity import WorkerIdentity
from workers.summary import Summary
from workers.vitals import Snapshot

log = logging.getLogger(__name__)

_SECONDS = "seconds_"  # how an engine's counters of time begin; the rest is the phase


def serve_metrics(settings: Settings, worker: WorkerIdentity, summary: Summary) -> None:
    """Answer at ``metrics_port`` from now on, if one is set; where that cannot be had, it is said, and work goes on."""
    if settings.metrics_port is None:
        return
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(worker, summary, settings.restarts))
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        where = f"FARM_METRICS_HOST ({settings.metrics_host}), FARM_METRICS_PORT ({settings.metrics_port})"
        log.error("no metrics: %s: %s", where, error.strerror or error)
        return
    log.info("metrics at http://%s:%d/metrics", settings.metrics_host, settings.metrics_port)


class WorkerMetrics(Collector):
    """Counters are of this process alone: Prometheus sees a restart as a reset."""

    def __init__(self, worker: WorkerIdentity, summary: Summary, restarts: int) -> None:
        self._worker, self._summary, self._restarts = worker, summary, restarts
        self._hits = 0.0

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask for figures to know that no name is taken."""
        return []

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client says."""
        now, lately = self._summary.now(), self._summary.figures()
        yield from self._counters(now)
        yield from self._engine(now)
        for name, text, value in (
            ("farm_pairs_in_flight", "Pairs that the worker has taken and not finished.", now.in_flight),
            ("farm_oldest_claim_age_seconds", "Age of the oldest claim that it holds.", now.oldest_claim_s),
            ("farm_descriptions_per_second", "Generated, over the last seconds.", lately["descriptions_per_s"]),
            ("farm_tokens_per_second", "Generated, over the last seconds.", lately["tokens_per_s"]),
            ("farm_rows_at_work", "Rows decoded together, mean of the last seconds' steps.", lately["rows_at_work"]),
            ("farm_rows_possible", "Rows that may be decoded together.", now.rows_possible()),
            ("farm_worker_restarts", "Restarts of this slot since `workers up` began.", self._restarts),
        ):
            yield GaugeMetricFamily(name, text, value)
        yield _by(GaugeMetricFamily, "farm_memory_bytes", "Memory that the process holds.", "kind", now.memory)
        about = self._worker.about | self._worker.provenance
        info = {name: str(about.get(name) or "") for name in ("host", "device", "model", "engine", "dtype", "software")}
        family = GaugeMetricFamily("farm_worker_info", "Who the worker is.", labels=["worker", *info])
        family.add_metric([self._worker.name, *info.values()], 1)
        yield family

    def _counters(self, now: Snapshot) -> Iterator[Metric]:
        for name, text, label, counts in (
            ("farm_pairs", "Pairs by outcome.", "outcome", _from_zero(now.pairs, "done", "failed", "duplicate")),
            ("farm_descriptions", "Descriptions by how they ended.", "outcome",
             _from_zero(now.texts, "stop", "length", "reused")),
            ("farm_tokens", "Tokens of these descriptions.", "outcome",
             _from_zero(now.tokens, "stop", "length", "reused")),
            ("farm_failures", "Failed pairs by reason.", "reason", now.failures),
            ("farm_messages_dropped", "Messages that asked for nothing to be done, by why.", "why", now.dropped),
        ):  # fmt: skip
            yield _by(CounterMetricFamily, name, text, label, counts)
        yield CounterMetricFamily("farm_retries", "Attempts that failed and were made again.", now.retries)

    def _engine(self, now: Snapshot) -> Iterator[Metric]:
        stats = now.engine
        for name, text, key in (
            ("farm_engine_steps", "Steps of the engine.", "steps"),
            ("farm_images_encoded", "Images that were encoded.", "images"),
            ("farm_out_of_memory_rounds", "Times that the engine went on with less memory.", "out_of_memory"),
            ("farm_preempted", "Sequences that gave their row back.", "preempted"),
        ):
            yield CounterMetricFamily(name, text, stats.get(key, 0.0))
        # Every request needs its image's prefix, an encoded image is a miss; those in flight only seem to lower it.
        self._hits = max(self._hits, stats.get("requests", 0.0) - stats.get("images", 0.0))
        text = "Requests whose image's prefix was there already."
        yield CounterMetricFamily("farm_prefix_cache_hits", text, self._hits)
        phases = {name.removeprefix(_SECONDS): value for name, value in stats.items() if name.startswith(_SECONDS)}
        yield _by(CounterMetricFamily, "farm_step_seconds", "Time of the engine's steps by phase.", "phase", phases)


def _by(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, text: str, label: str,
    values: Mapping[str, float],
) -> Metric:  # fmt: skip
    family = kind(name, text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _from_zero(counts: Mapping[str, int], *always: str) -> dict[str, int]:
    """A counter that is not there before its first event hides that event from ``rate()``."""
    return {**dict.fromkeys(always, 0), **counts}
