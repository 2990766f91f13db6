"""The same pipeline on one machine and on a Ray cluster: one argument more.

By default it starts a cluster of two one-core nodes on this machine; with an address it uses that cluster:
``python cluster.py 10.0.0.1:6379``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import tournant as tn


class Counter:
    """State that each worker builds for itself, where a real pipeline loads a model."""

    def __init__(self) -> None:
        self.node = os.getpid()


def collatz(start: int, counter: Counter) -> tuple[int, int, int]:
    """Return the start, the steps it takes to come down to 1, and the process that counted them."""
    steps, value = 0, start
    while value != 1:
        value = value // 2 if value % 2 == 0 else 3 * value + 1
        steps += 1
    return start, steps, counter.node


@contextmanager
def two_nodes() -> Iterator[str]:
    """Start a cluster of two one-core nodes on this machine; yields its address."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # have Ray stay on the loopback interface
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        options = {"object_store_memory": 80 * 1024 * 1024, "node_ip_address": "127.0.0.1"}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **options},
        )
        try:
            cluster.add_node(num_cpus=1, **options)
            cluster.add_node(num_cpus=1, **options)
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()


def compare(address: str) -> None:
    """Run the pipeline here and there, and print what came of it."""
    pipeline = (
        tn.Pipeline(range(1, 6001))
        .map(collatz, on="threads", state=tn.PerWorker(Counter))
        .ordered()
    )
    here = pipeline.collect()

    there: list[tuple[int, int, int]] = []
    report = pipeline.for_each(there.append, on="loop").run(cluster=tn.cluster.Ray(address=address))

    same = [found[:2] for found in there] == [found[:2] for found in here]
    print(f"same results, same order: {same}")
    print(f"actors that worked: {len({node for *_, node in there})}")
    print(f"{report.done:,} of {report.sourced:,} inputs done, {report.failed} failed")


if len(sys.argv) > 1:
    compare(sys.argv[1])
else:
    with two_nodes() as address:
        compare(address)
