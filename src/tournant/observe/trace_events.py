"""A recording as the lines of a Chrome trace: what `save_trace` writes, one event at a time.

The format is Google's "Trace Event Format", which Perfetto, Chrome's own viewer and speedscope read. Lanes whose slices never overlap
are threads with complete events (``X``). Where slices overlap, as coroutines of a loop stage do, each call is an asynchronous span
(``b``/``e``) and the lane's thread gets an empty ``X`` at its start: arrows can only end at events of threads. Each input is a span of its
own, and a chain of arrows (``s``/``t``/``f``) through the calls that worked for it.

Times are shown in microseconds with three digits behind the point: Perfetto keeps nanoseconds, and drops a slice that begins one before
its predecessor ends, which other digits would bring about. Where a time was no whole nanosecond its exact value in seconds stands
in ``exact``, which viewers pass over, so a recording that is read back is the very same one.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from tournant.observe.recording import FAILED, Recording, Slice, Stage

VERSION = 1
#: Categories: a call, the start of an overlapping call, an input's life, what an input was in, a mark.
WORK, START, INPUT, STEP, MARK = "work", "start", "input", "step", "mark"
#: With more calls times inputs than this, an input's span does not show what it was in.
STEPS_AT_MOST = 20_000
#: With more calls times inputs than this, only every so many-th input has arrows.
ARROWS_AT_MOST = 100_000

_ODD = re.compile("[\ud800-\udfff\U0010f7ff-\U0010ffff]")
_LITERAL, _FIRST, _LAST = "\U0010f7ff", 0x10F800, 0x10FFFF
_HIDDEN = re.compile("\U0010f7ff(.)|[\U0010f800-\U0010ffff]", re.DOTALL)


def lines(recording: Recording) -> Iterator[str]:
    """Return the text of the trace in pieces, each ending with a newline.

    Raises:
        ValueError: a time of the recording is not a finite number.
    """
    places = _Places(recording)
    yield f'{{"displayTimeUnit":"ms","otherData":{_json(_about(recording, places))},\n"traceEvents":[\n'
    first = True
    for event in _events(recording, places):
        yield event + "\n" if first else "," + event + "\n"
        first = False
    yield "]}\n"


def _stage(stage: Stage) -> list[Any]:
    said: list[Any] = [plain(stage.name), plain(stage.on)]
    return said if stage.computing is None else [*said, stage.computing]


def plain(text: str) -> str:
    """Return text that every JSON parser takes: the stray halves of surrogate pairs, as file names hold them, become private letters.

    `original` takes it back.
    """
    return _ODD.sub(_hide, text) if _ODD.search(text) else text


def original(text: str) -> str:
    """Undo `plain`."""
    return _HIDDEN.sub(_reveal, text) if _ODD.search(text) else text


def read_time(micro: float) -> float:
    """Return the seconds for which `_Span` wrote these microseconds without ``exact``."""
    return round(micro * 1_000) / 1e9


class _Span:
    """A stretch of time, as an event says it.

    Attributes:
        at: When it begins, as text in microseconds.
        to: When it ends.
        dur: How long it lasts.
        exact: A member of the event that holds both in seconds, with a comma before it; empty where they are whole nanoseconds.

    Raises:
        ValueError: a time is not a finite number.
    """

    __slots__ = ("at", "dur", "exact", "to")

    def __init__(self, began: float, ended: float) -> None:
        try:
            first, last = round(began * 1e9), round(ended * 1e9)
        except (ValueError, OverflowError):
            raise ValueError(f"a time is {began} or {ended}") from None
        self.at, self.to, self.dur = _micro(first), _micro(last), _micro(last - first)
        whole = first / 1e9 == began and last / 1e9 == ended and abs(first) + abs(last) < 2**52
        self.exact = "" if whole else f',"exact":[{float(began)!r},{float(ended)!r}]'


def _micro(nanoseconds: int) -> str:
    return f"{nanoseconds / 1_000:.3f}"


class _Places:
    """Which process and thread of the trace each lane, counter and input is shown as.

    Attributes:
        groups: The groups of lanes and counters; each is a process.
        pids: The process of each lane.
        overlapping: Whether the lane's slices are asynchronous spans, by lane.
        inputs_pid: The process under which the inputs' lives are shown.
        arrows_every: Of how many inputs one has arrows; 1 where all have.
        steps: Whether inputs show what they were in.
        last: The last slice of each input that has arrows, by number.
    """

    def __init__(self, recording: Recording) -> None:
        names = [lane.group for lane in recording.lanes] + [c.group for c in recording.counters]
        self.groups = list(dict.fromkeys(names)) or [""]
        number = {group: n for n, group in enumerate(self.groups, 1)}
        self.pid_of = number
        self.pids = [number[lane.group] for lane in recording.lanes]
        self.overlapping = overlapping(recording)
        self.inputs_pid = len(self.groups) + 1
        pairs = sum(len(one.inputs) for one in recording.slices)
        self.arrows_every = max(1, math.ceil(pairs / ARROWS_AT_MOST))
        self.steps = pairs <= STEPS_AT_MOST
        self.last: dict[int, int] = {}
        for n, one in enumerate(recording.slices):
            for given in one.inputs:
                if given % self.arrows_every == 0:
                    self.last[given] = n


def overlapping(recording: Recording) -> list[bool]:
    """Tell for each lane whether its slices overlap, or may: those of the loop, and any lane where one begins before another ends."""
    found = [lane.kind == "loop" for lane in recording.lanes]
    ends = [-math.inf] * len(recording.lanes)
    for one in recording.slices:
        if one.began < ends[one.lane]:
            found[one.lane] = True
        ends[one.lane] = max(ends[one.lane], one.ended)
    return found


def _about(recording: Recording, places: _Places) -> dict[str, Any]:
    """Return what the events can't carry."""
    counters = [
        [
            plain(one.name),
            plain(one.unit),
            plain(one.group),
            len(one.samples),
            # JSON has no infinity, which a limit may well be.
            {
                str(n): [float(at), repr(float(value))]
                for n, (at, value) in enumerate(one.samples)
                if not math.isfinite(value)
            },
        ]
        for one in recording.counters
    ]
    return {
        "tournant": VERSION,
        "title": plain(recording.title),
        "began": recording.began,
        "duration": recording.duration,
        "cores": recording.cores,
        "stages": [_stage(stage) for stage in recording.stages],
        "lanes": [
            [plain(lane.kind), plain(lane.name), lane.pid, plain(lane.group)]
            for lane in recording.lanes
        ],
        "counters": counters,
        "slices": len(recording.slices),
        "inputs": len(recording.inputs),
        "marks": len(recording.marks),
        "lost": recording.lost,
        "arrows_every": places.arrows_every,
        "summary": plain(recording.summary),
    }


def _events(recording: Recording, places: _Places) -> Iterator[str]:
    yield from _names(recording, places)
    yield from _slices(recording, places)
    yield from _inputs(recording, places)
    for counter in recording.counters:
        head = f'{{"ph":"C","pid":{places.pid_of[counter.group]},"name":{_json(counter.name)},"ts":'
        unit = _json(counter.unit or "value")
        for at, value in counter.samples:
            if math.isfinite(value):
                when = _Span(at, at)
                yield f'{head}{when.at},"args":{{{unit}:{float(value)!r}}}{when.exact}}}'
    yield from _marks(recording, places)


def _names(recording: Recording, places: _Places) -> Iterator[str]:
    def named(kind: str, pid: int, tid: int, **args: Any) -> str:
        return _json({"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args})

    for pid, group in enumerate([*places.groups, "inputs"], 1):
        yield named("process_name", pid, 0, name=plain(group or recording.title or "run"))
        yield named("process_sort_index", pid, 0, sort_index=pid)
    for n, lane in enumerate(recording.lanes):
        name = f"{lane.name} (pid {lane.pid})" if lane.pid else lane.name
        yield named("thread_name", places.pids[n], n + 1, name=plain(name))
        yield named("thread_sort_index", places.pids[n], n + 1, sort_index=n + 1)


def _slices(recording: Recording, places: _Places) -> Iterator[str]:
    inputs, stages = recording.inputs, recording.stages
    names = [_json(stage.name) for stage in stages]
    unique = len({stage.name for stage in stages}) == len(stages)
    started: set[int] = set()
    for n, one in enumerate(recording.slices):
        lane = one.lane
        where = f'"pid":{places.pids[lane]},"tid":{lane + 1}'
        span = _Span(one.began, one.ended)
        at = span.at
        staged = one.stage >= 0
        name = _json(one.label) if one.label else names[one.stage] if staged else '"other"'
        args = [f'"stage":{names[one.stage]}'] if staged else []
        if staged and not unique:
            args.append(f'"stage_number":{one.stage}')
        if one.label:
            args.append('"labelled":true')
        args.append(f'"items":{one.items},"outcome":{_json(one.outcome)}')
        if one.waited:
            args.append(f'"waited":{_finite(one.waited)!r}')
        if one.inputs:
            args.append(f'"inputs":"{ranges(one.inputs)}"')
            known = inputs.get(one.inputs[0])
            if known is not None:
                more = len(one.inputs) - 1
                args.append(
                    f'"key":{_json(f"{known.key} and {more:,} more" if more else known.key)}'
                )
        rest = f'"ts":{at},"dur":{span.dur},"name":{name},"args":{{{",".join(args)}}}{span.exact}'
        if one.outcome == FAILED:
            rest += ',"cname":"terrible"'
        if places.overlapping[lane]:
            id2 = f'"id2":{{"local":"w{n}"}}'
            yield f'{{"ph":"b","cat":"{WORK}",{where},{id2},{rest}}}'
            yield f'{{"ph":"e","cat":"{WORK}",{where},{id2},"ts":{span.to},"name":{name}}}'
            if one.inputs:
                yield f'{{"ph":"X","cat":"{START}",{where},"ts":{at},"dur":0,"name":{name}}}'
        else:
            yield f'{{"ph":"X","cat":"{WORK}",{where},{rest}}}'
        for given in dict.fromkeys(one.inputs):
            end = places.last.get(given)
            if end is None or (end == n and given not in started):
                continue
            phase = "f" if end == n else "t" if given in started else "s"
            started.add(given)
            binding = ',"bp":"e"' if phase == "f" else ""
            yield f'{{"ph":"{phase}","cat":"flow",{where},"ts":{at},"id":{given},"name":"input"{binding}}}'


def _inputs(recording: Recording, places: _Places) -> Iterator[str]:
    steps: dict[int, list[Slice]] = defaultdict(list)
    if places.steps:
        for one in recording.slices:
            for given in one.inputs:
                steps[given].append(one)
    for given, life in recording.inputs.items():
        head = f'"cat":"{INPUT}","pid":{places.inputs_pid},"tid":0,"id2":{{"local":"i{given}"}}'
        whole = _Span(life.began, life.ended)
        args = f'{{"input":{given},"key":{_json(life.key)},"outcome":{_json(life.outcome)}}}'
        yield f'{{"ph":"b",{head},"ts":{whole.at},"dur":{whole.dur},"name":"input","args":{args}{whole.exact}}}'
        within = steps.get(given, ())
        for n, one in enumerate(within):
            until = within[n + 1].began if n + 1 < len(within) else life.ended
            start, end = max(one.began, life.began), min(one.ended, until, life.ended)
            if start < end and one.stage >= 0:
                name = _json(recording.stages[one.stage].name)
                part = _Span(start, end)
                yield f'{{"ph":"b",{head},"ts":{part.at},"name":{name},"args":{{"step":true}}}}'
                yield f'{{"ph":"e",{head},"ts":{part.to},"name":{name}}}'
        yield f'{{"ph":"e",{head},"ts":{whole.to},"name":"input"}}'


def _marks(recording: Recording, places: _Places) -> Iterator[str]:
    for n, mark in enumerate(recording.marks):
        pid = places.pids[mark.lane] if mark.lane >= 0 else 1
        head = f'"cat":"{MARK}","pid":{pid},"tid":{mark.lane + 1},"name":{_json(mark.kind)}'
        span = _Span(mark.at, mark.at + mark.lasted)
        args = f'"args":{{"text":{_json(mark.text)},"lasted":{float(mark.lasted)!r}}}{span.exact}'
        if not mark.lasted:
            scope = "t" if mark.lane >= 0 else "g"
            yield f'{{"ph":"i",{head},"ts":{span.at},"s":"{scope}",{args}}}'
            continue
        id2 = f'"id2":{{"local":"m{n}"}}'
        yield f'{{"ph":"b",{head},"ts":{span.at},"dur":{span.dur},{id2},{args}}}'
        yield f'{{"ph":"e",{head},"ts":{span.to},{id2}}}'


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers in short: ``(0, 1, 2, 7)`` is ``"0-2,7"``. Their order is kept."""
    parts: list[str] = []
    n = 0
    while n < len(numbers):
        end = n
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        parts.append(str(numbers[n]) if end == n else f"{numbers[n]}-{numbers[end]}")
        n = end + 1
    return ",".join(parts)


def numbers(text: str) -> tuple[int, ...]:
    """Undo `ranges`."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a length of time is {value}")
    return float(value)


def _json(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(plain(value))
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _hide(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(code - 0xD800 + _FIRST) if code <= 0xDFFF else _LITERAL + match[0]


def _reveal(match: re.Match[str]) -> str:
    return match[1] or chr(ord(match[0]) - _FIRST + 0xD800)
