"""What a pool segment and the run's lookout tell the run's events: a stretch per part of a chunk, a sample of the queues now and then."""

from __future__ import annotations

from array import array
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.observe.events import HEAVY, Call, Events, Odd, Stretch
from tournant.observe.recording import CANCELLED, FAILED, OK, RETRIED

if TYPE_CHECKING:
    from tournant.engine.chunk import Chunk
    from tournant.engine.recovery import Recovery
    from tournant.engine.run import Run
    from tournant.pool.steps import Part


def record(run: Run) -> Events:
    """Return the events of a run whose segments have been built, and tell each of them its ring."""
    stats = [each for segment in run.segments for each in segment.stats]
    queues = [segment.stages[0].name for segment in run.segments]
    if run.results is not None:
        queues.append("results")
    events = Events(
        [(each.name, each.on) for each in stats], queues, began=run.began, inline=run.inline
    )
    first = 0
    for segment in run.segments:
        segment.record(events, first)
        first += len(segment.stats)
    return events


def note_failed(chunk: Chunk, unit: int, step: int, again: bool) -> None:
    """Remember, until the part is recorded, that one of its units failed in `step`."""
    chunk.odd.append(Odd(unit, step, RETRIED if again else FAILED, False))


def note_dropped(chunk: Chunk, unit: int, step: int) -> None:
    """The same for one that a filter dropped."""
    chunk.odd.append(Odd(unit, step, OK, True))


def note_part(segment: Recovery, chunk: Chunk, part: Part, begin: int) -> None:
    """Record the stretch of work that `part` tells of, whose units are those of `chunk` from `begin` on."""
    units: list[Any] = chunk.items[begin : chunk.reported]
    odd, chunk.odd = chunk.odd, []
    began = max(part.since, chunk.told)
    sizes = None
    if units and isinstance(units[0], list):
        sizes = tuple(map(len, units))
        who = array("q", [row.origin.index for rows in units for row in rows])
    else:
        who = array("q", [item.origin.index for item in units])
    spent = [sum(column) for column in part.times]
    total = sum(spent)
    going_on = None
    if segment.flat and not part.last and chunk.reported < len(chunk.items):
        going_on = chunk.items[chunk.reported].origin.index
    if segment.flat:
        ended = max(began, part.sent)
    else:
        # The part may have waited for its chunk-mates, but what it tells of was done at a stretch.
        ended = began + total
    failed = any(one.outcome != OK for one in odd)
    times: tuple[Any, ...]
    if failed or segment.flat or total >= HEAVY * max(1, len(units)):
        times = tuple(array("d", column) for column in part.times)
        odd = _placed(segment, odd, part, len(units))
    else:
        times = tuple(zip(spent, map(len, part.times), strict=True))
        odd = []
    segment.stretches.add(
        Stretch(_lane(segment, chunk), began, ended, who, sizes, times, odd, chunk.waited, segment.flat, going_on)
    )  # fmt: skip
    if part.used is not None:
        segment.stretches.measured(len(part.times), *part.used)
    chunk.told, chunk.waited = ended, 0.0
    if segment.run.events.wants_sample(part.sent):
        look(segment.run, part.sent)


def _placed(segment: Recovery, odd: list[Odd], part: Part, units: int) -> list[Odd]:
    """Say of failures whether the part tells their seconds, and of those that were no call's, what they were.

    Two kinds of failure have no step: a value that could not be sent to the worker, and a result that could not be sent back.
    """
    last = len(segment.stages) - 1
    single = last == 0 and segment.stages[0].kind in ("map", "map_batches")
    placed = []
    unsent = units - len(part.times[0])
    for one in odd:
        step, timed = one.step, one.timed
        if one.outcome != OK and step is not None:
            if step < 0:
                if unsent <= 0:
                    step, timed = None, True
            else:
                timed = single or (segment.flat and step == last)
            if not timed and step is not None and step <= 0:
                unsent -= 1
        placed.append(Odd(one.unit, step, one.outcome, timed))
    return placed


def note_rest(segment: Recovery, chunk: Chunk, rest: list[Any], before: int) -> None:
    """Record that a worker was at the units `rest` when it came to nothing.

    Args:
        segment: whose chunk it is.
        chunk: the chunk.
        rest: what it had not told of.
        before: `StageStats.started` before they were dealt with: what is tried again was taken out of it.
    """
    if not rest or not segment.run.events.on:
        return
    who = _rows(rest)
    again = before - segment.stats[0].started
    failed = len(who) - again
    now = perf_counter()
    if again and failed:
        # One is to blame, the first; the others had not begun.
        _say(segment, chunk, now, who[:failed], FAILED)
        chunk.told = now
        _say(segment, chunk, now, who[failed:], RETRIED)
    else:
        _say(segment, chunk, now, who, FAILED if failed else RETRIED)
    chunk.told = now


def note_cancelled(segment: Recovery, chunk: Chunk) -> None:
    """Record that a chunk has been given up."""
    rest = _rows(chunk.items[chunk.reported :])
    if rest and segment.run.events.on and not chunk.abandoned:
        _say(segment, chunk, perf_counter(), rest, CANCELLED)


def note_death(segment: Recovery, chunk: Chunk, how: str, rest: list[Any]) -> None:
    """Mark the death of a worker process."""
    pid = chunk.lane.pid if chunk.lane is not None else 0
    name = segment.stages[0].name
    why = "it took too long" if chunk.timed_out else how
    segment.run.events.mark(
        "worker",
        f"worker process {pid} died ({why}) with {len(_rows(rest))} item(s) of stage {name}",
    )


def _rows(units: list[Any]) -> array[int]:
    numbers: list[int] = []
    for unit in units:
        rows = unit if isinstance(unit, list) else (unit,)
        numbers += [row.origin.index for row in rows]
    return array("q", numbers)


def _say(segment: Recovery, chunk: Chunk, now: float, who: array[int], outcome: str) -> None:
    began = chunk.told or now
    segment.stats[0].calls.put(
        Call(began, now, who, len(who), outcome, chunk.waited, _lane(segment, chunk))
    )


def _lane(segment: Recovery, chunk: Chunk) -> int:
    lane = chunk.lane
    assert lane is not None
    return segment.run.events.lane(lane.kind, lane.name, lane.pid, lane.since)


def look(run: Run, now: float) -> None:
    """Sample the queues, and the limits if they have changed; called with every part, and every few dozen milliseconds."""
    events = run.events
    if not events.on:
        return
    events.inputs.look(now)
    if not events.wants_sample(now):
        return
    depths = [segment.queued() for segment in run.segments]
    if run.results is not None:
        depths.append(len(run.results.items))
    events.sample(now, tuple(depths))
    for gate in run.gates:
        gate.tell(events, now)
