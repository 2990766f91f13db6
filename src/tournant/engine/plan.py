"""From stages to segments: which stages share a hop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tournant.engine.auto import AutoSegment
from tournant.engine.barriers import Barrier, Gather, Ordered
from tournant.engine.batching import Batcher, Unbatcher
from tournant.engine.loop_batches import LoopBatchSegment
from tournant.engine.loop_segment import LoopSegment
from tournant.engine.pool_segment import PoolSegment
from tournant.engine.segment import Segment
from tournant.pool.lanes import World
from tournant.stages import CALLING, Stage

if TYPE_CHECKING:
    from tournant.engine.run import Run

_MOVERS: dict[str, type[Gather | Ordered | Batcher | Unbatcher]] = {
    "gather": Gather,
    "ordered": Ordered,
    "batch": Batcher,
    "unbatch": Unbatcher,
}


def fuse(stages: tuple[Stage, ...], *, inline: bool = False) -> list[list[Stage]]:
    """Group adjacent stages that share a hop; see docs/design.md, "What fuses"."""
    groups: list[list[Stage]] = []
    for stage in stages:
        if groups and _fits(groups[-1][-1], stage, inline):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _fits(before: Stage, stage: Stage, inline: bool) -> bool:
    if (
        before.kind not in ("map", "filter", "tap")
        or stage.kind not in CALLING
        or stage.kind == "map_batches"
    ):
        return False
    if inline:
        return True
    if before.on != stage.on:
        return False
    if stage.on == "loop":
        return True
    # A lane reports on a whole chain: what is retried or timed by itself has to stand by itself.
    return not any(
        s.blocking or s.retry is not None or s.timeout is not None for s in (before, stage)
    ) and (before.max_workers == stage.max_workers)


def build(run: Run, stages: tuple[Stage, ...]) -> list[Segment]:
    """Build the segments of a run, in the order of the pipeline."""
    segments: list[Segment] = []
    world: World | None = None
    for group in fuse(stages, inline=run.inline):
        first = group[0]
        if first.kind == "remote":
            # Stages that run elsewhere: whoever placed them there knows how.
            assert first.fn is not None
            segments.append(first.fn(run))
        elif first.kind in _MOVERS:
            segments.append(_MOVERS[first.kind](run, group))
        elif run.inline or first.on == "loop":
            kind = LoopBatchSegment if first.kind == "map_batches" else LoopSegment
            segments.append(kind(run, group))
        else:
            world = world or World()
            pool_segment = AutoSegment if first.on == "auto" else PoolSegment
            segments.append(pool_segment(run, group, world))
    barrier_follows = False
    for segment in reversed(segments):
        if isinstance(segment, Barrier):
            barrier_follows = True
        elif isinstance(segment, Unbatcher):
            segment.strict = barrier_follows
    return segments
