from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from tournant.observe.progress import ProgressDisplay, Style, as_line, as_table
from tournant.observe.rates import Tracker
from tournant.report import RunSnapshot, StageSnapshot

STAGES = (
    StageSnapshot("read", "loop", 1_200, 1_200, 0, 0, 3, 40, 30.0, 64),
    StageSnapshot("chunk\n", "processes", 1_000, 9_000, 0, 0, 12, 2, 11.0, 2),
    StageSnapshot("gather", "engine", 9_000, 9_000, 0, 0, 0, 0, 0.0),
    StageSnapshot("[embed]", "threads", 9_000, 8_900, 5, 0, 2_500, 64, 20.0, 2),
)


def snapshot(elapsed: float = 10.0, done: int = 980, total: int | None = 10_000) -> RunSnapshot:
    return RunSnapshot(elapsed, total, 1_200, done, 5, 10, 5, STAGES)


def drawn(view_of: RunSnapshot, width: int = 80) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(as_table(Tracker().update(view_of), "documents"))
    return console.export_text()


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# What is drawn


def test_the_table_has_a_line_per_stage_and_the_inputs_above() -> None:
    head, rest, titles, read, chunk, gather, embed = rows(drawn(snapshot()))
    assert head[:2] == ["documents", "1,000/10,000"]
    assert head[-1] == "10%"
    assert " ".join(rest) == "0:10, 100/s, about 1:30 left, 10 unchanged, 5 filtered, 5 failed"
    assert titles == ["stage", "done", "rate", "queue", "busy", "failed"]
    assert read == ["read", "1,160", "116/s", "3", "5%", "-"]
    assert chunk == ["chunk\\n", "998", "100/s", "12", "55%", "-"]
    assert gather == ["gather", "9,000", "900/s", "0", "-"]
    assert embed == ["[embed]", "8,931", "893/s", "2,500", "100%", "5"]


def test_the_table_fits_a_narrow_terminal() -> None:
    lines = drawn(snapshot(), width=44).splitlines()
    assert all(len(line) <= 44 for line in lines)
    assert any(line.startswith("[embed]") for line in lines)


def test_a_run_of_unknown_length_has_neither_bar_nor_share() -> None:
    text = drawn(snapshot(total=None))
    assert "documents 1,000\n" in re.sub(" +\n", "\n", text)
    assert "left" not in text
    assert "10%" not in text


def test_a_line_says_the_same_in_words() -> None:
    assert as_line(Tracker().update(snapshot()), "documents") == (
        "0:10  1,000 of 10,000 documents (10%), 100/s, about 1:30 left, 10 unchanged, 5 filtered, "
        "5 failed | read 1,160 (+3 waiting) | chunk\\n 998 (+12 waiting) | gather 9,000 "
        "| [embed] 8,931 (+2,500 waiting)"
    )


# Streams that are no terminal


class Run:
    """A run whose state the test sets."""

    def __init__(self) -> None:
        self.now: RunSnapshot | None = None
        self.looked = threading.Semaphore(0)

    def snapshot(self) -> RunSnapshot | None:
        self.looked.release()
        return self.now

    def wait_for_looks(self, count: int) -> None:
        for _ in range(count):
            assert self.looked.acquire(timeout=30)


def test_lines_come_seldom_and_ever_more_seldom() -> None:
    run, stream = Run(), io.StringIO()
    display = ProgressDisplay(run.snapshot, stream=stream)
    assert display.style == "lines"
    display.tick()
    assert stream.getvalue() == ""
    for second in range(2_000):
        run.now = RunSnapshot(float(second), None, second, second, 0, 0, 0)
        display.tick()
    lines = stream.getvalue().splitlines()
    times = [60 * int(minute) + int(second) for minute, second in (x[:5].split(":") for x in lines)]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[0] == 5
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60
    assert "\x1b" not in stream.getvalue()


def test_the_last_state_is_always_said_once() -> None:
    run, stream = Run(), io.StringIO()
    run.now = RunSnapshot(0.5, 3, 3, 3, 0, 0, 0)
    with ProgressDisplay(run.snapshot, stream=stream, unit="files"):
        run.wait_for_looks(2)
    assert stream.getvalue() == "0:00  3 of 3 files (100%), 6.0/s\n"


def test_none_writes_nothing_but_what_is_said() -> None:
    stream = io.StringIO()

    def never() -> RunSnapshot:
        raise AssertionError("looked at")

    with ProgressDisplay(never, stream=stream, style="none") as display:
        display.say("Stopping.")
    assert stream.getvalue() == "Stopping.\n"


def test_a_letter_that_the_stream_does_not_have_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    stage = StageSnapshot("épurer \udce9", "loop", 1, 1, 0, 0, 0, 0, 0.0)
    with ProgressDisplay(
        lambda: RunSnapshot(1.0, None, 1, 1, 0, 0, 0, (stage,)), stream=stream
    ) as display:
        display.say("é")
    assert b"| \\xe9purer \\udce9 1\n" in raw.getvalue()
    assert b"\\xe9\n" in raw.getvalue()


# Whatever goes wrong ends the display, never the run


@pytest.mark.parametrize("style", ["lines", "live"])
def test_a_snapshot_that_raises_ends_the_display_with_a_word(style: Style) -> None:
    stream, called = io.StringIO(), threading.Semaphore(0)

    def broken() -> RunSnapshot:
        called.release()
        raise KeyError("stage")

    with ProgressDisplay(broken, stream=stream, style=style) as display:
        assert called.acquire(timeout=30)
    assert stream.getvalue() == (
        "The progress display ended: KeyError: 'stage'. The run goes on.\n"
    )
    assert display.style == "none"


def test_a_stream_that_is_gone_ends_the_display_silently() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    looked = threading.Semaphore(0)

    def look() -> RunSnapshot:
        looked.release()
        return snapshot(elapsed=60)

    stream = open(writing, "w")  # noqa: SIM115
    with ProgressDisplay(look, stream=stream) as display:
        assert looked.acquire(timeout=30)
        display.say("nobody reads this")
    assert display.style == "none"
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_snapshot_that_hangs_does_not_keep_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tournant.observe.progress._PATIENCE_SECONDS", 0.01)
    asked, leave, stream = threading.Event(), threading.Event(), io.StringIO()

    def hang() -> None:
        asked.set()
        leave.wait(30)

    with ProgressDisplay(hang, stream=stream) as display:
        assert asked.wait(30)
    assert display._thread is not None
    assert display._thread.is_alive()
    leave.set()
    display._thread.join(30)
    assert stream.getvalue() == ""


def test_a_closed_stream_is_no_place_to_draw() -> None:
    stream = io.StringIO()
    stream.close()
    assert ProgressDisplay(snapshot, stream=stream).style == "none"


# A real terminal


LIVE = """
import sys, threading
from tournant.observe.progress import ProgressDisplay
from tournant.report import RunSnapshot, StageSnapshot

looks = threading.Semaphore(0)
count = 0

def snapshot():
    global count
    count += 1
    looks.release()
    stage = StageSnapshot("embed", "threads", count, count, 0, 0, 0, 0, 0.1)
    return None if count == 1 else RunSnapshot(count / 4, 100, count, count, 0, 0, 0, (stage,))

def wait(times):
    for _ in range(times):
        looks.acquire()

with ProgressDisplay(snapshot, unit="documents") as display:
    wait(3)
    display.say("said [aloud]")
    print("on standard error", file=sys.stderr)
    print("on standard output", flush=True)
    wait(2)
    if sys.argv[1] == "raise":
        raise RuntimeError("the run broke")
"""


def on_terminal(ending: str) -> tuple[str, str]:
    """Run the display with a pty as standard error; return what the terminal and standard output got."""
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", LIVE, ending],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
            text=True,
        )
    finally:
        os.close(theirs)
    seen = b""
    with process:
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux's way to say that the other side has closed
                break
            if not part:
                break
            seen += part
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(ours)
    return seen.decode(), printed


@pytest.mark.parametrize("ending", ["end", "raise"])
def test_a_terminal_gets_a_live_table_and_its_cursor_back(ending: str) -> None:
    seen, printed = on_terminal(ending)
    assert printed == "on standard output\n"
    assert "starting" in seen
    assert "embed" in seen
    assert "said [aloud]" in seen
    assert "on standard error" in seen
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert seen.count(hidden) == seen.count(shown) == 1
    after = seen[seen.index(shown) :]
    assert ("the run broke" in after) == (ending == "raise")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with open(theirs, "w") as stream:
        for term, style in (("dumb", "lines"), ("xterm", "live")):
            monkeypatch.setenv("TERM", term)
            assert ProgressDisplay(snapshot, stream=stream).style == style
        monkeypatch.delenv("TERM")
        assert ProgressDisplay(snapshot, stream=stream).style == "lines"
    os.close(ours)


def test_without_rich_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)
    stream = io.StringIO()
    display = ProgressDisplay(lambda: snapshot(elapsed=60), stream=stream, style="live")
    display.tick()
    display.tick()
    assert display.style == "lines"
    assert stream.getvalue().startswith("1:00  ")


def test_rich_is_imported_only_when_it_draws() -> None:
    code = (
        "import sys, tournant.observe.progress as p; p.ProgressDisplay(lambda: None, style='lines');"
        "assert not any(name.split('.')[0] == 'rich' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
