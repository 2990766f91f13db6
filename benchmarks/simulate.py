"""How many nodes a job needs: `python -m benchmarks simulate --demand read=0.004 --demand embed=0.030 --nodes 1,2,4,8`.

From measured demands (seconds of a core per document, by stage, and bytes per document) it tells documents per hour and cost for
N nodes, by the utilisation law: no resource can be used for more than all of the time. There are three resources: the
cores of the nodes, the cores of the driver (dealing, the ledger, a writer that stays there), and the network into the
driver. The slowest of them is the bound; starting Ray and the actors, and the last shard's tail, are added once.

`--check FILE` takes what `benchmarks cluster --json` measured: from the demands of each stage in the local run on one core, from what that
core did between them, and from what the driver used, the runs of one and two nodes are predicted and compared. There nodes and driver share one machine, whose cores are one more resource.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds of the driver's core that an input costs, dealt and taken in.
DEALING = 60e-6


@dataclass(frozen=True)
class Job:
    """What a document asks for.

    Attributes:
        node_seconds: seconds of a node's core.
        driver_seconds: seconds of a core of the driver; what is dealt, taken in and written there one by one.
        driver_bytes: bytes that come back to the driver.
        start_seconds: seconds until the first node works, once.
        shard_seconds: seconds of work in a shard: at the end nodes wait for the last one.
    """

    node_seconds: float
    driver_seconds: float = DEALING
    driver_bytes: float = 0.0
    start_seconds: float = 5.0
    shard_seconds: float = 0.25


@dataclass(frozen=True)
class Machine:
    """What a node has and costs.

    Attributes:
        cores: of a node.
        price: of a node, in an hour.
        driver_cores: that the driver's writing can use.
        bytes_per_second: into the driver.
        shared: cores of a single machine on which nodes and driver all run; 0 where each has its own.
    """

    cores: int = 2
    price: float = 0.10
    driver_cores: float = 1.0
    bytes_per_second: float = 125e6
    shared: int = 0


@dataclass(frozen=True)
class Outlook:
    """What a number of nodes comes to.

    Attributes:
        nodes: how many.
        per_hour: documents in an hour, at full speed.
        bound: what is used up first.
        seconds: for all documents, with the start.
        cost: of nodes and driver for that time.
    """

    nodes: int
    per_hour: float
    bound: str
    seconds: float
    cost: float


def outlook(job: Job, machine: Machine, nodes: int, documents: int) -> Outlook:
    """Return what `nodes` nodes come to."""
    rates = {
        "the nodes' cores": nodes * machine.cores / job.node_seconds,
        "the driver": machine.driver_cores / job.driver_seconds if job.driver_seconds else math.inf,
        "the network into the driver": (
            machine.bytes_per_second / job.driver_bytes if job.driver_bytes else math.inf
        ),
    }
    if machine.shared:
        rates["the machine's cores"] = machine.shared / (job.node_seconds + job.driver_seconds)
    bound = min(rates, key=lambda name: rates[name])
    tail = job.shard_seconds / 2 if nodes > 1 else 0.0
    took = job.start_seconds + documents / rates[bound] + tail
    cost = (nodes + 1) * machine.price * took / 3600
    return Outlook(nodes, rates[bound] * 3600, bound, took, cost)


def check(results: list[dict[str, Any]], cores: int | None = None) -> list[str]:
    """Predict the runs of `benchmarks.cluster` from the stages' demands in the local run; return a line for each.

    Args:
        results: what `benchmarks.cluster` found.
        cores: of the machine that nodes and driver share. Default: this one's.
    """
    cores = cores or len(os.sched_getaffinity(0))
    lines = []
    for result in results:
        demands, there = result["demands"], result["at_driver"]
        stages = sum(demand for name, demand in demands.items() if name not in there)
        # What a core does besides: hops between processes, and waiting for them.
        beside = max(0.0, result["results"]["local engine, 1 core(s)"] / result["items"] - stages)
        writing = DEALING + sum(demands[name] for name in there)
        # Taking large results in costs the driver more than its stages do: what it used in those runs is measured.
        driver = result["facts"].get("driver, microseconds of a core per item", 0) / 1e6
        job = Job(stages + beside, max(writing, driver), start_seconds=0.0)
        said = ", ".join(f"{name} {demand * 1e3:.2f}" for name, demand in demands.items())
        lines.append(
            f"{result['benchmark']}: milliseconds of a core per item: {said}, between them {beside * 1e3:.2f}, "
            f"driver {job.driver_seconds * 1e3:.2f}"
        )
        for nodes, who in ((1, "1 node of 1 core"), (2, "2 nodes of 1 core")):
            predicted = outlook(job, Machine(cores=1, shared=cores), nodes, result["items"])
            measured = result["results"][who]
            lines.append(
                f"  {who}: predicted {predicted.seconds:.2f} s, measured {measured:.2f} s "
                f"({predicted.seconds / measured - 1:+.1%}), bound by {predicted.bound}"
            )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--demand", action="append", default=[], metavar="STAGE=SECONDS", help="of a node's core, per document"
    )  # fmt: skip
    parser.add_argument(
        "--driver", action="append", default=[], metavar="STAGE=SECONDS", help="of the driver, per document"
    )  # fmt: skip
    parser.add_argument("--bytes", type=float, default=0.0, help="that come back per document")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--nodes", default="1,2,4,8,16", help="how many, with commas")
    parser.add_argument("--cores", type=int, default=2, help="of a node")
    parser.add_argument("--price", type=float, default=0.10, help="of a node in an hour")
    parser.add_argument("--start", type=float, default=5.0, help="seconds until nodes work")
    parser.add_argument("--check", type=Path, help="what benchmarks cluster --json wrote")
    arguments = parser.parse_args()
    if arguments.check is not None:
        print("\n".join(check(json.loads(arguments.check.read_text()))))
        return
    if not arguments.demand:
        parser.error("give at least one --demand STAGE=SECONDS; a report's busy / items is one")
    total = sum(float(part.partition("=")[2]) for part in arguments.demand)
    here = sum(float(part.partition("=")[2]) for part in arguments.driver)
    job = Job(total, DEALING + here, arguments.bytes, arguments.start)
    machine = Machine(arguments.cores, arguments.price)
    print(f"{'nodes':>6}{'documents/h':>14}{'hours':>9}{'cost':>9}  bound by")
    for count in map(int, arguments.nodes.split(",")):
        said = outlook(job, machine, count, arguments.documents)
        print(
            f"{said.nodes:>6}{said.per_hour:>14,.0f}{said.seconds / 3600:>9.2f}{said.cost:>9.2f}  {said.bound}"
        )


if __name__ == "__main__":
    main()
