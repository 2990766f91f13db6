"""Ctrl-C and SIGTERM on a run: the first drains it, the second cancels it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """A run that can be asked to stop. Both methods must return at once, in whatever thread."""

    def drain(self) -> None:
        """Take nothing new, finish what is in flight."""

    def cancel(self) -> None:
        """Drop what is in flight."""


class StopOnSignals:
    """Turns signals into a drain, then a cancellation, as long as it is entered.

    The first SIGINT or SIGTERM drains the run and says so, the second cancels it, and a third gets what it would have got without
    us. While there is no run yet, a signal is a ``KeyboardInterrupt``: there is nothing to finish.
    Outside the main thread, where Python hands out no signals, it watches for none.

    Args:
        say: Writes one line for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Stoppable | None = None
        self._count = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def interrupted(self) -> bool:
        """Whether a signal has come."""
        return self._count > 0

    @property
    def cancelled(self) -> bool:
        """Whether a second signal has come."""
        return self._count > 1

    def attach(self, run: Stoppable) -> None:
        """Name the run that signals stop from now on."""
        self._run = run

    def __enter__(self) -> StopOnSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                # What was ignored (nohup, a shell's background job) stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # None: a handler that was not installed from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._run is None:
            raise KeyboardInterrupt
        if self._count == 1:
            self._run.drain()
            again = "press Ctrl-C again" if number == signal.SIGINT else "signal again"
            self._say(f"Stopping: what is in flight is being finished; {again} to cancel it.")
        else:
            self._run.cancel()
            self._say("Cancelling: what is in flight is dropped; the next run does it again.")
            self._restore()


def end_on_signals(code: int) -> None:
    """From now on let SIGINT and SIGTERM end the process at once, with this exit code and without a word."""
    if threading.current_thread() is threading.main_thread():
        for number in _WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(code))
