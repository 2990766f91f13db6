"""The same pipeline on Ray: `python -m benchmarks cluster [--items N] [--runs N] [--corpus DIR] [--json FILE]`.

One machine of two cores, with Ray nodes as processes. Four questions, each beside its counterpart in the same rounds:

* what going through Ray costs: one node against the local engine, each with the same number of cores, after Ray's start;
* what a second node of one core brings;
* what Ray Data's `map_batches` makes of the same work on the same cluster;
* the same for reading, cutting and embedding documents, where a corpus is given (what `tournant ingest` does on nodes).

The clusters come and go: first two nodes of one core, of which runs use one or both, then one node of two cores.
Timings are taken from the runs' recordings, from when every node has begun its first input to the last one's end, and scaled to
all inputs, so neither side pays for starting workers. What starting costs is printed beside it.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback interface
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

from benchmarks import harness, work

STORE = 200 * 1024 * 1024


@contextmanager
def cluster(*cores: int) -> Iterator[str]:
    """A cluster with a node for each number of cores, and this process in it."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": STORE, "node_ip_address": "127.0.0.1"}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node}
    )
    try:
        for count in cores:
            made.add_node(num_cpus=count, **node)
        ray.init(address=made.address, logging_level="error", log_to_driver=False)
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


def work_of(milliseconds: float) -> Callable[[int], int]:
    """Pure Python that takes about so long here; the same payload wherever it runs."""
    return partial(_work, work.burn_payload(milliseconds / 1e3))


def _work(payload: bytes, value: int) -> int:
    work.burn(payload)
    return value


def seconds(report: Any) -> float:
    """What all inputs would take at the pace at which they went once every node had begun its first."""
    recording = report.recording
    pieces = [
        p for p in recording.slices if p.stage >= 0 and recording.lanes[p.lane].kind != "loop"
    ]
    first: dict[str, float] = {}
    for piece in pieces:
        first.setdefault(recording.lanes[piece.lane].group, piece.began)
    began, ended = max(first.values()), max(piece.ended for piece in pieces)
    after = len({n for piece in pieces if piece.began >= began for n in piece.inputs})
    return float((ended - began) * report.done / after)


def run_engine(pipeline: Any, settings: Any) -> tuple[float, float]:
    """Return seconds of work and seconds in all, of a run on a cluster or (``None``) here."""
    began = time.perf_counter()
    report = pipeline.run(cluster=settings)
    assert report.done == report.sourced, str(report)
    return seconds(report), time.perf_counter() - began


def run_ray_data(items: list[Any], function: Callable[[Any], Any], size: int) -> float:
    """Return the seconds that Ray Data takes for the same calls, after a first run that starts its workers."""
    import ray.data

    def batch(rows: dict[str, Any]) -> dict[str, Any]:
        return {"item": [function(item) for item in rows["item"].tolist()]}

    def once(part: list[Any]) -> float:
        began = time.perf_counter()
        data = ray.data.from_items(part, override_num_blocks=max(1, len(part) // size))
        count = data.map_batches(batch, batch_size=size).count()
        assert count == len(part)
        return time.perf_counter() - began

    once(items[: 4 * size])
    return once(items)


def compare(
    name: str,
    items: list[Any],
    add: Callable[[Any], Any],
    function: Callable[[Any], Any],
    runs: int,
) -> dict[str, Any]:
    """Run all contestants, alternating, and return the medians in seconds."""
    import tournant as tn

    timings: dict[str, list[float]] = {}
    starts: list[float] = []

    def pipeline() -> Any:
        return add(tn.Pipeline(items))

    def note(who: str, took: float) -> None:
        timings.setdefault(who, []).append(took)
        print(f"  {name}: {who}: {took:.2f} s", file=sys.stderr, flush=True)

    def local(cores: int) -> None:
        os.environ["TOURNANT_CORES"] = str(cores)
        tn.shutdown()
        add(tn.Pipeline(items[:50])).run()
        note(f"local engine, {cores} core(s)", run_engine(pipeline(), None)[0])
        tn.shutdown()
        del os.environ["TOURNANT_CORES"]

    with cluster(1, 1) as address:
        for _ in range(runs):
            local(1)
            for nodes in (1, 2):
                settings = tn.cluster.Ray(address=address, nodes=nodes)
                took, total = run_engine(pipeline(), settings)
                starts.append(total - took)
                note(f"{nodes} node(s) of 1 core", took)
            note("Ray Data, 2 nodes of 1 core", run_ray_data(items, function, 32))
    with cluster(2) as address:
        for _ in range(runs):
            local(2)
            settings = tn.cluster.Ray(address=address)
            note("1 node of 2 cores", run_engine(pipeline(), settings)[0])
            note("Ray Data, 1 node of 2 cores", run_ray_data(items, function, 32))
    medians = {who: round(statistics.median(each), 3) for who, each in timings.items()}
    facts = {
        "overhead of one node of 1 core": _over(
            medians, "1 node(s) of 1 core", "local engine, 1 core(s)"
        ),
        "overhead of one node of 2 cores": _over(
            medians, "1 node of 2 cores", "local engine, 2 core(s)"
        ),
        "two nodes of 1 core against one": round(
            medians["1 node(s) of 1 core"] / medians["2 node(s) of 1 core"], 3
        ),
        "start of a run's actors, seconds": round(statistics.median(starts), 2),
    }
    return {
        "benchmark": name, "unit": "s", "items": len(items), "results": medians, "facts": facts,
        "all": {who: [round(t, 3) for t in each] for who, each in timings.items()},
        "load": [round(x, 2) for x in os.getloadavg()],
    }  # fmt: skip


def _over(medians: dict[str, float], there: str, here: str) -> float:
    return round(medians[there] / medians[here] - 1, 3)


def numbers(count: int, runs: int) -> dict[str, Any]:
    """5 ms of pure Python per item, in worker processes."""
    function = work_of(5.0)
    return compare(
        "cluster: 5 ms of Python", list(range(count)), lambda p: p.map(function, on="processes"), function, runs
    )  # fmt: skip


def documents(corpus: Path, count: int, runs: int) -> dict[str, Any]:
    """Read, cut and embed documents: what the nodes do of an ingest, the writing left out on both sides."""
    import tournant as tn
    from tournant.ingest import stages
    from tournant.ingest.chunkers import ChunkSettings

    paths = [str(path) for path in sorted(corpus.rglob("*")) if path.is_file()][:count]
    chunking = ChunkSettings(800, 100)
    add = partial(_ingest, tn, stages, chunking)
    return compare("cluster: read, cut, embed", paths, add, partial(_one, chunking), runs)


def _ingest(tn: Any, stages: Any, chunking: Any, pipeline: Any) -> Any:
    chunker = tn.PerWorker(partial(stages.make_chunker, chunking))
    model = tn.PerWorker(partial(stages.make_embedder, "static"))
    return (
        pipeline.map(partial(read, 50_000_000), on="processes", name="read")
        .map(stages.cut, on="processes", state=chunker, name="chunk")
        .map(stages.embed, on="processes", state=model, name="embed")
        .map(chunks, on="processes", name="count")
    )


def read(most: int, path: str) -> Any:
    """Read one document."""
    from tournant.ingest.readers.registry import read as read_file

    return read_file(path, most)


def chunks(document: Any) -> int:
    """Return how many chunks a document has: the vectors stay where they were made, on both sides."""
    return len(document.chunks)


_kept: dict[str, Any] = {}


def _one(chunking: Any, path: str) -> int:
    """The same for one document by itself, with the state of this process: what Ray Data calls."""
    from tournant.ingest import stages

    if not _kept:
        _kept["chunker"] = stages.make_chunker(chunking)
        _kept["model"] = stages.make_embedder("static")
    document = stages.cut(read(50_000_000, path), _kept["chunker"])
    return chunks(stages.embed(document, _kept["model"]))


def main() -> None:
    """Measure, and print a table and one line of JSON for each benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster", description=__doc__)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--corpus", type=Path, help="a folder of documents")
    parser.add_argument("--json", type=Path, help="write the results, for benchmarks simulate")
    arguments = parser.parse_args()
    harness.print_machine()
    found = [numbers(arguments.items, arguments.runs)]
    if arguments.corpus is not None:
        found.append(documents(arguments.corpus, arguments.items, arguments.runs))
    for result in found:
        print(f"\n{result['benchmark']}, {result['items']:,} items, seconds")
        for who, median in result["results"].items():
            print(f"  {who:32} {median:8.2f}")
        for fact, value in result["facts"].items():
            print(f"  {fact}: {value}")
        print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
