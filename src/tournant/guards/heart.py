"""The heartbeat of one event loop, and what its silence means.

The loop's side is one timer that notes when it rang and how much CPU time the thread had used. All else happens on the watchdog
thread, which reads the loop's stack when a beat is overdue, again and again until it comes, and then judges the whole block: who
stood there all the time, and what for. Many short callbacks in a row are nobody's mistake, so a block counts only while one and the
same step of one task (or one callback) holds the loop.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from time import perf_counter
from types import FrameType
from typing import Any, Protocol

from tournant.guards import patrol, pauses, places, waits
from tournant.guards.block import Block, Suspect
from tournant.guards.clocks import queued_seconds

#: Seconds between two beats, and by which one is late before the stack is read.
BEAT, OVERDUE = 0.025, 0.025
#: Seconds after which a block that still lasts is looked into for a deadlock, and then told of in any case.
HANGS, TELL = 1.0, 5.0
_THREAD_START = threading.Thread.start.__code__
_RUNS = ("_run_once", "run_forever")


class Listener(Protocol):
    """Who wants to hear of blocks. Called on the watchdog thread."""

    threshold: float

    def stage_of(self, frames: list[FrameType], task: Any) -> str | None:
        """Name the stage that a stack (the innermost frame first) belongs to; ``None`` if it is none of yours."""

    def blocked(self, block: Block) -> None:
        """Take a block that has ended, or that lasts (`Block.lasting`)."""


class Heart:
    """Watches one loop for everybody who listens. Use `listen` and `unlisten`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.listeners: list[Listener] = []
        self.thread = threading.get_ident()
        self.native = threading.get_native_id()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._cpu = 0.0
        #: The Python frame that the loop runs in, where the loop itself is not Python.
        self._base: FrameType | None = None
        #: (due, rang, CPU seconds since the beat before) of late beats that the watchdog has not seen yet.
        self._rang: deque[tuple[float, float, float]] = deque(maxlen=16)
        self._block: Block | None = None
        self._queued = 0.0
        self._not_running = 0.0
        self._native_loop = not isinstance(loop, asyncio.BaseEventLoop)
        self.stopped = False
        # The watchdog looks, and whoever stops the heart looks back, one at a time.
        self._looking = threading.RLock()

    def start(self) -> None:
        """Begin; called on the loop's thread."""
        self._cpu = time.thread_time()
        self._due = perf_counter()
        self._queued = queued_seconds(self.native) or 0.0
        pauses.watch()
        self._timer = self.loop.call_later(0.0, self._beat)
        patrol.join(self)

    def stop(self) -> None:
        """End; called on the loop's thread, or when the loop is closed."""
        if self.stopped:
            return
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if perf_counter() - self._due > OVERDUE:
            # What blocks the loop may be the very step that stops us: this is its end.
            self._rang.append((self._due, perf_counter(), time.thread_time() - self._cpu))
        patrol.leave(self)
        pauses.unwatch()
        with self._looking:
            self._look_back()
            self._base = None
            self._block = None

    def _beat(self) -> None:
        now, cpu = perf_counter(), time.thread_time()
        if now - self._due > OVERDUE:
            self._rang.append((self._due, now, cpu - self._cpu))
        if self._native_loop:
            self._base = sys._getframe().f_back
        self._cpu = cpu
        self._due = now + BEAT
        self._timer = self.loop.call_later(BEAT, self._beat)

    # On the watchdog thread.

    def hurry(self) -> bool:
        """Look again soon while a block lasts, but not for ever."""
        return self._block is not None and self._block.looks < 100

    def look(self, tick: patrol.Tick) -> None:
        """See whether the beat is overdue."""
        _ = tick.cpu  # the next look wants to know who has worked since
        with self._looking:
            if not self.stopped:
                self._look(tick)

    def flush(self) -> None:
        """Tell of every block that has ended."""
        with self._looking:
            self._look_back()

    def _look(self, tick: patrol.Tick) -> None:
        loop = self.loop
        if self._rang:
            self._look_back(tick)
        if not loop.is_running():
            self._not_running = tick.now
            self._block = None
            if loop.is_closed():
                patrol.leave(self)
            return
        due = max(self._due, self._not_running)
        late = tick.now - due
        if late < OVERDUE:
            if self._block is None:
                self._queued = queued_seconds(self.native) or 0.0
            return
        if self._block is None or self._block.due != self._due:
            self._block = Block(self._due, due, self._queued)
        self._read(self._block, tick)

    def _read(self, block: Block, tick: patrol.Tick) -> None:
        """Read the stack into `block`."""
        frames, task = self._stack()
        guilty = places.culprit(frames) if frames else None
        # Before anything that may give the interpreter lock away, and let the loop go on.
        place = places.place_of(guilty) if guilty is not None else None
        stood = (guilty.f_lasti, frames[0].f_lasti, len(frames)) if guilty is not None else ()
        if self._rang and self._rang[-1][0] == block.due:
            return  # It came while we looked: this is the stack of something else.
        identity: Any = task
        if not frames:
            identity = None
        elif task is None:
            identity = frames[-1]
        before = block.suspects[-1] if block.suspects else None
        stages: list[tuple[Any, str | None]] = []
        if place is not None and (before is None or before.identity is not identity):
            stages = [(one, one.stage_of(frames, task)) for one in list(self.listeners)]
        block.seen(tick, self.native)
        worked, unseen = block.worked_since(self._used(), tick.blind)
        suspect = before
        if suspect is None or suspect.identity is not identity:
            since = block.began if suspect is None else max(suspect.until, tick.now - tick.late)
            since = min(tick.now, since + unseen)
            suspect = Suspect(identity, task, since)
            suspect.stages = stages
            block.suspects.append(suspect)
            worked -= unseen
        suspect.until = tick.now
        suspect.cpu += worked
        if place is None:
            return
        suspect.places[place] += 1
        suspect.stood.add(stood)
        if place not in suspect.stacks:
            suspect.stacks[place] = places.written(frames)
        if suspect.places.total() == 1:
            suspect.debugged = places.debugged(frames)
            suspect.importing = any("<frozen importlib" in f.f_code.co_filename for f in frames)
            suspect.starting = any(frame.f_code is _THREAD_START for frame in frames[:6])
            if block.holding is None:
                block.holding = waits.holding(frames)
        lasted = tick.now - block.began
        if lasted > HANGS and not block.examined:
            block.examined = True
            block.wait = waits.examine(frames, task, self.loop, self.thread)
            if block.wait is not None and block.wait.deadlock:
                self._tell(block, tick.now, lasting=True)
        if lasted > TELL and not block.told:
            self._tell(block, tick.now, lasting=True)

    def _stack(self) -> tuple[list[FrameType], Any]:
        """Return the frames that the loop has called, the innermost first, and the task in work."""
        frames = places.frames_of(self.thread)
        task = asyncio.current_task(self.loop)
        for n, frame in enumerate(frames):
            if frame is self._base:
                return frames[:n], task
            code = frame.f_code
            if code.co_name in _RUNS and code.co_filename.endswith("base_events.py"):
                # In between there is the frame of the callback's handle; without one, the loop selects or tidies up.
                inner = frames[:n]
                if not inner or inner[-1].f_code.co_name != "_run":
                    return [], None
                return inner, task
        if task is not None and (coroutine := getattr(task.get_coro(), "cr_frame", None)):
            for n, frame in enumerate(frames):
                if frame is coroutine:
                    return frames[: n + 1], task
        return [], None

    def _look_back(self, tick: patrol.Tick | None = None) -> None:
        """Judge the blocks that have ended."""
        while self._rang:
            due, rang, cpu = self._rang.popleft()
            block = self._block
            if block is None or block.due != due:
                # The watchdog came later than the beat: something held up both.
                block = Block(due, max(due, self._not_running), self._queued)
                if rang <= block.began:
                    continue
            else:
                self._block = None
            if tick is not None and tick.now - tick.late < rang:
                block.seen(tick, self.native)
            worked, unseen = block.worked_since(cpu, tick.blind if tick is not None else cpu)
            block.queued = max(0.0, (queued_seconds(self.native) or 0.0) - block.queued_before)
            if block.suspects:
                last = block.suspects[-1]
                last.until = max(last.until, rang - unseen)
                last.cpu += worked - unseen
            self._tell(block, rang)

    def _tell(self, block: Block, now: float, *, lasting: bool = False) -> None:
        block.ended, block.lasting = now, lasting
        if lasting:
            block.told = True
            block.cpu = self._used()
            block.queued = max(0.0, (queued_seconds(self.native) or 0.0) - block.queued_before)
        block.paused = pauses.seconds(block.began, now)
        suspect = block.suspect()
        stages = {id(one): stage for one, stage in (suspect.stages if suspect else ())}
        claimed = next((stage for stage in stages.values() if stage is not None), None)
        for listener in list(self.listeners):
            mine = stages.get(id(listener))
            if claimed is not None and mine is None and getattr(listener, "choosy", False):
                continue  # It belongs to another run on this loop.
            block.stage = mine if mine is not None else claimed
            listener.blocked(block)

    def _used(self) -> float:
        from tournant.guards.clocks import cpu_seconds

        return max(0.0, (cpu_seconds(self.native) or self._cpu) - self._cpu)


_hearts: dict[int, Heart] = {}


def listen(listener: Listener) -> Heart:
    """Have `listener` hear of what blocks the loop that runs in this thread."""
    loop = asyncio.get_running_loop()
    return listen_to(loop, listener)


def listen_to(loop: asyncio.AbstractEventLoop, listener: Listener) -> Heart:
    """The same for a loop that is about to run in this thread."""
    heart = _hearts.get(id(loop))
    if (
        heart is None
        or heart.loop is not loop
        or heart.stopped
        or heart.thread != threading.get_ident()
    ):
        heart = _hearts[id(loop)] = Heart(loop)
        heart.listeners.append(listener)
        heart.start()
    elif listener not in heart.listeners:
        heart.listeners.append(listener)
    return heart


def unlisten(heart: Heart, listener: Listener) -> None:
    """Let `listener` hear no more; called on the loop's thread, or when the loop has ended."""
    if len(heart.listeners) == 1 and listener in heart.listeners:
        heart.stop()
        if _hearts.get(id(heart.loop)) is heart:
            del _hearts[id(heart.loop)]
    else:
        heart.flush()
    if listener in heart.listeners:
        heart.listeners.remove(listener)
