"""A run as OpenTelemetry spans, made when it has ended: while it runs nothing of this costs anything.

The run is the root span. Below it lie, as one chooses, its calls (a chunk or batch is one), its inputs, or its inputs with the calls that
worked for each below them. Only OpenTelemetry's API is used; which spans go where is the provider's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from tournant._version import __version__
from tournant.errors import short
from tournant.observe.errors import InvalidExport, MissingExtra
from tournant.observe.events import shortened
from tournant.observe.recording import FAILED, RETRIED, Recording, Slice
from tournant.report import Report

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

#: Spans between two flushes: a provider that exports in the background holds about 2,000 and drops the rest.
_FLUSH_EVERY = 1_000
_KEYS_AT_MOST = 32
#: Letters of an error in a span's status; the whole of it is in the exception event.
_LETTERS = 200


def export_spans(
    run: Report | Recording,
    tracer_provider: TracerProvider | None = None,
    per: Literal["batch", "item", "input"] = "batch",
    *,
    share: float = 1.0,
) -> int:
    """Make OpenTelemetry spans of a run that has ended.

    Spans of what failed have the status ``ERROR``; made from a report, they have the error as an exception event too. Each attempt that
    was tried again is an event ``retry``, on its own span and on that of its input.

    Args:
        run: Its report, or a recording, which does not hold the errors.
        tracer_provider: Whose spans they are; the global provider when not given.
        per: ``"batch"`` for one span per call of a stage, below the run's; ``"item"`` for one span per input and, below it,
            one for each call that worked for it, so that a batch appears once for each of its inputs; ``"input"`` for one span per input.
        share: The share of the calls (``"batch"``), or else of the inputs, that have spans, 0 to 1; they are evenly spread. What failed
            has a span whatever the share. A sampler of the provider, such as ``TraceIdRatioBased``, takes a run as a whole or leaves it.

    Returns:
        How many spans were made that somebody records.

    Raises:
        InvalidExport: `per` or `share` is something else.
        MissingExtra: OpenTelemetry is not installed.
    """
    if per not in ("batch", "item", "input"):
        raise InvalidExport(f'export_spans(per={per!r}): give "batch", "item" or "input"')
    if not (isinstance(share, (int, float)) and 0 <= share <= 1):
        raise InvalidExport(f"export_spans(share={share!r}): give a share of the spans, 0 to 1")
    try:
        from opentelemetry import trace
    except ImportError:
        raise MissingExtra("exporting spans", "opentelemetry-api", "otel") from None
    provider = tracer_provider or trace.get_tracer_provider()
    recording = run if isinstance(run, Recording) else run.recording
    export = _Export(recording, provider, share)
    if not isinstance(run, Recording):
        export.remember(run)
    root = export.span(
        recording.title or "run", None, 0.0, recording.duration, export.run_attributes()
    )
    for mark in recording.marks:
        root.add_event(
            mark.kind,
            {"tournant.text": _text(mark.text), "tournant.lasted": mark.lasted},
            timestamp=export.moment(mark.at),
        )
    if per == "batch":
        for n, one in enumerate(recording.slices):
            if one.outcome == FAILED or export.wanted(n):
                export.call(one, root)
    else:
        export.inputs(root, calls=per == "item")
    export.end_all()
    return export.made


class _Export:
    def __init__(self, recording: Recording, provider: TracerProvider, share: float) -> None:
        from opentelemetry import trace

        self.trace = trace
        self.recording = recording
        self.share = share
        #: What failed, by stage and key, and by key alone.
        self.errors: dict[tuple[str, str], Exception] = {}
        self.first: dict[str, Exception] = {}
        self.tracer = provider.get_tracer("tournant", __version__)
        self.flush: Callable[[], object] | None = getattr(provider, "force_flush", None)
        # In two parts: as one float it would be right to a fifth of a microsecond only.
        self.began = math.floor(recording.began) * 10**9 + round(recording.began % 1.0 * 1e9)
        self.made = 0
        self._ended = 0
        #: Spans that others are below, and when they end.
        self._open: list[tuple[Span, int]] = []

    def wanted(self, n: int) -> bool:
        """Tell whether the n-th of something is among the share that has spans."""
        return math.floor((n + 1) * self.share) > math.floor(n * self.share)

    def remember(self, report: Report) -> None:
        """Take the errors of a run's report."""
        for failure in report.failures:
            key = failure.key
            # Of a batch that failed as a whole the key is those of all its inputs.
            for one in key if isinstance(key, tuple) else (key,):
                self.errors.setdefault((failure.stage, str(shortened(one))), failure.error)
                self.first.setdefault(str(shortened(one)), failure.error)
            self.errors.setdefault((failure.stage, str(shortened(key))), failure.error)
            self.first.setdefault(str(shortened(key)), failure.error)

    def moment(self, at: float) -> int:
        """Return a time of the recording in nanoseconds of Unix time."""
        return self.began + round(at * 1e9)

    def span(
        self,
        name: str,
        parent: Span | None,
        began: float,
        ended: float,
        attributes: Mapping[str, AttributeValue],
        failed: str = "",
        *,
        error: Exception | None = None,
        retries: Sequence[Slice] = (),
        leaf: bool = False,
    ) -> Span:
        """Make a span; one that is no leaf ends with `end_all`."""
        from opentelemetry.context import Context

        context = self.trace.set_span_in_context(parent, Context()) if parent else Context()
        span = self.tracer.start_span(
            _text(name), context, start_time=self.moment(began), attributes=attributes
        )
        for one in retries:
            stage = self.recording.stages[one.stage].name if one.stage >= 0 else ""
            span.add_event("retry", {"tournant.stage": _text(stage)}, self.moment(one.ended))
        if failed and error is not None:
            span.record_exception(error, timestamp=self.moment(ended))
            failed = _text(f"{type(error).__name__}: {short(str(error), _LETTERS)}")
        if failed:
            span.set_status(self.trace.Status(self.trace.StatusCode.ERROR, failed))
        self.made += span.get_span_context().trace_flags.sampled
        if leaf:
            self._end(span, self.moment(ended))
        else:
            self._open.append((span, self.moment(ended)))
        return span

    def end_all(self) -> None:
        """End what is still open, the root last."""
        while self._open:
            self._end(*self._open.pop())

    def _end(self, span: Span, moment: int) -> None:
        span.end(moment)
        self._ended += 1
        if self.flush is not None and self._ended % _FLUSH_EVERY == 0:
            self.flush()

    def run_attributes(self) -> dict[str, AttributeValue]:
        recording = self.recording
        found: dict[str, AttributeValue] = {
            "tournant.cores": recording.cores,
            "tournant.inputs": len(recording.inputs),
            "tournant.calls": len(recording.slices),
            "tournant.stages": [_text(stage.name) for stage in recording.stages],
        }
        if recording.lost:
            found["tournant.lost_events"] = recording.lost
        return found

    def call(self, one: Slice, parent: Span) -> None:
        """Make the span of one call."""
        lane = self.recording.lanes[one.lane]
        attributes: dict[str, AttributeValue] = {
            "tournant.items": one.items,
            "tournant.outcome": one.outcome,
            "tournant.waited": one.waited,
            "tournant.lane": _text(f"{lane.group} {lane.name}".strip()),
        }
        if lane.pid:
            attributes["process.pid"] = lane.pid
        name = "other"
        if one.stage >= 0:
            stage = self.recording.stages[one.stage]
            name = stage.name
            attributes |= {"tournant.stage": _text(stage.name), "tournant.on": stage.on}
        known = self.recording.inputs
        keys = [_text(known[n].key) for n in one.inputs[:_KEYS_AT_MOST] if n in known]
        if keys:
            attributes["tournant.keys"] = keys
        failed = "the call failed" if one.outcome == FAILED else ""
        error = None
        if failed:
            keys_ = (known[n].key for n in one.inputs if n in known)
            found = (self.errors.get((name, key)) for key in keys_)
            error = next((each for each in found if each is not None), None)
        self.span(
            one.label or name,
            parent,
            one.began,
            one.ended,
            attributes,
            failed,
            error=error,
            retries=(one,) if one.outcome == RETRIED else (),
            leaf=True,
        )

    def inputs(self, root: Span, *, calls: bool) -> None:
        """Make the spans of the inputs, and of the calls below them."""
        lives: dict[int, Span] = {}
        retries: dict[int, list[Slice]] = {}
        for one in self.recording.slices:
            if one.outcome == RETRIED:
                for number in one.inputs:
                    retries.setdefault(number, []).append(one)
        left_out: set[int] = set()
        for n, (number, life) in enumerate(self.recording.inputs.items()):
            if life.outcome != "failed" and not self.wanted(n):
                left_out.add(number)
                continue
            attributes: dict[str, AttributeValue] = {
                "tournant.key": _text(life.key),
                "tournant.outcome": life.outcome,
            }
            failed = "an item of it failed" if life.outcome == "failed" else ""
            lives[number] = self.span(
                "input",
                root,
                life.began,
                life.ended,
                attributes,
                failed,
                error=self.first.get(life.key),
                retries=retries.get(number, ()),
                leaf=not calls,
            )
        if calls:
            for one in self.recording.slices:
                # Calls of inputs whose own events are gone hang on the run.
                for number in dict.fromkeys(one.inputs):
                    if number in left_out:
                        continue
                    self.call(one, lives.get(number, root))


def _text(text: str) -> str:
    """Return text that can be encoded: names of files may hold what is no text."""
    return text.encode("utf-8", "replace").decode()
