"""Runs on a local cluster of two one-core nodes: what a run does on one machine holds there too."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import cluster_samples as samples
import pytest

import tournant as tn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def ray(ray_cluster) -> tn.cluster.Ray:
    return tn.cluster.Ray(address=ray_cluster.address)


def test_both_nodes_work_and_ordered_gives_the_results_in_the_sources_order(ray, tmp_path):
    """The window is smaller than what nodes hold, so the source has to wait for it again and again."""
    results = []
    pipeline = tn.Pipeline(range(500)).map(samples.Meet(tmp_path)).ordered(window=50)
    report = pipeline.for_each(results.append, on="loop").run(cluster=ray)
    assert [value for value, _ in results] == list(range(500))
    assert len({pid for _, pid in results}) == 2
    recording = report.recording
    groups = {lane.group for lane in recording.lanes if lane.kind == "thread"}
    assert len(groups - {"driver"}) == 2
    assert len(recording.inputs) == 500
    assert {n for piece in recording.slices for n in piece.inputs} <= set(range(500))


def test_state_is_built_on_each_node_once(ray, tmp_path: Path):
    model = tn.PerWorker(partial(samples.Model, tmp_path))
    pipeline = tn.Pipeline(range(300)).map(samples.with_model, on="threads", state=model)
    nodes = {pid for _, pid in pipeline.collect(cluster=ray)}
    built = [int(line) for line in (tmp_path / "built").read_text().split()]
    assert len(nodes) == 2
    assert sorted(built) == sorted(nodes)


def test_process_stages_have_their_workers_on_the_nodes(ray):
    results = tn.Pipeline(range(50)).map(samples.where, on="processes").collect(cluster=ray)
    assert sorted(value for value, _ in results) == list(range(50))
    assert os.getpid() not in {parent for _, parent in results}


def test_progress_adds_up_over_the_nodes_while_they_work(ray, tmp_path: Path, until):
    """Every input from the twentieth on waits at a gate, so what both nodes hold can be seen."""
    pipeline = tn.Pipeline(range(100)).map(samples.Gate(tmp_path), name="gate", concurrency=64)
    run = pipeline.start(cluster=ray)
    try:

        def at_the_gate() -> bool:
            (stage,) = run.snapshot().stages
            return (stage.items_in + stage.queued, stage.items_out) == (100, 20) and (
                stage.running == stage.items_in - 20 > 64
            )

        assert until(at_the_gate, 60), run.snapshot()
        assert run.snapshot().stages[0].limit == 128
    finally:
        (tmp_path / "open").touch()
    report = run.wait()
    assert (report.done, report.stages[0].items_out) == (100, 100)


def test_what_lives_in_a_function_travels_by_value_and_comes_back_as_the_same_class(ray):
    class Found:
        def __init__(self, value):
            self.value = value

    results = tn.Pipeline(range(5)).map(lambda value: Found(value), on="loop").collect(cluster=ray)
    assert sorted(found.value for found in results) == list(range(5))
    assert all(type(found) is Found for found in results)


def test_results_of_process_stages_come_back_as_they_are_and_fail_alone_where_they_can_not(ray):
    """They are pickled in the worker process, by each kind of stage."""

    class Found:
        def __init__(self, value):
            self.value = value

    def rows(values):
        return [value if value == 3 else Found(value) for value in values]

    def children(value):
        if value == 3:
            yield threading.Lock()
        yield from [Found(value)] * 2

    pipeline = tn.Pipeline(range(6), on_error="skip")
    rows_back = pipeline.map_batches(rows, size=4, on="processes").collect(cluster=ray)
    assert sorted(v if v == 3 else v.value for v in rows_back) == list(range(6))
    assert {type(found) for found in rows_back} == {int, Found}
    found: list = []
    cut = pipeline.flat_map(children, on="processes").ordered()
    report = cut.for_each(found.append, on="loop").run(cluster=ray)
    assert sorted({one.value for one in found}) == [0, 1, 2, 4, 5]
    assert (report.done, report.failed) == (5, 1)
    assert "can't be sent back" in str(report.failures[0].error)


def test_fan_out_gather_filter_and_batch_come_to_what_they_come_to_locally(ray):
    pipeline = (
        tn.Pipeline(range(200))
        .filter(lambda value: value % 5 != 0, on="loop")
        .flat_map(samples.pieces, on="threads")
        .gather()
    )
    there, here = pipeline.collect(cluster=ray), pipeline.collect()
    assert sorted((g.key, *g) for g in there) == sorted((g.key, *g) for g in here)
    report = pipeline.run(cluster=ray)
    assert (report.sourced, report.done, report.filtered) == (200, 160, 40)
    batches = tn.Pipeline(range(101)).batch(7).collect(cluster=ray)
    assert sorted(value for batch in batches for value in batch) == list(range(101))


def test_the_sink_runs_on_the_nodes_and_the_ledger_is_the_drivers(ray, tmp_path: Path):
    pipeline = tn.Pipeline(
        range(400), ledger=tn.Ledger(tmp_path / "run.db"), fingerprint=lambda value: "1"
    ).for_each(samples.Sink(tmp_path), on="threads")
    report = pipeline.run(cluster=ray)
    assert (report.done, report.outputs) == (400, 400)
    assert samples.written(tmp_path) == list(range(400))
    assert len(samples.log(tmp_path)) == 400
    again = pipeline.run(cluster=ray)
    assert (again.done, again.skipped) == (0, 400)
    local = pipeline.run()
    assert local.skipped == 400


def test_failures_come_back_with_stage_key_attempts_and_are_counted(ray):
    pipeline = tn.Pipeline(range(100), on_error="skip").map(
        samples.odd_fails, retry=tn.Retry(attempts=2, delay=0.0)
    )
    report = pipeline.run(cluster=ray)
    assert (report.done, report.failed) == (90, 10)
    assert sorted(failure.key for failure in report.failures) == list(range(7, 100, 10))
    failure = report.failures[0]
    assert (failure.stage, failure.attempts) == ("odd_fails", 2)
    assert isinstance(failure.error, ValueError)
    (there,), (here,) = report.stages, pipeline.run().stages
    for count in ("name", "on", "items_in", "items_out", "retried", "failed"):
        assert getattr(there, count) == getattr(here, count)
    with pytest.raises(tn.PipelineFailed, match="odd_fails") as stopped:
        tn.Pipeline(range(100)).map(samples.odd_fails).run(cluster=ray)
    assert any("on input" in note for e in stopped.value.exceptions for note in e.__notes__)
    report = stopped.value.report
    assert report.sourced == report.done + report.failed + report.interrupted


def test_too_many_failures_are_judged_over_all_nodes(ray):
    pipeline = tn.Pipeline(range(1000), on_error="skip", max_failures=5).map(samples.odd_fails)
    with pytest.raises(tn.TooManyFailures):
        pipeline.run(cluster=ray)


def test_a_sink_with_one_writer_stays_at_the_driver(ray):
    taken: list[int] = []
    pipeline = (
        tn.Pipeline(range(300))
        .flat_map(samples.pieces, on="threads")
        .gather()
        .for_each(lambda group: taken.append(group.key), on="threads", name="write")
    )
    settings = tn.cluster.Ray(address=ray.address, driver_from="write", nodes=1)
    report = pipeline.run(cluster=settings)
    assert sorted(taken) == list(range(300))
    assert (report.done, report.outputs) == (300, 300)
    assert report.cores == 1


def test_large_inputs_go_through_the_object_store_and_large_results_come_back(ray, monkeypatch):
    from tournant.cluster.worker import Worker

    dealt = {}
    deal = Worker.deal

    def watched(self, inputs, starved):
        dealt.update({one.key: type(one.value).__name__ for one in inputs})
        deal(self, inputs, starved)

    monkeypatch.setattr(Worker, "deal", watched)
    values = [bytes([n]) * (700_000 if n else 7) for n in range(8)]
    results = tn.Pipeline(values).map(lambda data: data[:1] + data, on="loop").collect(cluster=ray)
    assert sorted(results) == [value[:1] + value for value in values]
    assert dealt == {n: "ObjectRef" if n else "bytes" for n in range(8)}


def test_a_rate_is_shared_by_the_nodes(ray):
    limit = tn.limits.RateLimit(requests="60/s", burst=2)
    pipeline = tn.Pipeline(range(120)).map(samples.stamp, limit=limit, concurrency=8)
    stamps = sorted(pipeline.collect(cluster=ray))
    assert len(stamps) == 120
    # In no window more than the rate allows, and what two nodes may hold in hand; each alone would give twice that.
    for n, first in enumerate(stamps):
        for m in range(n + 1, len(stamps)):
            assert m - n + 1 <= 2 + 60 * (stamps[m] - first) + 2 * 8


def test_results_stream_and_leaving_early_cancels(ray):
    seen = []
    for value in tn.Pipeline(range(100_000)).map(samples.double, on="loop").iter(cluster=ray):
        seen.append(value)
        if len(seen) == 100:
            break
    assert len(set(seen)) == 100

    async def stream():
        async with tn.Pipeline(range(100)).map(samples.double, on="loop").open(cluster=ray) as run:
            found = [value async for value in run]
        return found, run.report

    found, report = asyncio.run(stream())
    assert sorted(found) == [2 * n for n in range(100)]
    assert report.done == 100


def test_draining_ends_what_is_in_flight_and_cancelling_gives_it_up(ray):
    def drain(run):
        run.drain()

    report = (
        tn.Pipeline(range(100_000)).map(samples.double, on="loop").run(cluster=ray, on_start=drain)
    )
    assert report.sourced == report.done + report.interrupted
    assert report.sourced < 100_000

    report = (
        tn.Pipeline(range(100_000))
        .map(samples.double, on="loop")
        .run(cluster=ray, on_start=lambda run: run.cancel())
    )
    assert report.done < 100_000


def test_a_source_that_raises_ends_the_run_after_what_came_before(ray):
    def source():
        yield from range(10)
        raise OSError("the list ends here")

    with pytest.raises(tn.SourceFailed, match="the list ends here") as failed:
        tn.Pipeline(source).map(samples.double, on="loop").run(cluster=ray)
    assert failed.value.report.done == 10


@pytest.mark.parametrize("options", [{"nodes": 1, "cpus": 1}, {"shard": 3}])
def test_settings_bound_what_a_run_takes(ray, options):
    settings = tn.cluster.Ray(address=ray.address, **options)
    report = tn.Pipeline(range(100)).map(samples.double).run(cluster=settings)
    assert report.done == 100
    assert 1 <= report.cores <= (1 if "nodes" in options else 2)


# What can't be.


def test_a_cluster_without_a_fitting_node_is_refused(ray):
    settings = tn.cluster.Ray(address=ray.address, resources={"GPU": 1}, start_timeout=1)
    with pytest.raises(tn.cluster.NodesFailed, match=r"no living node with 1 core.*GPU"):
        tn.Pipeline(range(3)).map(samples.double).run(cluster=settings)


def test_another_cluster_than_the_one_that_was_joined_is_refused(ray):
    with pytest.raises(tn.cluster.ClusterUnavailable, match="has joined the Ray cluster"):
        tn.Pipeline([1]).map(samples.double).run(cluster=tn.cluster.Ray(address="127.0.0.1:1"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", None])
def test_where_there_is_no_cluster_it_says_how_to_start_one(address):
    """In a process of its own, which has joined none."""
    program = (
        "import tournant as tn\n"
        f"tn.Pipeline([1]).map(str).run(cluster=tn.cluster.Ray(address={address!r}))"
    )
    hidden = {"RAY_ADDRESS": "127.0.0.1:1"} if address is None else {}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **hidden}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "ClusterUnavailable: there is no Ray cluster at" in done.stderr, done.stderr
    assert "ray start --head" in done.stderr


def test_a_ray_of_another_version_is_refused_with_both_versions(ray):
    program = (
        "import ray; ray.__version__ = '2.0.0'\n"
        "import tournant as tn\n"
        f"tn.Pipeline([1]).map(str).run(cluster='ray://{ray.address}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stderr.rpartition("ClusterUnavailable: ")[2]
    assert "use the same versions of Ray and Python here as there" in said
    assert "2.0.0" in said
    assert importlib.metadata.version("ray") in said


def test_a_node_with_another_version_of_this_library_is_refused_with_both(ray, tmp_path: Path):
    shutil.copytree(Path(tn.__file__).parent, tmp_path / "tournant")
    (tmp_path / "tournant" / "_version.py").write_text('__version__ = "9.9.9"\n')
    there = replace(ray, runtime_env={"env_vars": {"PYTHONPATH": str(tmp_path)}})
    with pytest.raises(tn.cluster.ClusterError, match=rf"9\.9\.9.*{tn.__version__}.*same version"):
        tn.Pipeline([1]).map(str).run(cluster=there)


def test_two_runs_at_once_share_the_cluster_by_taking_turns(ray):
    runs = [tn.Pipeline(range(50)).map(samples.double).start(cluster=ray) for _ in range(2)]
    assert [run.wait().done for run in runs] == [50, 50]


def test_a_pipeline_that_can_not_be_pickled_is_refused_with_the_mend(ray):
    with pytest.raises(tn.cluster.ClusterError, match="PerWorker"):
        tn.Pipeline(range(3)).map(samples.unpicklable()).run(cluster=ray)


def test_a_module_that_is_missing_on_the_nodes_is_named(ray, tmp_path, monkeypatch):
    (tmp_path / "only_here_for_a_moment.py").write_text("def stage(value): return value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here_for_a_moment

    monkeypatch.undo()
    with pytest.raises(tn.cluster.ClusterError, match=r"only_here_for_a_moment.*runtime_env"):
        tn.Pipeline(range(3)).map(only_here_for_a_moment.stage).run(cluster=ray)


def test_inputs_and_results_that_can_not_travel_fail_alone(ray):
    report = tn.Pipeline([1, threading.Lock(), 3], on_error="skip").map(str).run(cluster=ray)
    assert (report.done, report.failed) == (2, 1)
    assert "can't be sent to a node" in str(report.failures[0].error)

    def lock(value):
        import threading

        return threading.Lock() if value == 2 else value

    pipeline = tn.Pipeline([1, 2, 3], on_error="skip").map(lock)
    report = None
    results = []

    async def stream():
        async with pipeline.open(cluster=ray) as run:
            results.extend([value async for value in run])
        return run.report

    report = asyncio.run(stream())
    assert sorted(results) == [1, 3]
    assert "can't be sent back from a node" in str(report.failures[0].error)
