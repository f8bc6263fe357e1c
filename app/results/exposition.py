"""What ``results status --serve`` tells Prometheus: every run, and every worker that is up, at each scrape."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from threading import Event

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError

from app.commands import say
from app.errors import SettingsError, printable
from app.results.status import Status, WorkerStatus

log = logging.getLogger(__name__)

Look = Callable[[], tuple[Sequence[Status], Sequence[WorkerStatus]]]


def serve_status(look: Look, host: str, port: int) -> None:
    """Answer scrapes until SIGTERM or Ctrl-C. Raises SettingsError where the address cannot be had."""
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    registry = CollectorRegistry()
    registry.register(FarmMetrics(look))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(f"metrics at {host}, port {port}: {error.strerror or error}") from error
    say(f"metrics at http://{host}:{port}/metrics", err=True)
    try:
        ended.wait()
    finally:
        server.shutdown()
        thread.join()


class FarmMetrics(Collector):
    """A look at the database costs the same however large the runs are, and is made at each scrape."""

    def __init__(self, look: Look) -> None:
        """``look`` may raise DBAPIError: then all that is told is that the database is away."""
        self._look = look

    def describe(self) -> list[Metric]:
        """Nothing: no look at the database before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client says."""
        try:
            runs, workers = self._look()
        except DBAPIError as error:
            log.warning("the database is away: %s", type(error).__name__)
            yield GaugeMetricFamily("farm_database_up", "Whether the database answers.", 0)
            return
        yield GaugeMetricFamily("farm_database_up", "Whether the database answers.", 1)
        queued = [run.queued for run in runs]
        yield GaugeMetricFamily("farm_broker_up", "Whether Redis answers.", int(None not in queued))
        yield from _of_runs(runs)
        yield from _of_workers(workers)


def _of_runs(runs: Sequence[Status]) -> Iterator[Metric]:
    pairs = _family("farm_run_pairs", "Pairs of a run by how they stand.", "run", "state")
    texts = _family("farm_run_descriptions", "Descriptions of a run.", "run", "kind")
    failed = _family("farm_run_failures", "Failed pairs of a run by reason.", "run", "reason")
    tokens = _family("farm_run_tokens", "Tokens of a run's descriptions.", "run")
    queued = _family("farm_run_messages", "Messages of a run that wait in Redis.", "run")
    active = _family("farm_run_active", "1 for an active run, 0 for a paused or cancelled one.", "run")
    rate = _family("farm_run_pairs_per_second", "Over the last minutes.", "run")
    for run in runs:
        name = printable(run.run)
        for state in ("done", "failed", "claimed", "pending", "stale"):
            pairs.add_metric([name, state], getattr(run, state))
        generated = run.texts - run.texts_reused
        for kind, count in (("generated", generated), ("reused", run.texts_reused), ("cut off", run.texts_cut_off)):
            texts.add_metric([name, kind], count)
        for reason, count in run.failures.items():
            failed.add_metric([name, reason], count)
        tokens.add_metric([name], run.tokens)
        active.add_metric([name], int(run.state == "active"))
        rate.add_metric([name], run.rate)
        if run.queued is not None:
            queued.add_metric([name], run.queued)
    yield from (pairs, texts, failed, tokens, queued, active, rate)


def _of_workers(workers: Sequence[WorkerStatus]) -> Iterator[Metric]:
    gauges = {
        name: _family(f"farm_up_worker_{name}", text, "worker", "host", "model")
        for name, text in (
            ("descriptions_per_second", "Of a worker that is up, over the last seconds."),
            ("tokens_per_second", "Of a worker that is up, over the last seconds."),
            ("rows_at_work", "Rows that it decodes together."),
            ("rows_possible", "Rows that it may decode together."),
            ("oldest_claim_age_seconds", "Age of the oldest claim that it holds."),
            ("restarts", "Restarts of its slot."),
        )
    }
    memory = _family("farm_up_worker_memory_bytes", "Memory that it holds.", "worker", "host", "model", "kind")
    for worker in workers:
        labels = [printable(each) for each in (worker.name, worker.host, worker.model)]
        for name, family in gauges.items():
            family.add_metric(labels, getattr(worker, name))
        for kind, size in worker.memory.items():
            memory.add_metric([*labels, kind], size)
    yield GaugeMetricFamily("farm_workers_up", "Workers seen within the last minute.", len(workers))
    yield from (*gauges.values(), memory)


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
