"""A real Ray cluster for the tests of this folder: a head without cores and two nodes of one core, on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

# Before Ray is imported: send nothing, and keep to the loopback interface.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

_STORE = 80 * 1024 * 1024


class LocalCluster:
    """A cluster whose nodes are processes of this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": _STORE,
                "node_ip_address": "127.0.0.1",
            },
        )
        self.nodes: list[Any] = []
        self.address: str = self._cluster.address

    def add(self) -> Any:
        node = self._cluster.add_node(
            num_cpus=1, object_store_memory=_STORE, node_ip_address="127.0.0.1"
        )
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """What ``kill -9`` of a machine comes to: its raylet and what that started."""
        import psutil

        self.nodes.remove(node)
        for part in node.all_processes["raylet"]:
            process = psutil.Process(part.process.pid)
            family = [process, *process.children(recursive=True)]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        with contextlib.suppress(Exception):
            self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalCluster]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("psutil")
    with warnings.catch_warnings():
        # Ray leaves sockets and processes to the garbage collector.
        warnings.simplefilter("ignore")
        cluster = LocalCluster()
        try:
            cluster.add()
            cluster.add()
            # Kept for all tests: joining takes longer than most of them. What Ray prints of killed processes is left out.
            ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
