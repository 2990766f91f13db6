from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

import tournant as tn
from tournant.observe.prometheus import RunMetrics

pytest.importorskip("prometheus_client")

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

LABELS = ("pipeline", "stage", "on", "outcome")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """What Prometheus would read: by name and the values of the labels."""
    text = generate_latest(registry).decode()
    return {
        " ".join(
            [sample.name, *(sample.labels[x] for x in LABELS if x in sample.labels)]
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def double(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return 2 * number


def even(number: int) -> bool:
    return number % 4 == 0


def pipeline(count: int = 10) -> tn.Pipeline:
    return (
        tn.Pipeline(range(count), on_error="skip")
        .map(double, name="double", on="threads")
        .filter(even, name="even", on="loop")
    )


def test_a_run_that_has_ended_is_counted(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)
    report = pipeline().run(on_start=metrics.on_start("numbers"))
    assert (report.done, report.failed, report.filtered) == (5, 1, 4)
    found = scraped(registry)
    assert found["tournant_pipeline_runs_total numbers"] == 1
    assert found["tournant_pipeline_sourced_total numbers"] == 10
    outcomes = {outcome: found[f"tournant_pipeline_inputs_total numbers {outcome}"] for outcome in ("done", "failed", "skipped", "filtered")}  # fmt: skip
    assert outcomes == {"done": 5, "failed": 1, "skipped": 0, "filtered": 4}
    stage = report.stages[0]
    on = f"numbers {stage.name} {stage.on}"
    assert found[f"tournant_stage_items_in_total {on}"] == 10
    assert found[f"tournant_stage_items_out_total {on}"] == 9
    assert found[f"tournant_stage_items_failed_total {on}"] == 1
    assert found[f"tournant_stage_retries_total {on}"] == 0
    assert found[f"tournant_stage_busy_seconds_total {on}"] == pytest.approx(stage.busy)
    assert found["tournant_pipeline_running numbers"] == 0
    assert f"tournant_stage_running {on}" not in found


def test_a_run_is_seen_while_it_goes_on(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)
    inside, go = threading.Event(), threading.Event()

    def wait(number: int) -> int:
        if number == 4:
            inside.set()
            go.wait(30)
        return number

    flow = tn.Pipeline(range(100)).map(wait, name="wait", on="threads", blocking=True, concurrency=1)  # fmt: skip
    thread = threading.Thread(target=lambda: flow.run(on_start=metrics.on_start("slow")))
    thread.start()
    assert inside.wait(30)
    found = scraped(registry)
    go.set()
    thread.join(30)
    assert found["tournant_pipeline_running slow"] == 1
    assert found["tournant_pipeline_expected slow"] == 100
    assert found["tournant_stage_limit slow wait threads"] == 1
    assert found["tournant_stage_running slow wait threads"] >= 1
    assert found["tournant_pipeline_sourced_total slow"] >= 5
    later = scraped(registry)
    assert later["tournant_pipeline_running slow"] == 0
    assert later["tournant_pipeline_inputs_total slow done"] == 100
    assert "tournant_pipeline_expected slow" not in later


def test_what_prometheus_scrapes_moves_while_a_run_goes_on(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)
    reached, go = threading.Semaphore(0), threading.Semaphore(0)

    async def wait(number: int) -> int:
        if number in (20, 60):
            reached.release()
            await asyncio.to_thread(go.acquire, timeout=30)
        return number

    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    flow = tn.Pipeline(range(100)).map(wait, name="wait", concurrency=1)
    runner = threading.Thread(target=lambda: flow.run(on_start=metrics.on_start("slow")))
    seen = []
    try:
        runner.start()
        for _ in range(2):
            assert reached.acquire(timeout=30)
            with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=30) as reply:
                text = reply.read().decode()
            (line,) = (line for line in text.splitlines() if line.startswith("tournant_stage_items_in_total{"))  # fmt: skip
            seen.append(float(line.rpartition(" ")[2]))
            go.release()
    finally:
        go.release(2)
        runner.join(30)
        server.shutdown()
        server.server_close()
        thread.join(30)
    assert seen == [21, 61]


def test_runs_of_one_name_add_up_and_others_stand_beside(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)

    async def both() -> None:
        async with pipeline(20).open() as one, pipeline(40).open() as other:
            metrics.add(one, "numbers")
            metrics.add(other, "numbers")
            assert scraped(registry)["tournant_pipeline_running numbers"] == 2
            async for _ in one:
                pass
            assert scraped(registry)["tournant_pipeline_running numbers"] == 1
            async for _ in other:
                pass

    asyncio.run(both())
    asyncio.run(pipeline(10).arun(on_start=metrics.on_start("more")))
    before = scraped(registry)
    pipeline(10).run(on_start=metrics.on_start("numbers"))
    found = scraped(registry)
    assert found["tournant_pipeline_sourced_total numbers"] == 70
    assert found["tournant_pipeline_runs_total numbers"] == 3
    assert found["tournant_pipeline_sourced_total more"] == 10
    counted = {name for name in before if "_total" in name}
    assert counted
    assert all(found[name] >= before[name] for name in counted)


def test_a_run_that_failed_stays_counted(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)
    flow = tn.Pipeline(range(10)).map(double, name="double", on="loop")
    with pytest.raises(tn.PipelineFailed):
        flow.run(on_start=metrics.on_start("stopped"))
    found = scraped(registry)
    assert found["tournant_pipeline_running stopped"] == 0
    assert found["tournant_pipeline_inputs_total stopped failed"] == 1


def test_runs_that_have_ended_are_let_go(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)
    seen: list[weakref.ref[object]] = []

    def start(watched: tn.Watched) -> None:
        seen.append(weakref.ref(watched))
        metrics.add(watched, "numbers")

    pipeline().run(on_start=start)
    scraped(registry)
    gc.collect()
    assert seen[0]() is None


def test_one_of_them_per_registry(registry: CollectorRegistry) -> None:
    metrics = RunMetrics(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        RunMetrics(registry)
    metrics.close()
    assert scraped(registry) == {}
    RunMetrics(registry)


@pytest.fixture
def default() -> Iterator[RunMetrics]:
    metrics = RunMetrics()
    yield metrics
    metrics.close()


def test_the_registry_is_that_of_the_program_by_default(default: RunMetrics) -> None:
    pipeline().run(on_start=default.on_start("numbers"))
    assert REGISTRY.get_sample_value("tournant_pipeline_sourced_total", {"pipeline": "numbers"}) == 10  # fmt: skip


def test_without_prometheus_client_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from tournant.observe.prometheus import RunMetrics\n"
        "try: RunMetrics()\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True).stdout  # fmt: skip
    assert out.startswith("MissingExtra")
    assert "pip install 'tournant[prometheus]'" in out
