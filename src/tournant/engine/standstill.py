"""Says when nothing in a run has moved for a while, and which stage waits for what.

Nothing is kept for this while all goes well: what a worker is at is read from its suspended coroutine, and what a thread is at
from its stack, when there is something to tell.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any

from tournant.engine.barriers import Barrier, Ordered
from tournant.engine.batching import Batcher
from tournant.engine.lineage import Item
from tournant.engine.loop_segment import LoopSegment
from tournant.engine.pool_segment import PoolSegment
from tournant.engine.strays import is_users
from tournant.errors import short
from tournant.guards.finding import Finding

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.engine.segment import Segment

#: Seconds without movement after which a run says so, unless the pipeline or ``TOURNANT_STALL_AFTER`` says otherwise.
AFTER = 30.0
#: Seconds beyond its time by which a look comes only if the loop itself stood still; that is told by whoever watches the loop.
_LATE = 1.0
#: Calls in progress that are named.
_NAMED = 3


def stall_after(asked: float | None) -> float:
    """Return the seconds after which a standstill is told."""
    if asked is not None:
        return asked
    try:
        said = float(os.environ.get("TOURNANT_STALL_AFTER", ""))
    except ValueError:
        return AFTER
    return said if said > 0 else AFTER


class Standstill:
    """Watches one run's movement: told at each look whether there was any."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._after = stall_after(run.pipeline.stall_after)
        self._due = self._after
        self._since = self._looked = perf_counter()
        #: Where in the run's warnings and findings the present standstill stands.
        self._at: tuple[int, int] | None = None

    def look(self, now: float, moved: bool) -> None:
        """Take one look; `moved` also where nobody could expect movement, such as behind a slow consumer."""
        late, self._looked = now - self._looked, now
        if late > _LATE:
            self._since += late
        lasted = now - self._since
        if moved:
            if self._at is not None:
                before = self._run.warnings[self._at[0]]
                self._keep(f"{before} (it went on after {_seconds(lasted)})", lasted)
                self._at = None
            self._since, self._due = now, self._after
        elif lasted >= self._due:
            import logging

            # Told again when it has lasted twice as long, and so on.
            self._due *= 2
            text = f"nothing has moved for {_seconds(lasted)}: {describe(self._run)}"
            logging.getLogger("tournant").warning("%s", text)
            self._keep(text, lasted)

    def _keep(self, text: str, lasted: float) -> None:
        warnings, findings = self._run.warnings, self._run.findings
        finding = Finding("stall", text, seconds=lasted)
        if self._at is None:
            self._at = len(warnings), len(findings)
            warnings.append(text)
            findings.append(finding)
        else:
            warnings[self._at[0]], findings[self._at[1]] = text, finding


def describe(run: Run) -> str:
    """Return which stage of a run waits for what; called on its loop."""
    causes: list[str] = []
    waits: list[str] = []
    for segment, following in zip(run.segments, [*run.segments[1:], None], strict=True):
        if isinstance(segment, LoopSegment):
            causes += _loop_causes(segment)
        elif isinstance(segment, PoolSegment):
            causes += _pool_causes(run, segment)
        else:
            waits += _held(segment)
        behind = following.stages[0].name if following is not None else "the consumer"
        paused = len(segment.paused) if isinstance(segment, PoolSegment) else 0
        if paused:
            waits.append(
                f"{paused} fan-out(s) of stage {_name(segment)} wait for room in front of {behind}"
            )
        elif _waits_for_room(segment):
            waits.append(f"stage {_name(segment)} waits for room in front of {behind}")
    source = run.source
    budget = run.budget
    if budget is not None and budget.waiting:
        waits.append(
            f"results wait for memory ({budget.total:,} of {budget.limit:,} bytes are in use)"
        )
    if source.waiting:
        waits.append("the source waits for room")
    elif not source.done and not source.stopped:
        causes.append(
            f"the source has given nothing{_source_place(run)}, and the stages wait for input"
        )
    if not causes and not waits:
        waits.append("every stage waits for input")
    return "; ".join(causes + waits)


# Loop stages.


def _loop_causes(segment: LoopSegment) -> list[str]:
    now = perf_counter()
    causes = []
    calls: dict[int, list[tuple[float, str]]] = {}
    asking = [0] * len(segment.steps)
    for task in list(segment._tasks):
        chain = list(_awaited(task.get_coro()))
        if len(chain) < 2:
            continue
        here, below = chain[0].f_locals, chain[1].f_code.co_qualname
        step = here.get("i", 0) or 0
        if below.endswith(("Channel.wait_items", "Channel.wait_room", "._form")):
            continue
        if below.endswith(("._enter", "._let_in", "._admit")):
            asking[min(step, len(asking) - 1)] += 1
            continue
        began = here.get("now") or here.get("began") or now
        tasks = ", for the tasks that it left behind" if below == "Strays.settle" else ""
        calls.setdefault(step, []).append((began, f"{_key(here)}{_place(chain[1:])}{tasks}"))
    for n, step in enumerate(segment.steps):
        name = step.stage.name
        if n in calls:
            causes.append(_in_flight(name, calls[n], now))
        if asking[n]:
            gate = f" ({step.gate.describe()})" if step.gate is not None else ""
            what = "its rate or its concurrency" if step.gate is not None else "a place"
            causes.append(f"stage {name}: {asking[n]} call(s) wait for {what}{gate}")
    return causes + _backoff(segment, segment._timers)


def _awaited(coroutine: Any) -> Iterator[FrameType]:
    """Iterate over the frames of a suspended coroutine, from the outermost to the one that waits."""
    frame: FrameType | None = None
    while coroutine is not None:
        before = frame
        frame = next(
            (
                found
                for name in ("cr_frame", "gi_frame", "ag_frame")
                if (found := getattr(coroutine, name, None)) is not None
            ),
            None,
        )
        if frame is not None:
            yield frame
        elif before is not None:
            # What awaits an async generator's next value doesn't tell of which; the fan-out that asked does.
            coroutine = before.f_locals.get("children", before.f_locals.get("iterator"))
            if not hasattr(coroutine, "ag_frame"):
                return
            continue
        coroutine = next(
            (
                found
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if (found := getattr(coroutine, name, None)) is not None
            ),
            None,
        )


def _key(here: dict[str, Any]) -> str:
    item, rows = here.get("item"), here.get("rows")
    if isinstance(item, Item):
        return f"for the input {short(item.origin.key)}"
    if rows:
        return f"for the input {short(rows[0].origin.key)} and {len(rows) - 1} more"
    return "for an input"


def _place(frames: list[FrameType]) -> str:
    """Return where the innermost of the user's own frames stands."""
    users = [frame for frame in frames if is_users(frame.f_code.co_filename)]
    if not users:
        return ""
    frame = users[-1]
    return f", at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _in_flight(name: str, calls: list[tuple[float, str]], now: float) -> str:
    calls.sort()
    shown = [f"{what}, since {_seconds(now - began)}" for began, what in calls[:_NAMED]]
    more = f", and {len(calls) - _NAMED} more" if len(calls) > _NAMED else ""
    return f"stage {name}: {len(calls)} call(s) in flight, {'; '.join(shown)}{more} (timeout= ends calls that hang)"


# Pool stages.


def _pool_causes(run: Run, segment: PoolSegment) -> list[str]:
    now = perf_counter()
    name = _name(segment)
    causes, calls = [], []
    for chunk in list(segment.chunks):
        if chunk.paused or chunk.abandoned:
            continue
        unit = chunk.items[min(chunk.reported, len(chunk.items) - 1)]
        rows = unit if isinstance(unit, list) else [unit]
        what = f"for the input {short(rows[0].origin.key)}"
        if len(rows) > 1:
            what += f" and {len(rows) - 1} more"
        lane = chunk.lane
        process = getattr(lane, "process", None)
        if process is not None:
            what += f", in the worker process {process.pid}"
        elif lane is not None and lane.thread.ident is not None:
            what += _place(list(_stack(lane.thread.ident))[::-1])
        calls.append((max(chunk.sent, chunk.progress), what))
    if calls:
        causes.append(_in_flight(name, calls, now))
    since = run.wants_slot.get(segment)
    if since is not None:
        held = sum(s.working for s in run.pool_segments if not s.blocking)
        others = run.pool.slots.count - held
        who = f"{held} by this run, {max(0, others)} by others"
        causes.append(
            f"stage {name} has waited {_seconds(now - since)} for a slot: all {run.pool.slots.count} are taken ({who})"
        )
    if segment.next is not None and segment.gate is not None:
        causes.append(
            f"stage {name} waits for its rate or its concurrency ({segment.gate.describe()})"
        )
    return causes + _backoff(segment, segment._timers)


def _stack(thread: int) -> Iterator[FrameType]:
    # Safe with the interpreter lock only: without it the frames may be at work.
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


# What both have, and what the others have.


def _backoff(segment: Segment, timers: set[asyncio.TimerHandle]) -> list[str]:
    if not timers:
        return []
    due = min(timer.when() for timer in timers) - segment.run.loop.time()
    return [
        f"stage {_name(segment)}: {len(timers)} attempt(s) wait for their backoff, the next for {_seconds(max(0.0, due))}"
    ]


def _held(segment: Segment) -> list[str]:
    name = _name(segment)
    if isinstance(segment, Ordered):
        if segment._complete:
            return [
                f"stage {name} holds {len(segment._complete)} input(s) back until input number {segment.head + 1} has come through"
            ]
    elif isinstance(segment, Batcher) and segment._rows:
        return [f"stage {name} waits for more to fill a batch of {len(segment._rows)} so far"]
    if isinstance(segment, Barrier) and segment.stats[0].started > segment.stats[0].items_out:
        return [f"stage {name} waits for the rest of its inputs' items"]
    return []


def _waits_for_room(segment: Segment) -> bool:
    out = segment.out
    return out is not None and out.full() and (bool(out.writers) or out.room_wanted)


def _source_place(run: Run) -> str:
    """Return where the source stands."""
    puller = run.source._puller
    if puller is not None:
        thread = puller._thread.ident
        return _place(list(_stack(thread))[::-1]) if thread is not None else ""
    task = next((t for t in run._tasks if t.get_name() == "tournant source"), None)
    return _place(list(_awaited(task.get_coro()))) if task is not None else ""


def _name(segment: Segment) -> str:
    return " + ".join(stage.name for stage in segment.stages)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
