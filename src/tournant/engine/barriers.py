"""Stages that hold an input's items until all of them are there: ``gather`` and ``ordered``.

Both hold what arrives of an input until as many items have arrived as are alive. Then ``gather`` sends them on as one
`Group`; ``ordered`` sends them on when every earlier input has been sent or has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.lineage import DROPPED, FAILED, REFUSED, Input, Item
from tournant.engine.segment import Segment
from tournant.observe import recording
from tournant.observe.recording import CANCELLED, OK

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.stages import Stage


class Group(list[Any]):
    """All results of one input, in order: what ``gather`` gives. A list that knows whose results it holds.

    Attributes:
        key: the input's key.
    """

    __slots__ = ("key",)

    def __init__(self, values: Any = (), key: Any = None) -> None:
        super().__init__(values)
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (list(self), self.key)

    def __repr__(self) -> str:
        return f"Group({list.__repr__(self)}, key={self.key!r})"


class Barrier(Segment):
    """A segment that lets all of an input's items pass together."""

    #: The barrier after this one, which released items head for.
    next_barrier: Barrier | None = None

    def __init__(self, run: Run, stages: list[Stage]) -> None:
        super().__init__(run, stages, [1])
        self.ready: deque[Item] = deque()
        #: By the number of an input: when the first of what is held of it came, and what is held.
        self._since: dict[int, tuple[float, list[Item]]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to move items."""
        self._task = self.run.spawn(self._move(), f"tournant {self.stages[0].name}")

    def descendant_ended(self, origin: Input) -> None:
        """An item of `origin` ended on its way here: perhaps all that live have arrived now."""
        held = len(origin.held) if origin.held is not None else 0
        if origin.pending == held:
            self.complete(origin)

    def complete(self, origin: Input) -> None:
        """Every live item of `origin` has arrived."""
        raise NotImplementedError

    def released(self, number: int, items: int, outcome: str = OK) -> None:
        """Note that an input is held no longer."""
        found = self._since.pop(number, None)
        if found is not None:
            self.stats[0].calls.say(found[0], perf_counter(), number, items, outcome)

    async def _move(self) -> None:
        inbox, stats, ready, events = self.inbox, self.stats[0], self.ready, self.run.events
        items = inbox.items
        while not self.run.halted:
            if ready:
                await self._release()
            if not items:
                if inbox.closed:
                    if not ready:
                        break
                    continue
                began = perf_counter()
                await inbox.wait_items()
                stats.wait_input += perf_counter() - began
                continue
            while items:
                item = items.popleft()
                stats.started += 1
                origin = item.origin
                assert isinstance(origin, Input)
                held = origin.held
                if held is None:
                    held = origin.held = []
                    if events.on:
                        self._since[origin.index] = perf_counter(), held
                held.append(item)
                if len(held) == origin.pending:
                    self.complete(origin)
                if ready and self.out is not None and self.out.full():
                    break
            if inbox.writers or inbox.room_wanted:
                inbox.removed()
        self.finish()

    async def _release(self) -> None:
        ready, out, run, stats = self.ready, self.out, self.run, self.stats[0]
        while ready:
            if out is not None and out.full():
                await out.wait_room()
            if run.halted or not ready:
                return
            item = ready.popleft()
            stats.left += 1
            stats.items_out += 1
            if out is None:
                run.arrive(item)
            else:
                out.items.append(item)
                out.added()

    def halt(self) -> None:
        """Drop what is held, and what waits for room."""
        for number, (_, held) in list(self._since.items()):
            self.released(number, len(held), CANCELLED)
        self.ready.clear()
        super().halt()

    def wake(self) -> None:
        """Have the mover look at `ready`."""
        self.inbox.threshold = 0
        self.inbox.added()
        self.inbox.threshold = 1


class Gather(Barrier):
    """``gather``: one `Group` per input."""

    def complete(self, origin: Input) -> None:
        """Send the input's items on as one group, or end an input of which an item failed."""
        held = sorted(origin.held or (), key=lambda item: item.pos)
        origin.held = None
        run = self.run
        size = sum(item.size for item in held)
        broken = origin.state & (FAILED | REFUSED)
        self.released(origin.index, len(held), recording.FAILED if broken else OK)
        if broken:
            if run.budget is not None:
                run.budget.add(-size)
            origin.pending = 0
            origin.barrier = None
            run.close_input(origin)
            return
        group = Item(Group((item.value for item in held), origin.key), origin, (), size)
        origin.pending = 1
        origin.state &= ~DROPPED
        origin.barrier = self.next_barrier
        self.ready.append(group)
        self.wake()


class Ordered(Barrier):
    """``ordered``: items leave in the source's order.

    Attributes:
        window: inputs that the source may be ahead of `head`.
        head: index of the input whose items leave next.
    """

    def __init__(self, run: Run, stages: list[Stage]) -> None:
        super().__init__(run, stages)
        self.window = stages[0].window
        self.head = 0
        #: By index: items to release, an input that goes on empty, or nothing.
        self._complete: dict[int, list[Item] | Input | None] = {}

    def complete(self, origin: Input) -> None:
        """Remember the input's items until its turn comes."""
        held, origin.held = origin.held, None
        origin.barrier = self.next_barrier
        if held:
            if len(held) > 1:
                held.sort(key=lambda item: item.pos)
            self._complete[origin.index] = held
        elif self.next_barrier is not None:
            # Everything of it ended on the way, but a gather may have to make an empty group of that.
            self._complete[origin.index] = origin
        else:
            self._complete[origin.index] = None
            self.run.close_input(origin)
        self._advance()

    def input_closed(self, origin: Input) -> None:
        """An input ended before this barrier was its next: its turn must not be waited for."""
        if origin.index >= self.head and origin.index not in self._complete:
            self._complete[origin.index] = None
            self._advance()

    def _advance(self) -> None:
        before = self.head
        while self.head in self._complete:
            held = self._complete.pop(self.head)
            self.head += 1
            if isinstance(held, Input):
                assert held.barrier is not None
                held.barrier.descendant_ended(held)
            elif held:
                self.released(self.head - 1, len(held))
                self.ready.extend(held)
        if self.head != before:
            self.run.window_moved()
            if self.ready:
                self.wake()

    def halt(self) -> None:
        """Drop what waits for its turn."""
        self._complete.clear()
        super().halt()
