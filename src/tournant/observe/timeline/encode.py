"""A recording as bytes that a browser reads without copying: one JSON header with the texts, then columns of numbers.

Columns are little-endian typed arrays, sorted times as differences, so that deflate finds the repetition in them. Texts are JSON in
ASCII; the whole is one base64 block, so nothing that a user named can be taken for markup.

Layout of the inflated bytes: the header's length (4 bytes), the header, then the columns; every part begins at a multiple of 8. A column
is named in the header as ``[type, offset from the end of the header, number of values]``.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from tournant.observe.recording import (
    CANCELLED,
    FAILED,
    OK,
    RETRIED,
    Counter,
    InputSpan,
    Mark,
    Recording,
    Slice,
)

#: The version of the layout, which the page checks.
VERSION = 1
#: What `Slice.outcome` and `InputSpan.outcome` become; the page has the same lists.
OUTCOMES = (OK, FAILED, RETRIED, CANCELLED)
ENDINGS = ("done", "failed", "filtered", "skipped", "interrupted")
#: Times are whole ticks below this: they fill 32 bits.
_TICKS = 2**32 - 2
#: The shortest tick, in seconds: finer than any clock that slices are measured with.
_FINEST = 1e-7


class _Columns:
    """The columns of all recordings, one after the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, kind: str, values: Iterable[float]) -> list[Any]:
        """Append a column; return what the header says of it. ``kind`` is a type code of `array`."""
        column = array(kind, values)
        if sys.byteorder == "big":
            column.byteswap()
        data = column.tobytes()
        where = [f"{kind}{column.itemsize}", self.size, len(column)]
        self.parts.append(data + bytes(-len(data) % 8))
        self.size += len(self.parts[-1])
        return where


def encode(recordings: Sequence[Recording]) -> str:
    """Return the recordings as base64 of raw deflate (RFC 1951) of the layout above.

    Raises:
        ValueError: a slice or a mark names a lane or a stage that its recording does not have.
    """
    columns = _Columns()
    header = {
        "version": VERSION,
        "recordings": [_recording(one, columns) for one in recordings],
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-(len(text) + 4) % 8)
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(len(text).to_bytes(4, "little") + text)
    packed += b"".join(packer.compress(part) for part in columns.parts) + packer.flush()
    return b64encode(packed).decode("ascii")


def _recording(recording: Recording, columns: _Columns) -> dict[str, Any]:
    slices = sorted(recording.slices, key=lambda one: one.began)
    _check(recording, slices)
    span = _span(recording, slices)
    tick = _FINEST
    while span / tick > _TICKS:
        tick *= 10
    numbers = list(dict.fromkeys(recording.inputs))
    place = {number: index for index, number in enumerate(numbers)}
    # Inputs whose events were overwritten are still followed, by their number.
    flat = [place.setdefault(number, len(place)) for one in slices for number in one.inputs]
    numbers += list(place)[len(numbers) :]
    spans = [recording.inputs.get(number) for number in numbers]
    return {
        "title": recording.title,
        "began": _finite(recording.began),
        "span": round(span, 9),
        "cores": recording.cores,
        "lost": recording.lost,
        "tick": tick,
        "stages": [[stage.name, stage.on] for stage in recording.stages],
        "lanes": [list(lane) for lane in recording.lanes],
        "slices": _slices(slices, flat, tick, columns),
        "inputs": _inputs(numbers, spans, tick, columns),
        "counters": [_counter(counter, tick, columns) for counter in recording.counters],
        "marks": [_mark(mark) for mark in sorted(recording.marks, key=lambda mark: mark.at)],
    }


def _slices(
    slices: Sequence[Slice], flat: Sequence[int], tick: float, columns: _Columns
) -> dict[str, Any]:
    begins = [_ticks(one.began, tick) for one in slices]
    labels: dict[str, int] = {"": 0}
    named = array("I", (labels.setdefault(one.label, len(labels)) for one in slices))
    return {
        "lane": columns.add("H", (one.lane for one in slices)),
        "stage": columns.add("h", (one.stage for one in slices)),
        "began": columns.add("I", _steps(begins)),
        "took": columns.add(
            "I",
            (
                max(_ticks(one.ended, tick) - began, 0)
                for one, began in zip(slices, begins, strict=True)
            ),
        ),
        "waited": columns.add("I", (_ticks(one.waited, tick) for one in slices)),
        "items": columns.add("I", (min(max(one.items, 0), _TICKS) for one in slices)),
        "outcome": columns.add("B", (_place(OUTCOMES, one.outcome) for one in slices)),
        "labels": list(labels),
        "label": columns.add("I", named if len(labels) > 1 else ()),
        "count": columns.add("I", (len(one.inputs) for one in slices)),
        "inputs": columns.add("i", _steps(flat)),
    }


def _inputs(
    numbers: Sequence[int], spans: Sequence[InputSpan | None], tick: float, columns: _Columns
) -> dict[str, Any]:
    known = [span or InputSpan("", 0.0, 0.0) for span in spans]
    return {
        "keys": [None if span is None else str(span.key) for span in spans],
        "number": columns.add("d", (float(number) for number in numbers)),
        "began": columns.add("I", (_ticks(span.began, tick) for span in known)),
        "ended": columns.add("I", (_ticks(span.ended, tick) for span in known)),
        "outcome": columns.add("B", (_place(ENDINGS, span.outcome) for span in known)),
    }


def _counter(counter: Counter, tick: float, columns: _Columns) -> dict[str, Any]:
    samples = sorted(counter.samples, key=lambda sample: sample[0])
    return {
        "name": counter.name,
        "unit": counter.unit,
        "group": counter.group,
        "at": columns.add("I", _steps([_ticks(at, tick) for at, _ in samples])),
        "value": columns.add("d", (_finite(value) for _, value in samples)),
    }


def _mark(mark: Mark) -> list[Any]:
    return [mark.kind, _finite(mark.at), mark.text, mark.lane, max(_finite(mark.lasted), 0.0)]


def _span(recording: Recording, slices: Sequence[Slice]) -> float:
    """The seconds that everything fits into: a recording's own duration may leave out what ended after it."""
    ends = [recording.duration]
    ends += [one.ended for one in slices]
    ends += [span.ended for span in recording.inputs.values()]
    ends += [mark.at + max(mark.lasted, 0.0) for mark in recording.marks]
    ends += [at for counter in recording.counters for at, _ in counter.samples]
    return max(_finite(end) for end in ends)


def _check(recording: Recording, slices: Sequence[Slice]) -> None:
    lanes, stages = len(recording.lanes), len(recording.stages)
    for one in slices:
        if not 0 <= one.lane < lanes or not -1 <= one.stage < stages:
            raise ValueError(
                f"recording {recording.title!r}: the slice at {one.began:.6f} s is on lane {one.lane} and of stage {one.stage}, "
                f"but there are {lanes} lanes and {stages} stages; a slice's lane and stage are indexes into Recording.lanes and "
                "Recording.stages"
            )
    for mark in recording.marks:
        if not -1 <= mark.lane < lanes:
            raise ValueError(
                f"recording {recording.title!r}: the mark {mark.kind!r} at {mark.at:.6f} s is on lane {mark.lane}, but there are "
                f"{lanes} lanes; a mark's lane is an index into Recording.lanes, or -1"
            )


def _finite(value: float) -> float:
    """A number that JSON can hold; what was never measured counts as 0."""
    return float(value) if -1e300 < value < 1e300 else 0.0


def _ticks(seconds: float, tick: float) -> int:
    """Seconds as ticks; before the beginning is at the beginning."""
    return min(round(seconds / tick), _TICKS) if 0 < seconds < 1e300 else 0


def _steps(values: Sequence[int]) -> list[int]:
    """Each value as its difference from the one before."""
    return [after - before for before, after in zip((0, *values), values, strict=False)]


def _place(names: tuple[str, ...], name: str) -> int:
    """An unknown outcome is shown as the ordinary one rather than refused: newer recordings may have more."""
    return names.index(name) if name in names else 0
