"""The same pipeline on Ray: `python -m benchmarks cluster [--corpus DIR] [--runs N] [--items N] [--json FILE]`.

One machine of two cores, with Ray nodes as processes. Four questions, each beside its counterpart in the same rounds:

* what going through Ray costs: one node against the local engine, each with the same number of cores, after Ray's start;
* what a second node of one core brings;
* what Ray Data's `map_batches` makes of the same work on the same cluster;
* the same for `tournant ingest` of a folder of documents into a LanceDB index, where a corpus is given.

The clusters come and go: first two nodes of one core, of which runs use one or both, then one node of two cores. A node of one
core is held to that core by the system (its CPU affinity), with all that it starts; so is the local engine of one core. The driver may
use both: on two machines it would have its own. So two nodes share the two cores with it, and one node does not; what the driver takes is printed.
Timings are taken from the runs' recordings, from when every worker process has done its first input to the last one's end, and scaled to
all inputs, so neither side pays for starting workers and loading models. What that costs is printed beside it.
"""

import argparse
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback interface
# Ray's workers would give way to everything else on the machine (nice 15), which the local engine's don't.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

from benchmarks import harness, work
from benchmarks.parts import documents

STORE = 200 * 1024 * 1024


@contextmanager
def cluster(*cores: int) -> Iterator[str]:
    """A cluster with a node for each number of cores, and this process in it; nodes of one core are held to one each."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": STORE, "node_ip_address": "127.0.0.1"}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node}
    )
    allowed = sorted(os.sched_getaffinity(0))
    try:
        for n, count in enumerate(cores):
            added = made.add_node(num_cpus=count, **node)
            if count == 1:
                for part in added.all_processes["raylet"]:
                    raylet = psutil.Process(part.process.pid)
                    for process in (raylet, *raylet.children(recursive=True)):
                        hold(process, allowed[n % len(allowed)])
        ray.init(address=made.address, logging_level="error", log_to_driver=False)
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


def hold(process: Any, core: int) -> None:
    """Hold a process and its threads to one core; what it starts later is held too."""
    for thread in process.threads():
        os.sched_setaffinity(thread.id, {core})


def work_of(milliseconds: float) -> Callable[[int], int]:
    """Pure Python that takes about so long here; the same payload wherever it runs."""
    return partial(_work, work.burn_payload(milliseconds / 1e3))


def _work(payload: bytes, value: int) -> int:
    work.burn(payload)
    return value


def seconds(report: Any) -> float:
    """What all inputs would take at the pace at which they went once every worker process had done its first."""
    recording = report.recording
    lanes = {n for n, lane in enumerate(recording.lanes) if lane.kind == "process"}
    pieces = [piece for piece in recording.slices if piece.lane in lanes and piece.stage >= 0]
    last = max(piece.stage for piece in pieces)
    pieces = [piece for piece in pieces if piece.stage == last]
    first: dict[int, float] = {}
    for piece in pieces:
        first[piece.lane] = min(first.get(piece.lane, piece.ended), piece.ended)
    began = max(first.values())
    ended = max(p.ended for p in recording.slices if recording.lanes[p.lane].kind != "loop")
    after = len({n for piece in pieces if piece.ended > began for n in piece.inputs})
    return float((ended - began) * report.done / after)


class Numbers:
    """5 ms of pure Python per item, in worker processes."""

    name = "cluster: 5 ms of Python"
    at_driver: tuple[str, ...] = ()

    def __init__(self, count: int) -> None:
        self.count = count
        self._function = work_of(5.0)

    def engine(self, settings: Any, count: int | None = None) -> Any:
        """Run on a cluster or (``None``) here, and return the report."""
        import tournant as tn

        return (
            tn.Pipeline(range(count or self.count))
            .map(self._function, on="processes")
            .run(cluster=settings)
        )

    def ray_data(self, count: int | None = None) -> int:
        """Do the same calls with Ray Data; returns how many."""
        function = self._function

        def batch(rows: dict[str, Any]) -> dict[str, Any]:
            return {"item": [function(item) for item in rows["item"].tolist()]}

        return int(
            dataset(list(range(count or self.count))).map_batches(batch, batch_size=32).count()
        )


class Ingest:
    """Read, cut and embed documents, and write them to an index."""

    name = "cluster: ingest"
    at_driver = ("collect", "index")

    def __init__(self, corpus: Path, count: int | None) -> None:
        self._corpus = corpus
        self.paths = [str(path) for path in documents(corpus)][:count]
        self.count = len(self.paths)

    @contextmanager
    def _folder(self, count: int | None) -> Iterator[str]:
        """A folder with the first `count` of the documents."""
        if count is None and self.count == len(documents(self._corpus)):
            yield str(self._corpus)
            return
        with tempfile.TemporaryDirectory(prefix="bench-cluster-") as folder:
            for n, path in enumerate(self.paths[:count]):
                os.symlink(
                    os.path.abspath(path), os.path.join(folder, f"{n:06}-{os.path.basename(path)}")
                )
            yield folder

    @contextmanager
    def _index(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="bench-cluster-") as folder:
            yield os.path.join(folder, "index")

    def engine(self, settings: Any, count: int | None = None) -> Any:
        """Ingest on a cluster or (``None``) here, and return the report."""
        from tournant.ingest.job import IngestOptions, run_ingest

        with self._index() as index, self._folder(count) as folder:
            return run_ingest(IngestOptions((folder,), index, cluster=settings)).report

    def ray_data(self, count: int | None = None) -> int:
        """Do the same calls with Ray Data, and write what it yields as the ingest does; returns how many documents."""
        from tournant.ingest import stages
        from tournant.ingest.chunkers import ChunkSettings
        from tournant.ingest.indexes.base import IndexSettings
        from tournant.ingest.indexes.locations import open_index

        paths = self.paths[:count]
        model = stages.make_embedder("static")
        settings = IndexSettings(model.name, model.dimensions, ChunkSettings().name)
        done, waiting, weight = 0, [], 0
        with self._index() as place, open_index(place, settings, write=True) as index:
            for batch in (
                dataset(paths).map_batches(_embedded, batch_size=32).iter_batches(batch_size=None)
            ):
                for data in batch["document"]:
                    document = pickle.loads(data)
                    done += 1
                    if document is not None:
                        waiting.append(document)
                        weight += len(document.chunks) + 1
                if weight >= 4096:
                    index.replace(waiting)
                    waiting, weight = [], 0
            if waiting:
                index.replace(waiting)
        return done


def dataset(items: list[Any]) -> Any:
    """Return a dataset of Ray Data with blocks of 32 items."""
    import ray.data

    return ray.data.from_items(items, override_num_blocks=max(1, len(items) // 32))


_kept: dict[str, Any] = {}


def _embedded(rows: dict[str, Any]) -> dict[str, Any]:
    """Read, cut and embed some documents with the state of this process: what Ray Data calls."""
    from tournant.ingest import stages
    from tournant.ingest.chunkers import ChunkSettings
    from tournant.ingest.errors import UnreadableFile
    from tournant.ingest.readers.opening import MAX_BYTES
    from tournant.ingest.readers.registry import read

    if not _kept:
        _kept["chunker"] = stages.make_chunker(ChunkSettings())
        _kept["model"] = stages.make_embedder("static")
    made = []
    for path in rows["item"].tolist():
        try:
            document = stages.cut(read(path, MAX_BYTES), _kept["chunker"])
            made.append(pickle.dumps(stages.embed(document, _kept["model"]), 5))
        except UnreadableFile:
            made.append(pickle.dumps(None))
    return {"document": made}


def compare(job: Any, runs: int) -> dict[str, Any]:
    """Run all contestants, alternating, and return the medians in seconds."""
    import psutil

    import tournant as tn

    timings: dict[str, list[float]] = {}
    starts: list[float] = []
    drivers: list[float] = []
    demands: dict[str, list[float]] = {}
    me = psutil.Process()

    def note(who: str, took: float) -> None:
        timings.setdefault(who, []).append(took)
        print(f"  {job.name}: {who}: {took:.2f} s", file=sys.stderr, flush=True)

    def local(cores: int) -> None:
        os.environ["TOURNANT_CORES"] = str(cores)
        allowed = os.sched_getaffinity(0)
        tn.shutdown()
        if cores == 1:
            # The worker processes that this warms up are held to one core; this process, which writes, may use both.
            os.sched_setaffinity(0, {min(allowed)})
        try:
            job.engine(None, 50)
        finally:
            os.sched_setaffinity(0, allowed)
        report = job.engine(None)
        if cores == 1:
            for stage in report.stages:
                demands.setdefault(stage.name, []).append(stage.busy / report.done)
        note(f"local engine, {cores} core(s)", seconds(report))
        tn.shutdown()
        del os.environ["TOURNANT_CORES"]

    def there(who: str, settings: Any) -> None:
        began, busy = time.perf_counter(), sum(me.cpu_times()[:2])
        report = job.engine(settings)
        took = seconds(report)
        starts.append(time.perf_counter() - began - took)
        drivers.append((sum(me.cpu_times()[:2]) - busy) / report.done)
        note(who, took)

    def data(who: str) -> None:
        job.ray_data(128)
        began = time.perf_counter()
        assert job.ray_data() == job.count
        note(f"Ray Data, {who}", time.perf_counter() - began)

    job.engine(None, 50)  # what this process imports
    with cluster(1, 1) as address:
        for _ in range(runs):
            local(1)
            there("1 node of 1 core", tn.cluster.Ray(address=address, nodes=1))
            there("2 nodes of 1 core", tn.cluster.Ray(address=address, nodes=2))
            data("2 nodes of 1 core")
    with cluster(2) as address:
        for _ in range(runs):
            local(2)
            there("1 node of 2 cores", tn.cluster.Ray(address=address))
            data("1 node of 2 cores")
    medians = {who: round(statistics.median(each), 3) for who, each in timings.items()}
    facts = {
        "overhead of one node of 1 core": _over(
            medians, "1 node of 1 core", "local engine, 1 core(s)"
        ),
        "overhead of one node of 2 cores": _over(
            medians, "1 node of 2 cores", "local engine, 2 core(s)"
        ),
        "two nodes of 1 core against one": round(
            medians["1 node of 1 core"] / medians["2 nodes of 1 core"], 3
        ),
        "start and end of a run, seconds": round(statistics.median(starts), 2),
        "driver, microseconds of a core per item": round(statistics.median(drivers) * 1e6),
    }
    return {
        "demands": {name: statistics.median(each) for name, each in demands.items()},
        "at_driver": job.at_driver,
        "benchmark": job.name, "unit": "s", "items": job.count, "results": medians, "facts": facts,
        "all": {who: [round(t, 3) for t in each] for who, each in timings.items()},
        "load": [round(x, 2) for x in os.getloadavg()],
    }  # fmt: skip


def _over(medians: dict[str, float], there: str, here: str) -> float:
    return round(medians[there] / medians[here] - 1, 3)


def run(
    corpora: list[Path],
    quick: bool = False,
    runs: int | None = None,
    items: int | None = None,
    json_file: Path | None = None,
) -> int:
    """Measure, and print a table and one line of JSON for each benchmark; then what the simulation would have said."""
    from benchmarks import simulate

    runs = runs or (1 if quick else 3)
    items = items or (1200 if quick else 4000)
    jobs: list[Any] = [Numbers(items)]
    jobs += [Ingest(corpus, 1500 if quick else None) for corpus in corpora]
    found = []
    for job in jobs:
        result = compare(job, runs)
        found.append(result)
        print(f"\n{result['benchmark']}, {result['items']:,} items, seconds")
        for who, median in result["results"].items():
            print(f"  {who:32} {median:8.2f}")
        for fact, value in result["facts"].items():
            print(f"  {fact}: {value}")
        print(json.dumps(result))
    print("\n" + "\n".join(simulate.check(found)))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1))
    return 0


def main() -> int:
    """Measure, and print a table and one line of JSON for each benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster", description=__doc__)
    parser.add_argument("--items", type=int, help="numbers (default 4,000)")
    parser.add_argument("--runs", type=int, help="of each (default 3)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--corpus", type=Path, action="append", default=[], help="a folder of documents"
    )
    parser.add_argument("--json", type=Path, help="write the results, for benchmarks simulate")
    arguments = parser.parse_args()
    harness.print_machine()
    return run(arguments.corpus, arguments.quick, arguments.runs, arguments.items, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
