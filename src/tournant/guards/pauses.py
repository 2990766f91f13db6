"""Garbage collections, with their times: they stop every thread, and are nobody's mistake."""

from __future__ import annotations

import gc
import threading
from collections import deque
from time import perf_counter

#: (began, ended) of the latest collections that took long enough to matter.
_pauses: deque[tuple[float, float]] = deque(maxlen=64)
#: Seconds from which on a collection matters.
_MATTERS = 0.005
_began = 0.0
_watchers = 0
_lock = threading.Lock()


def _collected(phase: str, info: dict[str, int]) -> None:
    global _began
    # The young generations are over in microseconds; this is called for each of them.
    if info["generation"]:
        if phase == "start":
            _began = perf_counter()
        elif _began:
            ended = perf_counter()
            if ended - _began > _MATTERS:
                _pauses.append((_began, ended))
            _began = 0.0


def watch() -> None:
    """Begin to take times, or count one more who wants them."""
    global _watchers
    with _lock:
        _watchers += 1
        if _watchers == 1:
            gc.callbacks.append(_collected)


def unwatch() -> None:
    """Count one less."""
    global _watchers
    with _lock:
        _watchers -= 1
        if _watchers == 0 and _collected in gc.callbacks:
            gc.callbacks.remove(_collected)


def seconds(began: float, ended: float) -> float:
    """Return for how long collections ran between two moments of `time.perf_counter`."""
    return sum(max(0.0, min(ended, until) - max(began, since)) for since, until in list(_pauses))
