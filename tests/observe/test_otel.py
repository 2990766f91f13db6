from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from trace_samples import ingest

import tournant as tn
from tournant.observe.errors import InvalidExport, MissingExtra
from tournant.observe.otel import export_spans
from tournant.observe.recording import InputSpan, Lane, Mark, Recording, Slice, Stage

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

SMALL = Recording(
    title="small",
    began=1_790_000_000.123456,
    duration=4.0,
    cores=2,
    stages=(Stage("fetch", "loop"), Stage("embed", "processes")),
    lanes=(Lane("loop", "fetch"), Lane("process", "process 1", 4_711, "node a")),
    slices=(
        Slice(0, 0, 0.0, 1.0, (0,)),
        Slice(0, 0, 0.5, 1.5, (1,), outcome="failed"),
        Slice(1, 1, 2.0, 3.0, (0, 1, 9), 32, waited=0.25, label="embed all"),
        Slice(1, -1, 3.0, 3.5),
    ),
    inputs={0: InputSpan("a.txt", 0.0, 3.0), 1: InputSpan("b\udce9.txt", 0.5, 3.0, "failed")},
    marks=(Mark("blocked", 1.0, "parse.py, line 3", 0, 0.2),),
    lost=3,
)


def spans(recording: Recording | tn.Report, **options: Any) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = export_spans(recording, provider, **options)
    found = list(exporter.get_finished_spans())
    assert made == len(found)
    provider.shutdown()
    return found


def tree(found: list[ReadableSpan]) -> Counter[tuple[str, str | None]]:
    """How often a span of a name has a parent of a name; every span is of one trace."""
    names = {one.context.span_id: one.name for one in found if one.context}
    assert len({one.context.trace_id for one in found if one.context}) == 1
    return Counter((one.name, names[one.parent.span_id] if one.parent else None) for one in found)


def named(found: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [one for one in found if one.name == name]


def test_one_span_per_call_below_the_runs() -> None:
    found = spans(SMALL)
    assert tree(found) == {
        ("small", None): 1,
        ("fetch", "small"): 2,
        ("embed all", "small"): 1,
        ("other", "small"): 1,
    }
    (embed,) = named(found, "embed all")
    began = 1_790_000_000_123_456_000
    assert (
        abs((embed.start_time or 0) - began - 2 * 10**9) < 200
    )  # as exact as a float of Unix time
    assert (embed.end_time or 0) - (embed.start_time or 0) == 10**9
    assert dict(embed.attributes or {}) == {
        "tournant.stage": "embed",
        "tournant.on": "processes",
        "tournant.items": 32,
        "tournant.outcome": "ok",
        "tournant.waited": 0.25,
        "tournant.lane": "node a process 1",
        "tournant.keys": ("a.txt", "b?.txt"),
        "process.pid": 4_711,
    }


def test_failed_calls_have_the_status_of_an_error() -> None:
    good, bad = named(spans(SMALL), "fetch")
    assert good.status.status_code is trace.StatusCode.UNSET
    assert bad.status.status_code is trace.StatusCode.ERROR
    assert bad.status.description == "the call failed"


def test_the_run_tells_what_it_was_and_what_happened() -> None:
    (run,) = named(spans(SMALL), "small")
    assert run.parent is None
    assert (run.end_time or 0) - (run.start_time or 0) == 4 * 10**9
    attributes = dict(run.attributes or {})
    assert attributes["tournant.cores"] == 2
    assert attributes["tournant.stages"] == ("fetch", "embed")
    assert attributes["tournant.lost_events"] == 3
    (event,) = run.events
    assert (event.name, event.timestamp - (run.start_time or 0)) == ("blocked", 10**9)
    assert dict(event.attributes or {}) == {"tournant.text": "parse.py, line 3", "tournant.lasted": 0.2}  # fmt: skip


def test_one_span_per_input() -> None:
    found = spans(SMALL, per="input")
    assert tree(found) == {("small", None): 1, ("input", "small"): 2}
    good, bad = named(found, "input")
    assert (good.attributes or {})["tournant.key"] == "a.txt"
    assert (bad.attributes or {})["tournant.outcome"] == "failed"
    assert bad.status.description == "an item of it failed"


def test_one_span_per_item_below_its_inputs() -> None:
    found = spans(SMALL, per="item")
    assert tree(found) == {
        ("small", None): 1,
        ("input", "small"): 2,
        ("fetch", "input"): 2,
        ("embed all", "input"): 2,
        # The input number 9 is not among those that are known.
        ("embed all", "small"): 1,
    }
    for one in found:
        inside = next((x for x in found if one.parent and x.context and x.context.span_id == one.parent.span_id), None)  # fmt: skip
        assert inside is None or (inside.start_time or 0) <= (one.start_time or 0)


def test_it_begins_a_trace_of_its_own_wherever_it_is_called() -> None:
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("outer"):
        assert tree(spans(SMALL))["small", None] == 1


class Bounded(SpanProcessor):
    """Counts what a processor in the background would have to hold until it is told to export."""

    def __init__(self) -> None:
        self.held = self.most = self.ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        self.ended += 1
        self.held += 1
        self.most = max(self.most, self.held)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.held = 0
        return True


@pytest.mark.parametrize("per", ["batch", "item", "input"])
def test_an_exporter_in_the_background_need_not_hold_more_than_it_can(per: Any) -> None:
    recording = ingest(12_000)
    processor, provider = Bounded(), TracerProvider()
    provider.add_span_processor(processor)
    made = export_spans(recording, provider, per=per)
    inputs, calls = len(recording.inputs), len(recording.slices)
    assert made == processor.ended == 1 + {"batch": calls, "item": inputs + calls, "input": inputs}[per]  # fmt: skip
    # A BatchSpanProcessor holds 2,048 and drops the rest.
    assert 0 < processor.most <= 1_000
    provider.shutdown()


def test_an_exporter_in_the_background_loses_none_of_many_spans() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))
    made = export_spans(ingest(12_000), provider)
    provider.shutdown()
    assert len(exporter.get_finished_spans()) == made > 10_000


def test_what_nobody_records_is_not_counted() -> None:
    assert export_spans(SMALL, TracerProvider(sampler=ALWAYS_OFF)) == 0
    assert export_spans(SMALL) == 0  # nobody has set a provider up


def test_another_unit_is_refused() -> None:
    with pytest.raises(InvalidExport, match=r'per=\'call\'.*give "batch", "item" or "input"'):
        export_spans(SMALL, per="call")  # type: ignore[arg-type]


def test_without_opentelemetry_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from tournant.observe.otel import export_spans\n"
        "from tournant.observe.recording import Recording\n"
        "try: export_spans(Recording())\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True).stdout  # fmt: skip
    assert out.startswith(MissingExtra.__name__)
    assert "pip install 'tournant[otel]'" in out


def test_a_recording_without_anything_is_a_run_without_anything() -> None:
    (run,) = spans(dataclasses.replace(Recording(), title=""))
    assert run.name == "run"


# Of runs that were real.


def picky(number: int) -> int:
    if number % 5 == 3:
        raise ValueError(f"{number} is refused")
    return number


def batch_picky(numbers: list[int]) -> list[int]:
    if 11 in numbers:
        raise KeyError("eleven")
    return numbers


def flaky() -> Any:
    seen: set[int] = set()

    def call(number: int) -> int:
        if number not in seen:
            seen.add(number)
            raise OSError("again")
        return number

    return call


def below(found: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    """Spans of a name but for the run's own."""
    return [one for one in named(found, name) if one.parent]


def exceptions(span: ReadableSpan) -> list[tuple[Any, Any]]:
    return [
        ((event.attributes or {})["exception.type"], (event.attributes or {})["exception.message"])
        for event in span.events
        if event.name == "exception"
    ]


@pytest.mark.parametrize("per", ["batch", "item", "input"])
@pytest.mark.parametrize("on", ["loop", "threads", "processes"])
def test_spans_of_what_failed_carry_the_error(per: Any, on: Any) -> None:
    report = tn.Pipeline(range(10), on_error="skip").map(picky, on=on).run()
    found = spans(report, per=per)
    wanted = {("ValueError", f"{n} is refused") for n in (3, 8)}
    name = "input" if per == "input" else "picky"
    failed = [one for one in below(found, name) if one.status.status_code is trace.StatusCode.ERROR]
    assert {one for span in failed for one in exceptions(span)} == wanted
    assert {span.status.description for span in failed} == {
        f"ValueError: '{n} is refused'" for n in (3, 8)
    }
    assert all(
        (event.timestamp or 0) <= (span.end_time or 0) for span in failed for event in span.events
    )
    # A recording knows that they failed, and not of what.
    assert not any(map(exceptions, spans(report.recording, per=per)))


def test_a_batch_that_failed_carries_its_error() -> None:
    report = tn.Pipeline(range(12), on_error="skip").batch(4).map(batch_picky, on="loop").run()
    failed = [one for one in named(spans(report), "batch_picky") if exceptions(one)]
    assert [exceptions(one) for one in failed] == [[("KeyError", "'eleven'")]]
    inputs = [one for one in spans(report, per="input") if exceptions(one)]
    assert len(inputs) == 4


@pytest.mark.parametrize("per", ["batch", "item", "input"])
def test_attempts_that_were_tried_again_are_events(per: Any) -> None:
    pipeline = tn.Pipeline(range(4)).map(flaky(), on="loop", name="flaky", retry=tn.Retry(attempts=3, delay=0.001))  # fmt: skip
    report = pipeline.run()
    assert report.stages[0].retried == 4
    found = spans(report, per=per)
    names = {"batch": ["flaky"], "item": ["flaky", "input"], "input": ["input"]}[per]
    for name in names:
        events = [event for one in below(found, name) for event in one.events]
        assert [(event.name, dict(event.attributes or {})) for event in events] == [("retry", {"tournant.stage": "flaky"})] * 4  # fmt: skip
    assert not any(one.status.status_code is trace.StatusCode.ERROR for one in found)


@pytest.mark.parametrize("per", ["batch", "item", "input"])
def test_a_share_of_the_spans_is_made_and_all_of_what_failed(per: Any) -> None:
    report = tn.Pipeline(range(100), on_error="skip").map(picky, on="loop").run()
    name = "input" if per == "input" else "picky"

    def numbers(share: float) -> tuple[int, int]:
        found = below(spans(report, per=per, share=share), name)
        bad = sum(one.status.status_code is trace.StatusCode.ERROR for one in found)
        return len(found) - bad, bad

    assert numbers(1.0) == (80, 20)
    assert numbers(0.0) == (0, 20)
    good, bad = numbers(0.25)
    assert bad == 20
    assert 15 <= good <= 25, "a quarter of all 100, of which some have failed"


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "half", None])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(InvalidExport, match=r"share=.*0 to 1"):
        export_spans(SMALL, share=share)
