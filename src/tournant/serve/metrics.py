"""What the server counts, and how Prometheus reads it.

Counting is adding to plain numbers, once for an answer and never for a token; everything else happens when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tournant.serve.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)


class Histogram:
    """How often a figure fell below each of some bounds.

    Args:
        bounds: The bounds, ascending.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return the counts as Prometheus wants them: cumulative, with ``+Inf`` at the end."""
        found: list[tuple[str, float]] = []
        sum_so_far = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            sum_so_far += count
            found.append((bound, sum_so_far))
        return found


class Live(Protocol):
    """An answer in progress; it adds itself to the counts when it ends."""

    @property
    def events(self) -> int:
        """Events so far."""

    @property
    def sent(self) -> int:
        """Bytes so far."""

    @property
    def writes(self) -> int:
        """Writes so far."""


class Figures:
    """Everything that is counted.

    Attributes:
        requests: Finished requests, by route and status.
        answers: Ended answers, by how: ``complete``, ``left`` (by the client), ``failed``, ``refused``, ``stopped``.
        live: The streamed answers in progress.
        tokens_read: Tokens of prompts, as told or estimated.
        tokens_written: Tokens of answers.
        slow_readers: Clients closed because they read too slowly.
        slow_requests: Connections closed because a request was not complete in time.
        refused_connections: Connections above the limit.
        faults: Requests that failed through a fault of ours.
        first_token: Seconds to the first event of a streamed answer.
        gap: Mean seconds between two events of an answer, one figure for each answer.
        duration: Seconds of whole answers.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.answers: Counter[str] = Counter()
        self.live: set[Live] = set()
        self._events = 0
        self._sent = 0
        self._writes = 0
        self.tokens_read = 0
        self.tokens_written = 0
        self.slow_readers = 0
        self.slow_requests = 0
        self.refused_connections = 0
        self.faults = 0
        self.first_token = Histogram(SECONDS)
        self.gap = Histogram(GAPS)
        self.duration = Histogram(SECONDS)

    def began(self, answer: Live) -> None:
        """Count a streamed answer from now on."""
        self.live.add(answer)

    def ended(self, answer: Live) -> None:
        """Keep the counts of a streamed answer that has ended."""
        self.live.discard(answer)
        self._events += answer.events
        self._sent += answer.sent
        self._writes += answer.writes

    @property
    def events(self) -> int:
        """Events relayed or made, those of answers in progress too."""
        return self._events + sum(one.events for one in list(self.live))

    @property
    def sent_bytes(self) -> int:
        """Bytes of streamed answers."""
        return self._sent + sum(one.sent for one in list(self.live))

    @property
    def writes(self) -> int:
        """Writes that those took; fewer than events where they were coalesced."""
        return self._writes + sum(one.writes for one in list(self.live))


COUNTERS = (
    ("events", "tournant_events", "Events of streamed answers."),
    ("sent_bytes", "tournant_sent_bytes", "Bytes of streamed answers."),
    ("writes", "tournant_writes", "Writes to clients for those."),
    ("tokens_read", "tournant_prompt_tokens", "Tokens of prompts, as told or estimated."),
    ("tokens_written", "tournant_completion_tokens", "Tokens of answers, as told or counted."),
    ("slow_readers", "tournant_slow_readers", "Clients closed because they read too slowly."),
    (
        "slow_requests",
        "tournant_slow_requests",
        "Connections closed because a request was not complete in time.",
    ),
    (
        "refused_connections",
        "tournant_refused_connections",
        "Connections refused because there were too many.",
    ),
    ("faults", "tournant_faults", "Requests that failed through a fault of the server."),
)
HISTOGRAMS = (
    (
        "first_token",
        "tournant_first_token_seconds",
        "Time to the first event of a streamed answer.",
    ),
    ("gap", "tournant_token_gap_seconds", "Mean time between two events of an answer."),
    ("duration", "tournant_answer_seconds", "Time of whole answers."),
)


def render(figures: Figures, gauges: Mapping[str, float], callers: list[Any]) -> bytes:
    """Return everything in Prometheus' text format.

    Args:
        figures: What was counted.
        gauges: How things stand now, by name without ``tournant_``.
        callers: The `tournant.serve.admission.Caller` s.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        raise MissingExtra("the address /metrics", "prometheus-client") from None

    class Everything(Collector):
        def collect(self) -> Iterator[Metric]:
            return _metrics(figures, gauges, callers)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Everything())
    text: bytes = generate_latest(registry)
    return text


def _metrics(figures: Figures, gauges: Mapping[str, float], callers: list[Any]) -> Iterator[Metric]:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    requests = CounterMetricFamily(
        "tournant_requests", "Finished requests.", labels=["route", "status"]
    )
    for (route, status), count in sorted(figures.requests.items()):
        requests.add_metric([route, str(status)], count)
    yield requests
    answers = CounterMetricFamily(
        "tournant_answers", "Ended answers, by how they ended.", labels=["outcome"]
    )
    for outcome, count in sorted(figures.answers.items()):
        answers.add_metric([outcome], count)
    yield answers
    of_caller: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
        ("tournant_caller_requests", "Requests let in, by caller.", lambda caller: caller.requests),
        ("tournant_caller_tokens", "Tokens used, by caller.", lambda caller: caller.tokens),
        (
            "tournant_caller_refused",
            "Requests refused for the caller's own limits.",
            lambda caller: caller.refused,
        ),
    )
    for name, help_text, read in of_caller:
        family = CounterMetricFamily(name, help_text, labels=["caller"])
        for caller in callers:
            family.add_metric([caller.name], read(caller))
        yield family
    for attribute, name, help_text in COUNTERS:
        yield CounterMetricFamily(name, help_text, value=getattr(figures, attribute))
    for attribute, name, help_text in HISTOGRAMS:
        histogram: Histogram = getattr(figures, attribute)
        yield HistogramMetricFamily(
            name, help_text, buckets=histogram.buckets(), sum_value=histogram.total
        )
    for name, value in gauges.items():
        yield GaugeMetricFamily(
            f"tournant_{name}", name.replace("_", " ").capitalize() + ".", value=value
        )
