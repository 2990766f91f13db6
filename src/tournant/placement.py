"""Where a run is to happen: inside of a worker or not, and for ``run(cluster=...)`` what places it on a cluster."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tournant.errors import InvalidPipeline

if TYPE_CHECKING:
    from tournant.pipeline import Pipeline


def placed(pipeline: Pipeline, cluster: object, inline: bool) -> Pipeline:
    """Return the pipeline to run for ``cluster=``; itself where that is ``None``.

    Raises:
        InvalidPipeline: it can't be placed so.
    """
    if cluster is None:
        return pipeline
    if inline:
        raise InvalidPipeline(
            "run(inline=True, cluster=...): inline is one thread of this process; leave one of them out"
        )
    # By name, at the time of the run: clusters are built on the core, not into it.
    placing = importlib.import_module("tournant.cluster")
    there: Pipeline = placing.place(pipeline, cluster)
    return there


def nested_now() -> bool:
    """Tell whether the calling code stands on a slot of the pool, so that its run gets workers of its own."""
    from tournant.pool.lanes import holds_slot

    return holds_slot()
