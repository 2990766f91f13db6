"""From a pipeline to one that runs on a cluster: the stages of the nodes become one segment, the others stay at the driver."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tournant.cluster.settings import Ray, settings_of
from tournant.errors import InvalidPipeline
from tournant.pipeline import OnError, Pipeline
from tournant.stages import Stage

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.engine.segment import Segment


def place(pipeline: Pipeline, cluster: object) -> Pipeline:
    """Return the pipeline that the driver runs.

    Its first stage stands for all that run on the nodes: those in front of the first ``ordered``, and in front of
    `Ray.driver_from`. Source, keys, ledger, failures, order and what follows are the driver's, by the very engine of a local run.

    Raises:
        InvalidPipeline: `cluster` is none, or nothing would be left for the nodes.
    """
    settings = settings_of(cluster)
    cut = _cut(pipeline, settings)
    there, here = pipeline.stages[:cut], pipeline.stages[cut:]

    def segment(run: Run) -> Segment:
        from tournant.cluster.dealing import RemoteSegment

        return RemoteSegment(run, there, settings)

    placed = copy.copy(pipeline)
    object.__setattr__(placed, "stages", (Stage("remote", "nodes", fn=segment), *here))
    return placed


def on_nodes(
    stages: tuple[Stage, ...],
    on_error: OnError,
    memory_limit: int | None,
    stall_after: float | None,
    *,
    wants: bool,
) -> Pipeline:
    """Return the pipeline that each node runs; its source is the driver, which may want the results."""
    last = stages[-1]
    if wants and last.on == "processes" and last.kind in ("map", "flat_map", "map_batches"):
        from tournant.cluster.messages import Packing

        assert last.fn is not None
        stages = (*stages[:-1], replace(last, fn=Packing(last.fn, last.kind)))
    part = Pipeline(
        _dealt_by_the_driver,
        on_error=on_error,
        memory_limit=memory_limit,
        stall_after=stall_after,
    )
    object.__setattr__(part, "stages", stages)
    return part


def _dealt_by_the_driver() -> Iterator[object]:
    return iter(())


def _cut(pipeline: Pipeline, settings: Ray) -> int:
    names = [stage.name for stage in pipeline.stages]
    cut = len(names)
    why = "the pipeline has no stages"
    if settings.driver_from is not None:
        if settings.driver_from not in names:
            raise InvalidPipeline(
                f"Ray(driver_from={settings.driver_from!r}): there is no such stage; the stages are {', '.join(names)}"
            )
        cut = names.index(settings.driver_from)
        why = f"driver_from={settings.driver_from!r} is the first stage"
    for n, stage in enumerate(pipeline.stages[:cut]):
        if stage.kind == "ordered":
            cut, why = n, ".ordered() is the first stage"
    if cut == 0:
        raise InvalidPipeline(
            f"run(cluster=...): {why}, so nothing would run on the nodes; put what is to run there in front, or leave cluster= out"
        )
    kinds = [stage.kind for stage in pipeline.stages[:cut]]
    if kinds.count("batch") - kinds.count("unbatch") > 1 and cut < len(names):
        # Which input a row of an inner batch belongs to is known on the node only.
        raise InvalidPipeline(
            f"run(cluster=...): {names[cut]}, the first stage at the driver, would get batches of batches; put .unbatch() in front"
        )
    return cut
