"""The same pipeline on a cluster: ``pipeline.run(cluster="ray")``.

Ray places one actor on each node, moves bytes and notices what dies. In each actor the engine of this library runs the pipeline's
stages on the node's cores. The driver deals the inputs out, keeps the ledger and adds the nodes up. Nothing here is imported
before a run asks for it, and Ray only when it begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.cluster.connection import joined
    from tournant.cluster.errors import ClusterError, ClusterUnavailable, NodesFailed
    from tournant.cluster.placing import place
    from tournant.cluster.settings import Ray, settings_of

__all__ = [
    "ClusterError",
    "ClusterUnavailable",
    "NodesFailed",
    "Ray",
    "joined",
    "place",
    "settings_of",
]

_HOMES = {
    "ClusterError": "errors",
    "ClusterUnavailable": "errors",
    "NodesFailed": "errors",
    "Ray": "settings",
    "joined": "connection",
    "place": "placing",
    "settings_of": "settings",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'tournant.cluster' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tournant.cluster.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
