"""What is shown of a batch while it runs: beside what every run shows, the limits and why, tokens a minute, and the cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from tournant.observe.progress import ProgressDisplay, Style, as_line, as_table
from tournant.observe.rates import RunView, Smoothed
from tournant.report import RunSnapshot

_TOKEN_SECONDS = 30.0
_LINE_SECONDS = 5.0
_LINE_SECONDS_AT_MOST = 60.0


@dataclass(frozen=True, slots=True)
class BatchSnapshot:
    """A batch at one moment.

    Attributes:
        run: The run's counts; ``done`` are answers, ``failed`` failures for good.
        in_flight: Requests that are under way.
        tokens: Tokens read and written so far, as far as the provider says.
        cost: What they cost; ``None`` where nobody said the price.
        limits: The limits as they stand, and why.
        trouble: What keeps the batch from going on, in words; empty when nothing does.
    """

    run: RunSnapshot
    in_flight: int
    tokens: int
    cost: float | None
    limits: str
    trouble: str = ""


class BatchDisplay(ProgressDisplay):
    """Shows how a batch goes on; see `ProgressDisplay`.

    Args:
        snapshot: Called from the display's thread; returns the batch's state, or ``None`` while nothing is asked yet.
        stream: Where to write; standard error by default.
        style: ``"live"``, ``"lines"`` or ``"none"``; chosen by the stream when not given.
    """

    def __init__(
        self,
        snapshot: Callable[[], BatchSnapshot | None],
        *,
        stream: TextIO | None = None,
        style: Style | None = None,
    ) -> None:
        super().__init__(self._look, stream=stream, style=style, unit="requests")
        self._batch = snapshot
        self._rate = Smoothed(_TOKEN_SECONDS)
        self._notes: list[str] = []

    def _look(self) -> RunSnapshot | None:
        seen = self._batch()
        if seen is None:
            return None
        self._notes = notes(seen, 60 * self._rate.update(seen.run.elapsed, seen.tokens))
        return seen.run

    def _write(self, view: RunView, last: bool) -> None:
        if not last and view.elapsed < self._next_line:
            return
        self._next_line = view.elapsed + min(
            _LINE_SECONDS_AT_MOST, max(_LINE_SECONDS, view.elapsed / 20)
        )
        self._put(" | ".join([as_line(view, self._unit), *self._notes]))

    def _draw(self, view: RunView | None) -> None:
        if self._live is None:
            super()._draw(view)
        if self._live is not None and view is not None:
            from rich.console import Group
            from rich.text import Text

            lines = [Text(note) for note in self._notes]
            self._live.update(Group(as_table(view, self._unit), *lines), refresh=True)


def notes(seen: BatchSnapshot, per_minute: float) -> list[str]:
    """Return what is worth saying of a batch beside its counts, a line each.

    Args:
        seen: The batch.
        per_minute: Tokens per minute, lately.
    """
    lines = [f"{seen.in_flight:,} in flight, {seen.limits}"]
    if seen.tokens:
        cost = f", cost {money(seen.cost)}" if seen.cost is not None else ""
        lines.append(f"{per_minute:,.0f} tokens/min, {seen.tokens:,} so far{cost}")
    if seen.trouble:
        lines.append(seen.trouble)
    return lines


def money(amount: float) -> str:
    """Return an amount with as many digits as tell something."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"
