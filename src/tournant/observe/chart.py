"""A recording as a chart for terminals: one row per lane, the queues below, one axis of time.

Where a lane works for one stage, the height of a block is how busy it was, or, where many calls run at once, how many of them. Where
several stages share a lane, it shows letters: capital where the stage was at work for more than half of the column. With colour such
lanes show blocks in the colour of the stage. All of it can be had in plain ASCII.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from tournant.observe.recording import Lane, Recording, Slice
from tournant.observe.usage import Steps
from tournant.report import labelled

_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_COLORS = (36, 33, 32, 35, 34, 31)
_MARKS = {
    "blocked": "!",
    "gc": "g",
    "limit": "l",
    "retry": "r",
    "worker": "w",
    "guard": "?",
    "note": "n",
}
_NAME_AT_MOST, _RIGHT = 20, 8
_WIDTH_AT_LEAST = 40
_COUNTERS_AT_MOST = 12


def draw(
    recording: Recording, width: int | None = None, color: bool = False, *, ascii: bool = False
) -> str:
    """Return the lanes of a recording over time as text.

    Args:
        recording: What to draw.
        width: Columns to fill, 40 at least; 80 when not given.
        color: Whether to colour the stages with ANSI escape sequences.
        ascii: Whether to use ASCII only, for terminals that have no block characters.
    """
    end = max(recording.duration, max((one.ended for one in recording.slices), default=0.0))
    if end <= 0 or not recording.lanes:
        return "nothing was recorded"
    return "\n".join(
        line.rstrip() for line in _Chart(recording, width or 80, color, ascii, end).lines()
    )


class _Chart:
    def __init__(
        self, recording: Recording, width: int, color: bool, ascii: bool, end: float
    ) -> None:
        self.recording = recording
        self.color = color
        self.ascii = ascii
        self.end = end
        self.blocks = _ASCII_BLOCKS if ascii else _BLOCKS
        self.counters = [c for c in recording.counters if c.samples][:_COUNTERS_AT_MOST]
        names = [lane.name for lane in recording.lanes] + [c.name for c in self.counters]
        self.left = min(_NAME_AT_MOST, max(5, *(_width(self._safe(name)) for name in names)))
        self.width = max(_WIDTH_AT_LEAST, width)
        self.columns = self.width - self.left - _RIGHT - 3
        self.letters = _letters([stage.name for stage in recording.stages])
        working = {
            one.stage for one in recording.slices if recording.lanes[one.lane].kind != "loop"
        }
        #: Whether lanes need letters to tell what they worked for.
        self.shared = len(working) > 1

    def lines(self) -> Iterator[str]:
        recording = self.recording
        lanes: list[list[Slice]] = [[] for _ in recording.lanes]
        for one in recording.slices:
            lanes[one.lane].append(one)
        several = len({lane.group for lane in recording.lanes}) > 1
        group = None
        for lane, slices in zip(recording.lanes, lanes, strict=True):
            if several and lane.group != group:
                group = lane.group
                yield f"{self._safe(group)}:"
            yield self._lane(lane, slices)
        if recording.marks:
            yield self._marks()
        yield self._axis()
        for counter in self.counters:
            steps = Steps((at, value if value < 1e300 else 0.0) for at, value in counter.samples)
            top = max(steps.peak, recording.cores if counter.name == "cores" else 0) or 1.0
            cells = [self._block(share / top) for share in self._shares(steps)]
            yield self._row(counter.name, "".join(cells), f"max {steps.peak:,.4g}")
        yield from self._legend()

    def _lane(self, lane: Lane, slices: Sequence[Slice]) -> str:
        steps = Steps.of_spans((one.began, one.ended) for one in slices)
        stages = {one.stage for one in slices}
        top = max(1.0, steps.peak)
        if lane.kind == "loop" or top > 1:
            right = f"max {top:,.0f}" if slices else ""
        else:
            right = f"{steps.mean(0.0, self.end):.0%}"
        shares = [share / top for share in self._shares(steps)]
        if len(stages) <= 1 and (self.color or lane.kind == "loop" or not self.shared):
            paint = self._paint(next(iter(stages), -1))
            return self._row(lane.name, "".join(map(self._block, shares)), right, paint)
        cells: list[str] = []
        last = None
        for share, stage in zip(shares, self._foremost(slices), strict=True):
            if not self.color:
                cells.append(self._letter(stage, share))
                continue
            if stage != last and share > 0:
                cells.append(self._paint(stage))
                last = stage
            cells.append(self._block(share))
        text = "".join(cells) + ("\x1b[0m" if self.color else "")
        return self._row(lane.name, text, right)

    def _foremost(self, slices: Sequence[Slice]) -> list[int]:
        """Return for each column the stage that was at work longest."""
        per = self.end / self.columns
        busy: list[dict[int, float]] = [{} for _ in range(self.columns)]
        for one in slices:
            first = min(self.columns - 1, max(0, int(one.began / per)))
            last = min(self.columns - 1, max(0, int(one.ended / per)))
            for column in range(first, last + 1):
                part = min(one.ended, (column + 1) * per) - max(one.began, column * per)
                busy[column][one.stage] = busy[column].get(one.stage, 0.0) + max(0.0, part)
        return [max(there, key=there.__getitem__, default=-1) for there in busy]

    def _letter(self, stage: int, share: float) -> str:
        if share < 0.02:
            return " "
        letter = self.letters[stage] if stage >= 0 else "x"
        return letter.upper() if share >= 0.5 else letter

    def _block(self, share: float) -> str:
        if share < 0.005:
            return " "
        return self.blocks[min(8, max(1, round(share * 8)))]

    def _shares(self, steps: Steps) -> list[float]:
        per = self.end / self.columns
        return [steps.mean(n * per, (n + 1) * per) for n in range(self.columns)]

    def _marks(self) -> str:
        cells = [" "] * self.columns
        for mark in reversed(self.recording.marks):
            column = min(self.columns - 1, max(0, int(mark.at / self.end * self.columns)))
            if cells[column] != "!":
                cells[column] = _MARKS.get(mark.kind, "n")
        return self._row("marks", "".join(cells), "")

    def _axis(self) -> str:
        """Return a row with the time at round moments."""
        scale, unit = (1.0, "s") if self.end < 600 else (60.0, "min")
        if self.end < 1:
            scale, unit = 1e-3, "ms"
        length = self.end / scale
        step = 10.0**-6
        while length / step * 12 > self.columns and step < 1e18:
            for factor in (1, 2, 5):
                if length / (step * factor) * 12 <= self.columns:
                    step *= factor
                    break
            else:
                step *= 10
        cells = [" "] * (self.columns + 12)
        n = 0
        while n * step <= length and n < self.columns:
            column = int(n * step / length * self.columns)
            label = f"|{n * step:g}" + (f" {unit}" if n == 0 else "")
            if column < self.columns - 1 or n == 0:
                cells[column : column + len(label)] = label
            n += 1
        return self._row("", "".join(cells)[: self.columns + 3], "", frame=" ")

    def _legend(self) -> Iterator[str]:
        stages = self.recording.stages
        if self.shared or self.color:
            names = [
                f"{self.letters[n]} {self._safe(labelled(stage.name))}"
                for n, stage in enumerate(stages)
            ]
            if self.shared and not self.color:
                names.append("capital where at work for more than half of the time")
            paint = [self._paint(n) for n in range(len(stages))]
            yield from self._listed("stages: ", names, paint)
        kinds = dict.fromkeys(mark.kind for mark in self.recording.marks)
        if kinds:
            names = [f"{_MARKS.get(kind, 'n')} {self._safe(kind)}" for kind in kinds]
            yield from self._listed("marks: ", names)

    def _listed(self, head: str, parts: Sequence[str], paint: Sequence[str] = ()) -> Iterator[str]:
        """Return parts in as many lines as they need, the first letter of each painted."""
        line, length = head, len(head)
        for n, part in enumerate(parts):
            comma = ", " if n < len(parts) - 1 else ""
            if length + _width(part) > self.width and length > len(head):
                yield line
                line, length = " " * len(head), len(head)
            painted = (
                f"{paint[n]}{part[0]}{self._end()}{part[1:]}"
                if paint and n < len(paint) and paint[n]
                else part
            )
            line += painted + comma
            length += _width(part) + len(comma)
        yield line

    def _row(self, name: str, cells: str, right: str, paint: str = "", frame: str = "") -> str:
        bar = frame or ("|" if self.ascii else "│")
        name = _fit(self._safe(name), self.left)
        ending = self._end() if paint else ""
        return f"{name} {bar}{paint}{cells}{ending}{bar}{right[:_RIGHT]:>{_RIGHT}}"

    def _paint(self, stage: int) -> str:
        return f"\x1b[{_COLORS[stage % len(_COLORS)]}m" if self.color and stage >= 0 else ""

    def _end(self) -> str:
        return "\x1b[0m" if self.color else ""

    def _safe(self, text: str) -> str:
        """Return a name without what a terminal would obey or can't show."""
        shown = "".join(char if char.isprintable() else "?" for char in text)
        return shown.encode("ascii", "replace").decode() if self.ascii else shown


def _letters(names: Sequence[str]) -> list[str]:
    """Return a letter for each stage, none twice while there are any: one of its name where that is free."""
    taken: list[str] = []
    for name in names:
        own = [char for char in name.lower() if "a" <= char <= "z"]
        free = (char for char in [*own, *"abcdefghijklmnopqrstuvwxyz"] if char not in taken)
        taken.append(next(free, "x"))
    return taken


def _width(text: str) -> int:
    """Return how many columns a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _fit(text: str, width: int) -> str:
    """Return text cut or filled to exactly so many columns."""
    while _width(text) > width:
        text = text[:-1]
    return text + " " * (width - _width(text))
