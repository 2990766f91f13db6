"""Recordings as files in Chrome's trace format, which open in Perfetto (https://ui.perfetto.dev) and are read back exactly.

Reading goes line by line, as the file was written, so that neither way holds the whole text in memory; a file that another tool has
laid out anew is read as one document.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from tournant.errors import TournantError
from tournant.observe.recording import Counter, InputSpan, Lane, Mark, Recording, Slice, Stage
from tournant.observe.trace_events import (
    INPUT,
    MARK,
    START,
    VERSION,
    lines,
    numbers,
    original,
    read_time,
)
from tournant.observe.whole import whole_file

__all__ = ["TraceError", "load_trace", "save_trace"]

_LINES_AT_ONCE = 2_000
_GZIP = b"\x1f\x8b"
_WRITE = "write one with report.save_trace(path) or with --trace FILE of `tournant ingest` and `tournant batch`"
#: Events that only viewers need; what they say is in the others too.
_ONLY_SHOWN = frozenset("Mstfe")


class TraceError(TournantError):
    """A recording can't be written as a trace, or a file is no trace that Tournant wrote, or not a whole one."""


def save_trace(recording: Recording, path: str | Path) -> Path:
    """Write a recording in Chrome's trace format, as JSON, compressed when the name ends in ``.gz``.

    The file is complete or not there: it is written beside its place and then moved into it. What is no file is written to.

    Args:
        recording: What to write.
        path: Where to. A file of this name is replaced.

    Returns:
        The path.

    Raises:
        OSError: the file can't be written.
        TraceError: a time or a length of the recording is no finite number.
    """
    path = Path(path)
    with whole_file(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                _write(recording, cast("IO[bytes]", packed))
        else:
            _write(recording, file)
    return path


def _write(recording: Recording, file: IO[bytes]) -> None:
    pieces = lines(recording)
    try:
        while block := "".join(islice(pieces, _LINES_AT_ONCE)):
            file.write(block.encode("ascii"))
    except ValueError as error:
        raise TraceError(
            f"the recording {recording.title!r} can't be written: {error}; give finite numbers of seconds"
        ) from error
    except IndexError as error:
        raise TraceError(
            f"the recording {recording.title!r} can't be written: a slice or mark names a lane or a stage that it does not have"
        ) from error


def load_trace(path: str | Path) -> Recording:
    """Read what `save_trace` wrote, compressed or not, whatever its name.

    Returns:
        A recording equal to the one that was written.

    Raises:
        OSError: the file can't be read.
        TraceError: it is no trace, or one that something else wrote, or damaged; the message says which.
    """
    path = Path(path)
    # A pipe can be read only once.
    source = path if path.is_file() else path.read_bytes()
    try:
        about, events = _by_line(source, path)
        return _Reader(path, about).read(events)
    except _LaidOutAnew:
        pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _cut(path) from error
    about, found = _whole(source, path)
    return _Reader(path, about).read(iter(found))


class _LaidOutAnew(Exception):
    """The file's lines are not those that were written."""


def _opened(source: Path | bytes) -> IO[str]:
    given: Path | IO[bytes]
    if isinstance(source, bytes):
        given, packed = BytesIO(source), source.startswith(_GZIP)
    else:
        given = source
        with open(source, "rb") as file:
            packed = file.read(2) == _GZIP
    if packed:
        return gzip.open(given, "rt", encoding="utf-8", errors="replace", newline="\n")
    if isinstance(given, Path):
        return open(given, encoding="utf-8", errors="replace", newline="\n")
    return TextIOWrapper(given, encoding="utf-8", errors="replace", newline="\n")


def _by_line(source: Path | bytes, path: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Return what is written before the events, and the events, if the file's lines are as they were written."""
    with _opened(source) as file:
        head = file.readline()
        if file.readline() != '"traceEvents":[\n' or not head.endswith(",\n"):
            raise _LaidOutAnew
        try:
            about = json.loads(head[:-2] + "}")
        except ValueError:
            raise _LaidOutAnew from None

    def events() -> Iterator[dict[str, Any]]:
        decode = json.JSONDecoder().decode
        with _opened(source) as file:
            file.readline()
            file.readline()
            for line in file:
                if line == "]}\n":
                    return
                text = line[1:] if line[0] == "," else line
                if text[7:8] in _ONLY_SHOWN and text.startswith('{"ph":"'):
                    continue
                try:
                    yield decode(text)
                except ValueError:
                    if not line.endswith("\n"):
                        raise _cut(path) from None
                    raise _LaidOutAnew from None
            raise _cut(path)

    return about, events()


def _whole(source: Path | bytes, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the same from a file that is JSON in any layout."""
    with _opened(source) as file:
        text = file.read()
    if not text.strip():
        raise TraceError(f"{str(path)!r} is empty, no trace; {_WRITE}")
    if text.lstrip()[:15].lower().startswith("<!doctype html"):
        raise TraceError(
            f"{str(path)!r} is a page, such as a timeline: open it in a browser; {_WRITE}"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if '"otherData":{"tournant":' in text[:200]:
            raise _cut(path) from error
        raise TraceError(f"{str(path)!r} is no trace: it isn't JSON; {_WRITE}") from error
    events = found.get("traceEvents") if isinstance(found, dict) else found
    if not isinstance(events, list):
        raise TraceError(f"{str(path)!r} is JSON but no trace; {_WRITE}")
    return (found if isinstance(found, dict) else {}), events


def _cut(path: Path) -> TraceError:
    return TraceError(
        f"the trace {str(path)!r} is cut short or damaged: it does not hold all that its head promises; write it or copy it again"
    )


class _Reader:
    """Puts a recording together from the events."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        other = about.get("otherData")
        if not isinstance(other, dict) or "tournant" not in other:
            raise TraceError(
                f"{str(path)!r} is a trace that something else wrote: it opens in https://ui.perfetto.dev, while this reads "
                f"Tournant's own only; {_WRITE}"
            )
        if other["tournant"] != VERSION:
            raise TraceError(
                f"{str(path)!r} was written by another version of Tournant (format {other['tournant']!r}, this one reads "
                f"{VERSION}); pip install --upgrade tournant"
            )
        self.path = path
        self.other = other
        #: How many events have been read.
        self.at = 0

    def read(self, events: Iterator[dict[str, Any]]) -> Recording:
        """Return the recording.

        Raises:
            TraceError: something is missing or makes no sense.
        """
        try:
            stages = tuple(map(_stage, self.other["stages"]))
            lanes = tuple(
                Lane(original(kind), original(name), pid, original(group))
                for kind, name, pid, group in self.other["lanes"]
            )
            index = {stage.name: n for n, stage in enumerate(stages)}
            slices: list[Slice] = []
            inputs: dict[int, InputSpan] = {}
            samples: list[tuple[float, float]] = []
            marks: list[Mark] = []
            for event in events:
                self.at += 1
                phase = event["ph"]
                if phase in _ONLY_SHOWN:
                    continue
                if phase == "C":
                    ((_, value),) = event["args"].items()
                    samples.append((_times(event)[0], float(value)))
                    continue
                kind = event["cat"]
                if kind == MARK:
                    marks.append(_mark(event))
                elif kind == INPUT:
                    if "step" not in event["args"]:
                        inputs[event["args"]["input"]] = _life(event)
                elif kind != START:
                    found = _slice(event, index)
                    if not (0 <= found.lane < len(lanes) and -1 <= found.stage < len(stages)):
                        raise ValueError("no such lane or stage")
                    slices.append(found)
            counters = self._counters(samples)
            counts = (len(slices), len(inputs), len(marks))
            if counts != tuple(self.other[name] for name in ("slices", "inputs", "marks")):
                raise _cut(self.path)
            return Recording(
                title=original(self.other["title"]),
                began=_finite(self.other["began"]),
                duration=_finite(self.other["duration"], 0.0),
                cores=_whole_number(self.other["cores"]),
                stages=stages,
                lanes=lanes,
                slices=tuple(slices),
                inputs=inputs,
                counters=counters,
                marks=tuple(marks),
                lost=_whole_number(self.other["lost"]),
                summary=original(self.other["summary"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            where = f"its event {self.at:,}" if self.at else "its head"
            raise TraceError(
                f"the trace {str(self.path)!r} is damaged at {where} ({type(error).__name__}: {error}); write it or copy it again"
            ) from error

    def _counters(self, samples: list[tuple[float, float]]) -> tuple[Counter, ...]:
        found: list[Counter] = []
        taken = 0
        for name, unit, group, count, odd in self.other["counters"]:
            mine: list[tuple[float, float]] = []
            for n in range(count):
                if str(n) in odd:
                    at, value = odd[str(n)]
                    mine.append((float(at), float(value)))
                elif taken < len(samples):
                    mine.append(samples[taken])
                    taken += 1
                else:
                    raise _cut(self.path)
            found.append(Counter(original(name), original(unit), tuple(mine), original(group)))
        if taken != len(samples):
            raise _cut(self.path)
        return tuple(found)


def _stage(said: list[Any]) -> Stage:
    name, on, *more = said
    computing = _finite(more[0]) if more else None
    return Stage(original(name), original(on), computing)


def _slice(event: dict[str, Any], index: dict[str, int]) -> Slice:
    args = event["args"]
    stage = -1
    if "stage" in args:
        stage = args.get("stage_number", index[original(args["stage"])])
    given = args.get("inputs")
    return Slice(
        event["tid"] - 1,
        stage,
        *_times(event),
        numbers(given) if given else (),
        _whole_number(args["items"]),
        original(args["outcome"]),
        float(args.get("waited", 0.0)),
        original(event["name"]) if "labelled" in args else "",
    )


def _life(event: dict[str, Any]) -> InputSpan:
    args = event["args"]
    return InputSpan(original(args["key"]), *_times(event), original(args["outcome"]))


def _mark(event: dict[str, Any]) -> Mark:
    args = event["args"]
    return Mark(
        original(event["name"]),
        _times(event)[0],
        original(args["text"]),
        event["tid"] - 1,
        float(args["lasted"]),
    )


def _finite(value: Any, least: float = -math.inf) -> float:
    """Return a number of seconds, or raise ``ValueError``."""
    number = float(value)
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"{value!r} is no number of seconds")
    return number


def _whole_number(value: Any) -> int:
    """Return a number of things, or raise ``ValueError``."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of things")
    return value


def _times(event: dict[str, Any]) -> tuple[float, float]:
    """Return when an event began and ended."""
    if "exact" in event:
        began, ended = event["exact"]
        return float(began), float(ended)
    at = event["ts"]
    return read_time(at), read_time(at + event.get("dur", 0))
