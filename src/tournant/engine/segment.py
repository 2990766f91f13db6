"""What all segments of a run have in common: a place in the line, an inbox, an outlet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tournant.engine.channel import Attempt, Channel
from tournant.engine.lineage import Item
from tournant.engine.stats import StageStats

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.observe.events import Events
    from tournant.report import Report
    from tournant.stages import Stage


#: Call times that a stage gathers before they are worth folding.
FOLD = 256


class Segment:
    """One or more fused stages of a run.

    Attributes:
        run: the run.
        stages: the descriptions.
        stats: one per stage.
        inbox: where items come from.
        out: the next segment's inbox; ``None`` where items arrive.
        done: nothing more will leave this segment.
    """

    on = "engine"

    def __init__(self, run: Run, stages: list[Stage], limits: list[int]) -> None:
        self.run = run
        self.stages = stages
        self.stats = [
            StageStats(stage.name, self.on, limit)
            for stage, limit in zip(stages, limits, strict=True)
        ]
        self.inbox: Channel
        self.out: Channel | None = None
        self.done = False

    def record(self, events: Events, first: int) -> None:
        """Take the rings that keep what happens here; `first` is the index of the first stage."""
        for stats, calls in zip(self.stats, events.calls[first:], strict=False):
            stats.calls = calls

    def capacity(self) -> int:
        """Return how many items the inbox should hold."""
        return 256

    def start(self) -> None:
        """Begin: called on the loop once all segments are connected."""
        raise NotImplementedError

    def halt(self) -> None:
        """Start nothing new; what is in work may end. Called when the run stops on a failure."""
        self.inbox.clear()
        self.inbox.close()

    def cancel(self) -> None:
        """Give up what is in work."""
        self.halt()

    def finish(self) -> None:
        """Tell the next segment that no more will come."""
        if not self.done:
            self.done = True
            if self.out is not None:
                self.out.close()
            self.run.segment_done()

    def idle(self) -> bool:
        """Tell whether nothing of this segment is in work."""
        return True

    def queued(self) -> int:
        """Return how many items wait in front of this segment."""
        return len(self.inbox.items) + len(self.inbox.again)

    def running(self, n: int) -> int:
        """Return how many items stage `n` of the segment works on."""
        stats = self.stats[n]
        return stats.started - stats.left

    def relieve(self) -> bool:
        """Let go of what waits for more input, because no more input can come before it goes; False if there is nothing."""
        return False

    def tick(self, now: float) -> None:
        """Look after what nothing else wakes up for; called every few dozen milliseconds."""
        for stats in self.stats:
            if len(stats.times) > FOLD:
                stats.fold()

    def amend(self, report: Report) -> Report:
        """Return the run's report with what only this segment knows; called once, at the end."""
        return report

    # What several kinds of segment do with an item that has gone through.

    def gone(
        self, item: Item, attempt: Attempt | None, step: int, error: Exception, count: int
    ) -> None:
        """Fail `item` for good in stage `step`."""
        self.stats[step].failed += 1
        self.run.fail(item, self.stages[step], error, count)
