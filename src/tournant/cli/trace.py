"""``tournant trace``: what a recorded run says about itself."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, TextIO

from tournant.cli.text import (
    Exit,
    bold,
    counted,
    error_lines,
    one_line,
    put,
    put_json,
    shown_path,
    width,
)
from tournant.errors import TournantError, short

if TYPE_CHECKING:
    from tournant.observe.advice import Advice
    from tournant.observe.recording import Recording

_TITLE_AT_MOST = 120


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "trace",
        parents=[common],
        help="say where the time of a recorded run went",
        description="Read a trace that `tournant ingest --trace FILE` or report.save_trace() wrote: print where its time went, a chart of "
        "its lanes, and what would make it faster. The same file opens in https://ui.perfetto.dev.",
    )
    parser.add_argument("file", metavar="FILE", help="the trace, JSON or JSON.gz")
    parser.add_argument("--html", metavar="FILE", help="also write the timeline as one HTML file")
    parser.add_argument(
        "--stage", metavar="NAME", help="show one stage only, with its slowest calls"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the trace says, and return the exit code."""
    try:
        _run(args)
    except _Unusable as error:
        for line in error_lines(error):
            put(sys.stderr, line)
        return Exit.USAGE
    return Exit.OK


class _Unusable(TournantError):
    """What was asked for can't be had of this file."""


def _run(args: argparse.Namespace) -> None:
    from tournant.observe.advice import advise
    from tournant.observe.trace import TraceError, load_trace

    try:
        recording = load_trace(args.file)
    except TraceError as error:
        raise _Unusable(str(error)) from error
    except FileNotFoundError:
        raise _Unusable(
            f"there is no trace {args.file!r}; give the file that --trace or report.save_trace() wrote"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _Unusable(f"the trace {args.file!r} can't be read: {reason}") from error
    if args.html is not None and _same(args.file, args.html):
        raise _Unusable(
            f"--html {args.html!r} is the trace itself, which would be lost; give the timeline another name"
        )
    advice = advise(recording)
    stage = None if args.stage is None else _stage(recording, args.stage)
    if args.html is not None:
        try:
            recording.save_timeline(args.html)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise _Unusable(
                f"the timeline {args.html!r} can't be written: {reason}; give --html another place"
            ) from error
    if args.json:
        _put_json(recording, advice, stage)
    elif stage is not None:
        _put_stage(recording, advice, stage)
    else:
        _put_all(recording, advice)
    if args.html is not None and not args.json:
        put(sys.stderr, f"Timeline written to {shown_path(args.html)}")


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _stage(recording: Recording, name: str) -> int:
    names = [stage.name for stage in recording.stages]
    if name not in names:
        known = ", ".join(map(short, names)) or "none"
        raise _Unusable(f"--stage {name!r}: the trace has no such stage; its stages are {known}")
    return names.index(name)


def _put_all(recording: Recording, advice: Advice) -> None:
    out = sys.stdout
    put(out, bold(_head(recording, advice), out))
    put(out, "")
    for line in advice.lines:
        put(out, _printable(line))
    put(out, "")
    put(out, _chart(recording, out))
    put(out, "")
    put(out, bold(one_line(advice.statement), out))


def _put_stage(recording: Recording, advice: Advice, number: int) -> None:
    """Print one stage: its figures, its lanes, and its slowest calls."""
    out = sys.stdout
    figures = advice.stages[number]
    put(out, bold(_head(recording, advice), out))
    put(out, "")
    lines = advice.lines
    for line in (lines[0], lines[1 + number]):
        put(out, _printable(line))
    put(out, "")
    put(out, _chart(_only(recording, number), out))
    slowest = _slowest(recording, number)
    if slowest:
        put(out, "")
        put(out, f"slowest of {figures.calls:,}:")
        for at, seconds, items, outcome, key in slowest:
            more = f", {items:,} items" if items != 1 else ""
            failed = "" if outcome == "ok" else f", {outcome}"
            put(out, _printable(f"  {seconds:10.4f} s at {at:9.3f} s{more}{failed}  {key}"))


def _put_json(recording: Recording, advice: Advice, number: int | None) -> None:
    plain = advice.as_dict()
    plain["title"] = recording.title
    plain["began"] = recording.began
    plain["marks"] = [mark._asdict() for mark in recording.marks]
    plain["summary"] = recording.summary
    if number is not None:
        plain["stages"] = [plain["stages"][number]]
        plain["slowest"] = [
            dict(zip(("at", "seconds", "items", "outcome", "key"), one, strict=True))
            for one in _slowest(recording, number)
        ]
    put_json(sys.stdout, plain)


def _slowest(recording: Recording, number: int) -> list[tuple[float, float, int, str, str]]:
    """Return the ten longest calls of a stage: when, how long, of how many items, how it ended, for which input."""
    calls = sorted(
        (one for one in recording.slices if one.stage == number),
        key=lambda one: (round(one.began - one.ended, 9), one.began),
    )
    found: list[tuple[float, float, int, str, str]] = []
    for one in calls[:10]:
        known = recording.inputs.get(one.inputs[0]) if one.inputs else None
        found.append(
            (one.began, one.ended - one.began, one.items, one.outcome, known.key if known else "")
        )
    return found


def _only(recording: Recording, number: int) -> Recording:
    """Return the part of a recording that concerns one stage."""
    from dataclasses import replace

    slices = [one for one in recording.slices if one.stage == number]
    used = sorted({one.lane for one in slices})
    place = {lane: n for n, lane in enumerate(used)}
    name = recording.stages[number].name
    return replace(
        recording,
        lanes=tuple(recording.lanes[lane] for lane in used),
        slices=tuple(one._replace(lane=place[one.lane]) for one in slices),
        counters=tuple(c for c in recording.counters if c.name.endswith(f": {name}")),
        marks=tuple(
            mark._replace(lane=place.get(mark.lane, -1))
            for mark in recording.marks
            if mark.lane < 0 or mark.lane in place
        ),
    )


def _head(recording: Recording, advice: Advice) -> str:
    words = [_shortened(one_line(recording.title)) or "run", f"{advice.duration:,.1f} s"]
    if recording.inputs:
        outcomes: dict[str, int] = {}
        for life in recording.inputs.values():
            outcomes[life.outcome] = outcomes.get(life.outcome, 0) + 1
        counts = ", ".join(f"{count:,} {one_line(what)}" for what, count in outcomes.items())
        words.append(f"{counted(len(recording.inputs), 'input')} ({counts})")
    return ", ".join(words)


def _shortened(text: str) -> str:
    return (
        text
        if len(text) <= _TITLE_AT_MOST
        else f"{text[: _TITLE_AT_MOST - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def _chart(recording: Recording, stream: TextIO | None) -> str:
    from tournant.observe.chart import draw

    plain = (
        stream is None
        or not stream.isatty()
        or os.environ.get("NO_COLOR")
        or os.environ.get("TERM") == "dumb"
    )
    return draw(recording, width(stream), color=not plain, ascii=not _has_blocks(stream))


def _has_blocks(stream: TextIO | None) -> bool:
    try:
        "│▁█".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _printable(line: str) -> str:
    """Return a line without what a terminal would obey; its blanks stay, they are columns."""
    return "".join(char if char.isprintable() else "\ufffd" for char in line)
