"""``tournant kitchen``: the demonstration of what waits, what thinks and what helps, and of the classic mistakes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tournant.cli.text import Exit, finish, put, put_json, shown_path, width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tournant.kitchen.cooked import Cooked
    from tournant.kitchen.errors import KitchenError
    from tournant.kitchen.pitfall import Pitfall
    from tournant.kitchen.trial import Trial

#: Held equal to `tournant.kitchen.WORKS` and `WAYS` by a test: the command line is there before the kitchen is loaded.
WORKS = ("waiting", "thinking", "native", "meal")
WAYS = ("synchronous", "concurrent", "threads", "processes", "hybrid")
_WIDEST = 80


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "kitchen",
        parents=[common],
        help="see concurrency and parallelism at work",
        description="Cook the same orders synchronously, concurrently, in threads, in processes and as a pipeline: database "
        "queries and uploads that wait, image processing that thinks. For each way it says how long it took, who did what, and why.",
        epilog="`tournant kitchen pitfalls` runs the classic mistakes.",
    )
    parser.add_argument(
        "--waits", type=scale, default=1.0, metavar="X",
        help="scale the waiting: at 1.0 each answer of a server takes 0.1 seconds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=names, default=[], action="extend", metavar="NAME,...",
        help=f"only these works ({', '.join(WORKS)}) and ways ({', '.join(WAYS)}) (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=page, metavar="FILE", help="write all timelines into one HTML file"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)
    parts = parser.add_subparsers(title="more", metavar="[pitfalls]")
    pitfalls = parts.add_parser(
        "pitfalls",
        parents=[common],
        help="run the classic mistakes: under Python alone, under the guards, and mended",
        description="Run each classic mistake as a program of its own: under Python alone, then under the guards "
        "(`tournant watch`), then mended.",
    )
    pitfalls.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    pitfalls.add_argument("--list", action="store_true", help="list them and run nothing")
    pitfalls.add_argument("--source", action="store_true", help="show each program before it runs")
    pitfalls.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )
    pitfalls.set_defaults(run=run_pitfalls)


def scale(text: str) -> float:
    """Return a factor from 0 on.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor >= 0):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no factor: give a number from 0 on, such as 0.5"
        )
    return factor


def names(text: str) -> list[str]:
    """Return the names of works and ways, which commas separate.

    Raises:
        argparse.ArgumentTypeError: One is unknown.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in WORKS + WAYS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is neither a work nor a way; choose from {', '.join(WORKS + WAYS)}"
            )
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r} names nothing; choose from {', '.join(WORKS + WAYS)}"
        )
    return found


def page(text: str) -> str:
    """Return the name of a file.

    Raises:
        argparse.ArgumentTypeError: It is empty.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no name: name a file, such as kitchen.html")
    return text


def run(args: argparse.Namespace) -> int:
    """Cook, and return the exit code."""
    from tournant.kitchen.cooking import Kitchen
    from tournant.kitchen.show import cooked_text, opening, table, work_heading

    _check_file(args.html)
    works = [name for name in WORKS if name in args.only] or list(WORKS)
    ways = [name for name in WAYS if name in args.only] or list(WAYS)
    out, columns, color = sys.stdout, _columns(sys.stdout), _color(sys.stdout)
    everything = []
    with _ending_in_order(), Kitchen(waits=args.waits) as kitchen:
        if not args.json:
            _say(out, opening(kitchen, columns, color))
        for work in works:
            if not args.json:
                _say(out, work_heading(work, columns, color))
            for cooked in kitchen.compare(work, ways):
                everything.append(cooked)
                if not args.json:
                    _say(out, cooked_text(cooked, columns, color, ascii=_ascii(out)))
        if args.json:
            put_json(
                out, {**kitchen.as_dict(), "results": [cooked.as_dict() for cooked in everything]}
            )
        elif len(everything) > 1:
            _say(out, "\n" + table(everything, color))
    if args.html:
        _write_timelines(args.html, everything)
        put(sys.stderr, f"The timelines are in {shown_path(args.html)}")
    return Exit.OK


def run_pitfalls(args: argparse.Namespace) -> int:
    """Run the pitfalls, and return the exit code."""
    from tournant.kitchen import show
    from tournant.kitchen.errors import KitchenError
    from tournant.kitchen.pitfall import choose
    from tournant.kitchen.trial import demonstrate

    if args.html or args.only or args.waits != 1.0:
        put(sys.stderr, "tournant: --html, --only and --waits are for the kitchen; the pitfalls take names, --list, --source and --json")  # fmt: skip
        return Exit.USAGE
    out, columns, color = sys.stdout, _columns(sys.stdout), _color(sys.stdout)
    try:
        chosen = choose(args.names)
    except KitchenError as error:
        put(sys.stderr, f"tournant: {error}")
        return Exit.USAGE
    if args.list:
        if args.json:
            put_json(out, {"pitfalls": [pitfall.as_dict() for pitfall in chosen]})
        else:
            put(out, show.pitfall_list(chosen))
        return Exit.OK
    done = []
    for pitfall in chosen:
        if args.json:
            done.append(demonstrate(pitfall))
            continue
        _say(out, show.pitfall_heading(pitfall, columns, color))
        if args.source:
            _say(out, show.source_text(pitfall.program))
            _say(out, show.source_text(pitfall.mended))

        def tell(name: str, trial: Trial, pitfall: Pitfall = pitfall) -> None:
            _say(out, show.trial_text(pitfall, name, trial, columns, color))

        done.append(demonstrate(pitfall, tell))
    if args.json:
        put_json(out, {"pitfalls": [demonstration.as_dict() for demonstration in done]})
    failed = [demonstration for demonstration in done if demonstration.problems]
    for demonstration in failed:
        put(
            sys.stderr,
            f"tournant: {demonstration.pitfall.name}: {'; '.join(demonstration.problems)}",
        )
    return Exit.FAILED if failed else Exit.OK


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Have SIGTERM end the command as Ctrl-C does, with its children and with what they share."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _check_file(path: str | None) -> None:
    """Refuse a file that can't be written, before anything is cooked."""
    if path is None:
        return
    from tournant.observe.whole import whole_file

    if os.path.isdir(path):
        raise _unwritable(path, "it is a folder")
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise _unwritable(path, f"there is no folder {shown_path(folder)}")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            if not os.access(path, os.W_OK):  # to open a pipe would wait for its reader
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        # What is there stays as it is: the file beside it is taken away again.
        with whole_file(Path(path)):
            raise _OnlyTried
    except _OnlyTried:
        pass
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


class _OnlyTried(Exception):
    """A file could be written, and is not."""


def _unwritable(path: str, reason: str) -> KitchenError:
    from tournant.kitchen.errors import KitchenError

    return KitchenError(f"--html {shown_path(path)} can't be written: {reason}; name another file")


def _write_timelines(path: str, everything: Sequence[Cooked]) -> None:
    from tournant.observe.timeline import save_timeline

    try:
        save_timeline([cooked.recording() for cooked in everything], path, title="The kitchen")
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _columns(stream: TextIO) -> int:
    return min(_WIDEST, width(stream))


def _ascii(stream: TextIO) -> bool:
    """Tell whether the stream has no letters for a chart."""
    try:
        "│█".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return True
    return False


def _color(stream: TextIO) -> bool:
    return (
        stream is not None
        and stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def _say(stream: TextIO, text: str) -> None:
    """Write text and hand it over, so that it stands there while the next way is cooked."""
    put(stream, text)
    finish(stream)
