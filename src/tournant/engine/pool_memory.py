"""How a pool segment keeps to the run's memory limit: by what its items grow, and when a fan-out has to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tournant.engine.chunk import Chunk
from tournant.engine.lineage import Item
from tournant.engine.loop_step import UNKNOWN
from tournant.engine.segment import Segment

if TYPE_CHECKING:
    from typing import Any

    from tournant.engine.run import Run
    from tournant.stages import Stage


class Memory(Segment):
    """The part of a pool segment that knows of memory.

    Attributes:
        growth: bytes by which an item grows here, smoothed; ``None`` until measured. Only with a memory limit.
        paused: chunks that gave their slot back while there is no room for their children.
        working: chunks at work: those out on a lane that are not paused.
    """

    flat: bool
    limit: int
    batch: int

    def __init__(self, run: Run, stages: list[Stage], limits: list[int]) -> None:
        super().__init__(run, stages, limits)
        self.growth: float | None = None
        self.paused: list[Chunk] = []
        self.working = 0
        self._favoured = False

    def _chunk_items(self) -> int:
        raise NotImplementedError

    def _share_of_memory(self) -> int | None:
        """Return the bytes that one worker may have in hand, where the run has a memory limit."""
        budget = self.run.budget
        return max(1, budget.limit // (4 * self.limit)) if budget is not None else None

    def _need(self) -> int:
        """Return the bytes that one more chunk is expected to take."""
        return int((self.growth or 0.0) * self._chunk_items() * max(1, self.batch))

    def _reserve(self, chunk: Chunk) -> None:
        """Count what a chunk will take from now on."""
        budget = self.run.budget
        if budget is not None and self.growth and not self.flat and self.out is not None:
            chunk.reserved = int(self.growth * chunk.count)
            budget.add(chunk.reserved)

    def _unreserve(self, chunk: Chunk) -> None:
        """Its values have come, and are counted themselves."""
        if chunk.reserved and self.run.budget is not None:
            self.run.budget.add(-chunk.reserved)
            chunk.reserved = 0

    def _grew(self, items: list[Item], values: list[Any]) -> None:
        """Count what a stage made of some items, and learn by how much they grow."""
        grown = 0
        for item, value in zip(items, values, strict=True):
            grown -= item.size
            self.run.change(item, value)
            grown += item.size
        if items:
            each = max(0.0, grown / len(items))
            self.growth = each if self.growth is None else max(each, 0.8 * self.growth + 0.2 * each)

    def wants_memory(self) -> bool:
        """Tell whether the next chunk waits for the memory that it is expected to take."""
        budget = self.run.budget
        if (
            budget is None
            or self._favoured
            or self.out is None
            or not (self.paused or self.inbox.items or self.inbox.again)
        ):
            return False
        if self.flat:
            return not budget.admits(0)
        if self.growth is None:
            return self.working >= UNKNOWN
        need = self._need()
        return bool(need) and not budget.admits(need)

    def _may_resume(self) -> bool:
        """Tell whether a paused chunk may go on, and put it first."""
        budget = self.run.budget
        if budget is None:
            return True
        for n, chunk in enumerate(self.paused):
            if budget.admits(0, chunk.origin()):
                self.paused.insert(0, self.paused.pop(n))
                return True
        return False

    def favour(self, grace: int) -> bool:
        """Let one fan-out go on past the memory limit; False if none waits for it."""
        budget = self.run.budget
        if budget is None or not self.wants_memory():
            return False
        if self.paused:
            if not any(chunk.origin() is budget.favoured for chunk in self.paused):
                budget.favoured = self.paused[0].origin()
            budget.grace = grace
        else:
            self._favoured = True
        self.run.schedule()
        return True
