"""The display of a run that is going on: a live table on a terminal, lines of text elsewhere.

It only looks, through a callable that gives snapshots, and writes to standard error, so that what the
program itself prints stays fit for machines. Whatever goes wrong here ends the display, never the run.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

from tournant.observe.rates import RunView, StageView, Tracker, clock, speed
from tournant.report import RunSnapshot

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

Style = Literal["live", "lines", "none"]

_FRAME_SECONDS = 0.25
_LINE_SECONDS = 5.0
_LINE_SECONDS_AT_MOST = 60.0
_PATIENCE_SECONDS = 5.0


class ProgressDisplay:
    """Shows how a run goes on, from its own thread, until it is left.

    On a terminal it is a live table: one line per stage with what it has done, its rate, its queue and how busy it
    is, and below it the inputs, the failures and the time still to go. Elsewhere it is one line of
    text every 5 seconds, and more seldom as the run grows long. Without ``rich`` it is lines everywhere.

    Use it as a context manager around the run. It may be entered once.

    Args:
        snapshot: Called from the display's thread; returns the run's state, or ``None`` while it has not begun.
        stream: Where to write; standard error by default.
        style: ``"live"``, ``"lines"`` or ``"none"``; chosen by the stream when not given.
        unit: What one input is called, in the plural.
    """

    def __init__(
        self,
        snapshot: Callable[[], RunSnapshot | None],
        *,
        stream: TextIO | None = None,
        style: Style | None = None,
        unit: str = "inputs",
    ) -> None:
        self._snapshot = snapshot
        self._stream = sys.stderr if stream is None else stream
        self.style: Style = _style(self._stream) if style is None else style
        self._unit = unit
        self._tracker = Tracker()
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._next_line = _LINE_SECONDS
        self._last_line: str | None = None
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProgressDisplay:
        if self.style != "none":
            self._thread = threading.Thread(
                target=self._work, name="tournant-progress", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.set()
        try:
            if self._thread is not None:
                # A snapshot that hangs must not keep the program from ending.
                self._thread.join(_PATIENCE_SECONDS)
            if self._thread is None or not self._thread.is_alive():
                self.tick(last=True)
        finally:
            self._restore()

    def say(self, text: str) -> None:
        """Write one line of text that stays, above the live table where there is one. Any thread may call it.

        A display of style ``"none"`` writes it as well: it is a message, not progress.
        """
        with self._lock, suppress(OSError, ValueError):
            if self._live is not None:
                from rich.text import Text

                self._live.console.print(Text(text), highlight=False)
            else:
                self._put(text)

    def tick(self, *, last: bool = False) -> None:
        """Draw the present state, where it is time to.

        The display's own thread calls it; call it yourself only when you have not entered the display.

        Args:
            last: Whether this is the final state, which is drawn in any case.
        """
        if self.style == "none":
            return
        try:
            found = self._snapshot()
            view = None if found is None else self._tracker.update(found)
            with self._lock:
                if self.style == "live":
                    self._draw(view)
                elif self.style == "lines" and view is not None:
                    self._write(view, last)
        except Exception as error:
            if not last:
                self._give_up(error)

    def _work(self) -> None:
        while not self._leaving.is_set():
            self.tick()
            self._leaving.wait(_FRAME_SECONDS)

    # Lines

    def _write(self, view: RunView, last: bool) -> None:
        if not last and view.elapsed < self._next_line:
            return
        line = as_line(view, self._unit)
        self._next_line = view.elapsed + min(
            _LINE_SECONDS_AT_MOST, max(_LINE_SECONDS, view.elapsed / 20)
        )
        if line != self._last_line:
            self._last_line = line
            self._put(line)

    def _put(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        # Also a name that the stream's encoding has no letters for must not end the display.
        self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self._stream.flush()

    # The live table

    def _draw(self, view: RunView | None) -> None:
        if self._live is None:
            try:
                from rich.console import Console
                from rich.live import Live
            except ImportError:
                self.style = "lines"
                return
            console = Console(file=self._stream, force_terminal=True, force_jupyter=False)
            self._live = Live(
                console=console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=self._stream is sys.stderr,
                vertical_overflow="crop",
            )
            self._live.start()
        self._live.update(as_table(view, self._unit), refresh=True)

    def _restore(self) -> None:
        """Give the terminal its cursor, and the program its standard error back."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                with suppress(OSError, ValueError):
                    live.stop()

    def _give_up(self, error: Exception) -> None:
        self._restore()
        self.style = "none"
        # A stream that is gone can't be told that it is gone.
        if not isinstance(error, (OSError, ValueError)):
            self.say(
                f"The progress display ended: {type(error).__name__}: {error}. The run goes on."
            )


def _style(stream: TextIO) -> Style:
    try:
        terminal = stream.isatty()
    except ValueError:  # closed
        return "none"
    return "live" if terminal and os.environ.get("TERM", "dumb") != "dumb" else "lines"


def as_line(view: RunView, unit: str) -> str:
    """Return a view as one line of text."""
    of = "" if view.total is None else f" of {view.total:,}"
    share = f" ({_percent(view)})" if view.total else ""
    parts = [f"{view.settled:,}{of} {unit}{share}", speed(view.rate), *_rest(view)]
    stages = [_stage_words(stage) for stage in view.stages]
    return f"{clock(view.elapsed)}  " + ", ".join(parts) + "".join(f" | {text}" for text in stages)


def _stage_words(stage: StageView) -> str:
    text = f"{_shown(stage.name)} {stage.done:,}"
    return f"{text} (+{stage.queued:,} waiting)" if stage.queued else text


def _percent(view: RunView) -> str:
    # Rounded down: 100 % is said only of the end.
    return f"{100 * view.settled // view.total}%" if view.total else ""


def _rest(view: RunView) -> list[str]:
    """Return what is worth saying beside the count and the rate."""
    parts = []
    if view.remaining is not None and view.remaining >= 1:
        parts.append(f"about {clock(view.remaining)} left")
    if view.skipped:
        parts.append(f"{view.skipped:,} unchanged")
    if view.filtered:
        parts.append(f"{view.filtered:,} filtered")
    if view.failed:
        parts.append(f"{view.failed:,} failed")
    return parts


def as_table(view: RunView | None, unit: str) -> RenderableType:
    """Return a view as what ``rich`` can draw; ``None`` as a word that it is about to begin."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if view is None:
        return Text("starting", style="dim")
    stages = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    stages.add_column("stage", no_wrap=True, overflow="ellipsis", min_width=8)
    for title in ("done", "rate", "queue", "busy", "failed"):
        stages.add_column(title, justify="right", no_wrap=True)
    for stage in view.stages:
        failed = Text(f"{stage.failed:,}", style="red") if stage.failed else Text("-", style="dim")
        stages.add_row(
            Text(_shown(stage.name), style="bold"),
            Text(f"{stage.done:,}"),
            Text(speed(stage.rate)),
            Text(f"{stage.queued:,}"),
            Text("" if stage.busy is None else f"{stage.busy:.0%}"),
            failed,
        )
    head = Table.grid(padding=(0, 1))
    count = f"{view.settled:,}" if view.total is None else f"{view.settled:,}/{view.total:,}"
    cells: list[RenderableType] = [Text(f"{unit} {count}", style="bold")]
    if view.total:
        cells += [
            ProgressBar(total=view.total, completed=view.settled, width=20),
            Text(_percent(view)),
        ]
    head.add_row(*cells)
    rest = Text(", ".join([clock(view.elapsed), speed(view.rate), *_rest(view)]))
    if view.failed:
        rest.highlight_words([f"{view.failed:,} failed"], "red")
    # The inputs stand above the stages: a terminal of few lines crops what is below.
    return Group(head, rest, stages) if view.stages else Group(head, rest)


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]
