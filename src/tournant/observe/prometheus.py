"""Metrics of runs for Prometheus, read from their snapshots when somebody scrapes: between scrapes nothing happens.

Several runs may have one name, at once or one after another: their counts add up, and what a run had counted stays counted when it has
ended, so that counters never go back.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from tournant.observe.errors import MissingExtra
from tournant.report import RunSnapshot

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector, CollectorRegistry

_OUTCOMES = ("done", "failed", "skipped", "filtered")
_OF_STAGE = ["pipeline", "stage", "on"]
#: Attribute of a `StageSnapshot`, name and help of its metric.
_COUNTED = (
    ("items_in", "tournant_stage_items_in", "Items that the stage has begun."),
    ("items_out", "tournant_stage_items_out", "Items that the stage passed on or finished."),
    ("failed", "tournant_stage_items_failed", "Items that failed in the stage for good."),
    ("retried", "tournant_stage_retries", "Attempts beyond each item's first."),
    ("busy", "tournant_stage_busy_seconds", "Seconds inside the stage's callable, summed over its workers."),
)  # fmt: skip
_STANDING = (
    ("queued", "tournant_stage_queued", "Items waiting in front of the stage."),
    ("running", "tournant_stage_running", "Items that the stage works on."),
    ("limit", "tournant_stage_limit", "Items or batches that the stage may work on at once."),
)


class Watchable(Protocol):
    """A run that can be looked at: a `RunHandle`, or the `Watched` that ``on_start`` receives."""

    def snapshot(self) -> RunSnapshot:
        """Return its counts as they stand. Called from any thread."""


class RunMetrics:
    """Metrics of all runs that are given to it, in a registry of prometheus-client.

    Example::

        metrics = RunMetrics()
        prometheus_client.start_http_server(9100)
        pipeline.run(on_start=metrics.on_start("ingest"))

    Args:
        registry: Where to register; prometheus-client's own registry when not given.

    Raises:
        MissingExtra: prometheus-client is not installed.
        ValueError: the registry holds such metrics already: one `RunMetrics` serves any number of runs.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY
        except ImportError:
            raise MissingExtra("metrics of runs", "prometheus-client", "prometheus") from None
        self._lock = threading.Lock()
        self._live: list[tuple[str, Watchable]] = []
        #: What has been counted by runs that have ended, by metric and labels.
        self._kept: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._registry = REGISTRY if registry is None else registry
        self._registry.register(cast("Collector", self))

    def add(self, run: Watchable, name: str) -> None:
        """Count a run from now on.

        Args:
            run: A `RunHandle` that has been opened, or a `Watched`.
            name: The value of the label ``pipeline``. Runs of one name are added up.
        """
        with self._lock:
            self._keep_ended()
            self._live.append((name, run))
            self._kept["tournant_pipeline_runs", (name,)] += 1

    def on_start(self, name: str) -> Callable[[Watchable], None]:
        """Return what ``pipeline.run(on_start=...)`` and ``pipeline.arun(on_start=...)`` take to count their run."""
        return lambda run: self.add(run, name)

    def close(self) -> None:
        """Take the metrics out of the registry."""
        self._registry.unregister(cast("Collector", self))

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values; prometheus-client asks when it registers."""
        return _Families().all()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they stand; prometheus-client asks when somebody scrapes."""
        families = _Families()
        with self._lock:
            self._keep_ended()
            counts = self._kept.copy()
            standing: Counter[tuple[str, tuple[str, ...]]] = Counter()
            for name, run in self._live:
                snapshot = run.snapshot()
                _count(counts, name, snapshot)
                _stand(standing, name, snapshot)
            for name in {labels[0] for _, labels in counts}:
                standing["tournant_pipeline_running", (name,)] += 0
        for (metric, labels), value in sorted(counts.items()):
            families.counters[metric].add_metric(list(labels), value)
        for (metric, labels), value in sorted(standing.items()):
            families.gauges[metric].add_metric(list(labels), value)
        return families.all()

    def _keep_ended(self) -> None:
        """Keep the counts of runs that have ended, and let go of the runs."""
        live: list[tuple[str, Watchable]] = []
        for name, run in self._live:
            if _ended(run):
                _count(self._kept, name, run.snapshot())
            else:
                live.append((name, run))
        self._live = live


class _Families:
    """All metrics, empty."""

    def __init__(self) -> None:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        self.counters: dict[str, CounterMetricFamily] = {}
        self.gauges: dict[str, GaugeMetricFamily] = {}
        for name, text, labels in (
            ("tournant_pipeline_runs", "Runs that began.", ["pipeline"]),
            ("tournant_pipeline_sourced", "Inputs taken from the source.", ["pipeline"]),
            (
                "tournant_pipeline_inputs",
                "Inputs that ended, by how they ended.",
                ["pipeline", "outcome"],
            ),
            *((name, text, _OF_STAGE) for _, name, text in _COUNTED),
        ):
            self.counters[name] = CounterMetricFamily(name, text, labels=labels)
        for name, text, labels in (
            ("tournant_pipeline_running", "Runs under way.", ["pipeline"]),
            (
                "tournant_pipeline_expected",
                "Inputs of the runs under way, where the length of the source is known.",
                ["pipeline"],
            ),
            *((name, text, _OF_STAGE) for _, name, text in _STANDING),
        ):
            self.gauges[name] = GaugeMetricFamily(name, text, labels=labels)

    def all(self) -> list[Metric]:
        return [*self.counters.values(), *self.gauges.values()]


def _count(counts: Counter[tuple[str, tuple[str, ...]]], name: str, found: RunSnapshot) -> None:
    sums: Any = counts  # a Counter of floats, too
    sums["tournant_pipeline_sourced", (name,)] += found.sourced
    for outcome in _OUTCOMES:
        sums["tournant_pipeline_inputs", (name, outcome)] += getattr(found, outcome)
    for stage in found.stages:
        for attribute, metric, _ in _COUNTED:
            sums[metric, (name, stage.name, stage.on)] += getattr(stage, attribute)


def _stand(standing: Counter[tuple[str, tuple[str, ...]]], name: str, found: RunSnapshot) -> None:
    standing["tournant_pipeline_running", (name,)] += 1
    if found.total is not None:
        standing["tournant_pipeline_expected", (name,)] += found.total
    for stage in found.stages:
        for attribute, metric, _ in _STANDING:
            standing[metric, (name, stage.name, stage.on)] += getattr(stage, attribute)


def _ended(run: Watchable) -> bool:
    inner = getattr(run, "_run", None)
    return inner is not None and getattr(inner, "report", None) is not None
