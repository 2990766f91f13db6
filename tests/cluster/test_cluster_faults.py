"""What is killed in the middle of a run loses nothing: every input is in the sink once, whatever died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import cluster_samples as samples
import pytest

import tournant as tn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def ray(ray_cluster) -> tn.cluster.Ray:
    return tn.cluster.Ray(address=ray_cluster.address)


def test_an_actor_that_is_killed_loses_nothing_and_its_place_is_taken(ray, tmp_path: Path):
    sink = samples.KillsOnce(tmp_path, 150)
    report = tn.Pipeline(range(600)).for_each(sink).run(cluster=ray)
    assert (tmp_path / "killed").exists()
    assert (report.done, report.failed, report.outputs >= 600) == (600, 0, True)
    assert samples.written(tmp_path) == list(range(600))
    assert any("ran again" in warning for warning in report.warnings)
    # What had been acknowledged did not run again.
    assert len(samples.log(tmp_path)) < 1000


def test_an_input_that_kills_every_actor_fails_alone(ray):
    report = tn.Pipeline(range(60), on_error="skip").map(samples.deadly).run(cluster=ray)
    assert (report.done, report.failed) == (59, 1)
    (failure,) = report.failures
    assert failure.key == 13
    assert isinstance(failure.error, tn.WorkerDied)


def test_a_worker_process_inside_a_node_that_is_killed_loses_nothing(ray, tmp_path: Path):
    sink = samples.KillsOnce(tmp_path, 150)
    report = tn.Pipeline(range(400)).for_each(sink, on="processes").run(cluster=ray)
    assert (report.done, report.failed) == (400, 0)
    assert samples.written(tmp_path) == list(range(400))
    assert (tmp_path / "killed").exists()
    assert not any("ran again" in warning for warning in report.warnings)


def test_a_node_that_dies_loses_nothing_and_one_that_joins_gets_work(
    ray, ray_cluster, tmp_path: Path, until
):
    """The run goes on until the node that joined has done something, or a minute later."""
    added = threading.Event()
    before: set[int] = set()
    reports = []

    def newcomers() -> set[int]:
        return {pid for _, pid in samples.log(tmp_path)} - before

    def source():
        yield from range(400)
        added.wait(60)
        due = time.monotonic() + 60
        value = 400
        while not newcomers() and time.monotonic() < due:
            yield value
            value += 1

    def run() -> None:
        pipeline = tn.Pipeline(source).for_each(samples.Sink(tmp_path, 0.003))
        reports.append(pipeline.run(cluster=ray))

    running = threading.Thread(target=run)
    running.start()
    try:
        assert until(lambda: len({pid for _, pid in samples.log(tmp_path)}) == 2, 60)
        ray_cluster.kill(ray_cluster.nodes[-1])
        before |= {pid for _, pid in samples.log(tmp_path)}
        ray_cluster.add()
        added.set()
    finally:
        added.set()
        running.join()
    (report,) = reports
    assert report.done == report.sourced >= 400
    assert samples.written(tmp_path) == list(range(report.sourced))
    assert newcomers(), "the node that joined did nothing"
    assert any("ran again" in warning for warning in report.warnings)


DRIVER = """
import sys
from pathlib import Path
import cluster_samples as samples, tournant as tn
folder = Path(sys.argv[2])
report = tn.Pipeline(range(600), ledger=tn.Ledger(folder / "run.db")).for_each(
    samples.Sink(folder, 0.003)
).run(cluster=tn.cluster.Ray(address=sys.argv[1]))
print(report.done, report.skipped)
"""


def test_a_driver_that_is_killed_repeats_only_what_was_not_acknowledged(ray, tmp_path: Path, until):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, "-c", DRIVER, ray.address, str(tmp_path)]
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert until(lambda: len(samples.log(tmp_path)) >= 200, 60)
        # A second driver on the same ledger is refused at once, and does nothing.
        pipeline = tn.Pipeline(range(600), ledger=tn.Ledger(tmp_path / "run.db")).for_each(
            samples.Sink(tmp_path, 0.003)
        )
        with pytest.raises(tn.LedgerError, match=r"in use|uses it"):
            pipeline.run(cluster=ray)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    report = pipeline.run(cluster=ray)
    assert report.done + report.skipped == 600
    assert report.skipped > 0
    assert samples.written(tmp_path) == list(range(600))
    with tn.Ledger(tmp_path / "run.db", lock=False) as ledger:
        assert ledger.counts().done == 600


DRAINED = """
import sys
from pathlib import Path
import cluster_samples as samples, tournant as tn
from tournant.cli.signals import StopOnSignals
with StopOnSignals(print) as stop:
    report = tn.Pipeline(range(1_000_000)).for_each(samples.Sink(Path(sys.argv[2]), 0.003)).run(
        cluster=tn.cluster.Ray(address=sys.argv[1]), on_start=stop.attach
    )
print(report.sourced, report.done + report.interrupted, report.done)
"""


def test_a_driver_that_gets_sigterm_drains(ray, tmp_path: Path, until):
    """Ray has a handler of its own for it, which would abort the process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    driver = subprocess.Popen(
        [sys.executable, "-c", DRAINED, ray.address, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert until(lambda: len(samples.log(tmp_path)) >= 20 or driver.poll() is not None, 60)
        driver.send_signal(signal.SIGTERM)
        said, wrong = driver.communicate(timeout=60)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 0, wrong
    assert "Stopping: what is in flight is being finished" in said
    sourced, accounted, done = map(int, said.split()[-3:])
    assert sourced == accounted >= done == len(samples.written(tmp_path))


def test_a_node_that_is_ten_times_slower_gets_less(ray, tmp_path: Path):
    results = tn.Pipeline(range(400)).map(samples.SlowOnOne(tmp_path)).collect(cluster=ray)
    assert sorted(value for value, _ in results) == list(range(400))
    slow = int((tmp_path / "slow").read_text())
    done = Counter(pid for _, pid in results)
    assert len(done) == 2
    assert done[slow] < 400 / 4


INGEST = "import sys; from tournant.cli import main; sys.exit(main(sys.argv[1:]))"


def test_an_ingest_that_loses_a_node_and_then_its_driver_ends_with_every_document_once(
    ray, ray_cluster, tmp_path: Path, until
):
    pytest.importorskip("lancedb")
    pytest.importorskip("wordllama")
    from tournant.ingest.chunkers import ChunkSettings, SemanticChunker
    from tournant.ingest.indexes.locations import open_index
    from tournant.ingest.job import IngestOptions, run_ingest, status
    from tournant.ingest.readers.registry import read

    folder, index = tmp_path / "docs", tmp_path / "index"
    folder.mkdir()
    for n in range(600):
        paragraphs = [f"Paragraph {i} of {n:03}. " * 20 for i in range(30)]
        (folder / f"{n:03}.txt").write_text("\n\n".join(paragraphs))

    def documents() -> int:
        try:
            return status(str(index)).documents
        except tn.TournantError:
            return 0

    command = [sys.executable, "-c", INGEST, "ingest", str(folder), "--index", str(index)]
    driver = subprocess.Popen(
        [*command, "--cluster", f"ray://{ray.address}", "--quiet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert until(lambda: documents() > 0 or driver.poll() is not None, 60)
        ray_cluster.kill(ray_cluster.nodes[-1])
        before = documents()
        assert until(lambda: documents() > before or driver.poll() is not None, 60)
    finally:
        driver.kill()
        _, said = driver.communicate()
        ray_cluster.add()
    assert driver.returncode == -signal.SIGKILL, said
    outcome = run_ingest(IngestOptions((str(folder),), str(index), cluster=ray))
    assert outcome.report.skipped > 0
    assert (outcome.report.done + outcome.report.skipped, outcome.rejected) == (600, ())
    chunks = SemanticChunker(ChunkSettings()).chunk(read(str(folder / "000.txt"), 10**6))
    with open_index(index) as there:
        assert len(there.sources()) == 600
        assert there.counts().chunks == 600 * len(chunks)
