"""Where a program is listened to while somebody watches it: loops that begin to run, tasks and coroutines that get lost.

Each hook calls what was there before it, and is taken out again when the last watcher has left; where somebody else has put a hook
of their own on top meanwhile, ours stays below it and does nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol

#: Frames that each new coroutine remembers: enough to find the user's line behind a helper or two.
ORIGIN_DEPTH = 3


class Watcher(Protocol):
    """Who watches the program."""

    def loop_begins(self, loop: asyncio.AbstractEventLoop) -> None:
        """A loop is about to run in this thread."""

    def loop_ends(self, loop: asyncio.AbstractEventLoop) -> None:
        """It has stopped; it may run again."""

    def complained(self, context: dict[str, Any]) -> None:
        """A loop's exception handler was called."""

    def never_awaited(self, coroutine: Any) -> None:
        """A coroutine is thrown away that was never awaited."""

    def left_behind(self, tasks: list[asyncio.Task[Any]]) -> None:
        """`asyncio.run` is about to cancel tasks that are still at work."""


_watchers: list[Watcher] = []
_lock = threading.RLock()
_undo: list[Callable[[], None]] = []
#: Where this package lies.
_HOME = os.path.dirname(os.path.dirname(__file__)) + os.sep
#: Loop classes whose ``run_forever`` is ours.
_patched: set[type] = set()


def add(watcher: Watcher) -> None:
    """Have the whole program watched."""
    with _lock:
        _watchers.append(watcher)
        if len(_watchers) == 1:
            _install()


def discard(watcher: Watcher) -> None:
    """End it."""
    with _lock:
        if watcher in _watchers:
            _watchers.remove(watcher)
            if not _watchers:
                while _undo:
                    _undo.pop()()
                _patched.clear()


def notice_uvloop() -> None:
    """Watch uvloop's loops too, once the program has imported it."""
    uvloop = sys.modules.get("uvloop")
    loop_class = getattr(uvloop, "Loop", None)
    if loop_class is not None and loop_class not in _patched:
        with _lock:
            if _watchers:
                _watch_class(loop_class)


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(what was there)`` in the place of an attribute, until all have left."""
    own = name in vars(owner)
    before = getattr(owner, name)
    ours = make(before)
    setattr(owner, name, ours)

    def undo() -> None:
        if vars(owner).get(name) is ours:
            if own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

    _undo.append(undo)


def _install() -> None:
    from asyncio import base_events, runners

    _watch_class(base_events.BaseEventLoop)
    notice_uvloop()
    if hasattr(runners.Runner, "_lazy_init"):
        _replace(runners.Runner, "_lazy_init", _knowing_the_loop)
    if hasattr(runners, "_cancel_all_tasks"):
        _replace(runners, "_cancel_all_tasks", _looking_at_the_rest)
    if hasattr(warnings, "_warn_unawaited_coroutine"):
        _replace(warnings, "_warn_unawaited_coroutine", _hearing_of_coroutines)


def _watch_class(loop_class: type) -> None:
    if loop_class not in _patched:
        _patched.add(loop_class)
        _replace(loop_class, "run_forever", _announcing)


def _announcing(run_forever: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(self: asyncio.AbstractEventLoop) -> None:
        with _lock:
            watchers = list(_watchers)
        for one in watchers:
            one.loop_begins(self)
        try:
            run_forever(self)
        finally:
            for one in watchers:
                one.loop_ends(self)

    return run


def _knowing_the_loop(lazy_init: Callable[[Any], None]) -> Callable[[Any], None]:
    def init(self: Any) -> None:
        lazy_init(self)
        loop = getattr(self, "_loop", None)
        if loop is not None and not isinstance(loop, asyncio.BaseEventLoop):
            notice_uvloop()

    return init


def _looking_at_the_rest(cancel_all: Callable[[Any], None]) -> Callable[[Any], None]:
    def cancel(loop: asyncio.AbstractEventLoop) -> None:
        if not _leaving_by_error():
            rest = [task for task in asyncio.all_tasks(loop) if not task.cancelling()]
            for one in _watchers:
                one.left_behind(rest)
        cancel_all(loop)

    return cancel


def _leaving_by_error() -> bool:
    """Tell whether `asyncio.run` ends because its coroutine raised: then nobody had a chance to wait."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame.f_code.co_name == "__exit__" and "exc_type" in frame.f_locals:
            return frame.f_locals["exc_type"] is not None
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def _hearing_of_coroutines(warn: Callable[[Any], None]) -> Callable[[Any], None]:
    def heard(coroutine: Any) -> None:
        for one in _watchers:
            one.never_awaited(coroutine)
        warn_as_ever(coroutine, warn)

    return heard


def warn_as_ever(coroutine: Any, warn: Callable[[Any], None]) -> None:
    """Say of a coroutine that was never awaited what the program would have said without us, from the same line.

    Args:
        coroutine: the coroutine, which is being freed.
        warn: what would have been called for it.
    """
    standard = getattr(warn, "__module__", "") == "warnings"
    if not standard or (coroutine.cr_origin and not Origins.tracking):
        warn(coroutine)
        return
    # Python's own function counts the frames above it, and ours lie in between; the origin is known because we asked for it.
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HOME):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"coroutine '{coroutine.__qualname__}' was never awaited",
        category=RuntimeWarning,
        stacklevel=level,
        source=coroutine,
    )


class Complaints:
    """Listens to what one loop says to its exception handler, whichever that is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[dict[str, Any]], None]):
        self._loop = loop
        before = loop.call_exception_handler
        self._on = True

        def heard(context: dict[str, Any]) -> None:
            if self._on:
                tell(context)
            before(context)

        self._ours = heard
        self._own = "call_exception_handler" in vars(loop)
        self._before = before
        loop.call_exception_handler = heard  # type: ignore[method-assign]

    def stop(self) -> None:
        """Listen no more."""
        self._on = False
        if vars(self._loop).get("call_exception_handler") is self._ours:
            if self._own:
                self._loop.call_exception_handler = self._before  # type: ignore[method-assign]
            else:
                del self._loop.call_exception_handler


class Origins:
    """Has coroutines that are made in this thread remember where."""

    #: How many have turned it on that was off.
    tracking = 0

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._before = sys.get_coroutine_origin_tracking_depth()
        if self._before < ORIGIN_DEPTH:
            Origins.tracking += 1
            sys.set_coroutine_origin_tracking_depth(ORIGIN_DEPTH)

    def stop(self) -> None:
        """End it; on the same thread."""
        if threading.get_ident() == self.thread and self._before < ORIGIN_DEPTH:
            Origins.tracking -= 1
            sys.set_coroutine_origin_tracking_depth(self._before)
