"""A recording as OpenTelemetry spans, made when the run has ended: while it runs nothing of this costs anything.

The run is the root span. Below it lie, as one chooses, its calls (a chunk or batch is one), its inputs, or its inputs with the calls that
worked for each below them. Only OpenTelemetry's API is used; which spans go where is the provider's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from tournant._version import __version__
from tournant.observe.errors import InvalidExport, MissingExtra
from tournant.observe.recording import FAILED, Recording, Slice

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

#: Spans between two flushes: a provider that exports in the background holds about 2,000 and drops the rest.
_FLUSH_EVERY = 1_000
_KEYS_AT_MOST = 32


def export_spans(
    recording: Recording,
    tracer_provider: TracerProvider | None = None,
    per: Literal["batch", "item", "input"] = "batch",
) -> int:
    """Make OpenTelemetry spans of a recording.

    Args:
        recording: A run that has ended, such as ``report.recording``.
        tracer_provider: Whose spans they are; the global provider when not given.
        per: ``"batch"`` for one span per call of a stage, below the run's; ``"item"`` for one span per input and, below it,
            one for each call that worked for it, so that a batch appears once for each of its inputs; ``"input"`` for one span per input.

    Returns:
        How many spans were made that somebody records.

    Raises:
        InvalidExport: `per` is something else.
        MissingExtra: OpenTelemetry is not installed.
    """
    if per not in ("batch", "item", "input"):
        raise InvalidExport(f'export_spans(per={per!r}): give "batch", "item" or "input"')
    try:
        from opentelemetry import trace
    except ImportError:
        raise MissingExtra("exporting spans", "opentelemetry-api", "otel") from None
    provider = tracer_provider or trace.get_tracer_provider()
    export = _Export(recording, provider)
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
        for one in recording.slices:
            export.call(one, root)
    else:
        export.inputs(root, calls=per == "item")
    export.end_all()
    return export.made


class _Export:
    def __init__(self, recording: Recording, provider: TracerProvider) -> None:
        from opentelemetry import trace

        self.trace = trace
        self.recording = recording
        self.tracer = provider.get_tracer("tournant", __version__)
        self.flush: Callable[[], object] | None = getattr(provider, "force_flush", None)
        # In two parts: as one float it would be right to a fifth of a microsecond only.
        self.began = math.floor(recording.began) * 10**9 + round(recording.began % 1.0 * 1e9)
        self.made = 0
        self._ended = 0
        #: Spans that others are below, and when they end.
        self._open: list[tuple[Span, int]] = []

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
        leaf: bool = False,
    ) -> Span:
        """Make a span; one that is no leaf ends with `end_all`."""
        from opentelemetry.context import Context

        context = self.trace.set_span_in_context(parent, Context()) if parent else Context()
        span = self.tracer.start_span(
            _text(name), context, start_time=self.moment(began), attributes=attributes
        )
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
        self.span(one.label or name, parent, one.began, one.ended, attributes, failed, leaf=True)

    def inputs(self, root: Span, *, calls: bool) -> None:
        """Make the spans of the inputs, and of the calls below them."""
        lives: dict[int, Span] = {}
        for number, life in self.recording.inputs.items():
            attributes: dict[str, AttributeValue] = {
                "tournant.key": _text(life.key),
                "tournant.outcome": life.outcome,
            }
            failed = "an item of it failed" if life.outcome == "failed" else ""
            lives[number] = self.span(
                "input", root, life.began, life.ended, attributes, failed, leaf=not calls
            )
        if calls:
            for one in self.recording.slices:
                # Calls of inputs whose own events are gone hang on the run.
                for number in dict.fromkeys(one.inputs):
                    self.call(one, lives.get(number, root))


def _text(text: str) -> str:
    """Return text that can be encoded: names of files may hold what is no text."""
    return text.encode("utf-8", "replace").decode()
