"""What a loop's thread waits for when it hangs: work that only this loop could do, or a lock that only this loop could give back.

Looked at once for each block that has lasted a second, so it may cost a millisecond or two.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import gc
import threading
from types import CellType, FrameType, FunctionType
from typing import Any, NamedTuple

from tournant.guards import places
from tournant.guards.places import Place

_LOCK_TYPES = (type(threading.Lock()), type(threading.RLock()))
_ASYNC_LOCKS = (asyncio.Lock, asyncio.Semaphore, asyncio.Condition)
_PENDING = object()


class Wait(NamedTuple):
    """What was found out.

    Attributes:
        what: a clause for the sentence, such as "it waits for a coroutine that only this loop can run".
        mend: how to mend it, as a clause.
        deadlock: it can't end by itself.
    """

    what: str
    mend: str
    deadlock: bool


def examine(
    frames: list[FrameType], task: Any, loop: asyncio.AbstractEventLoop, thread: int
) -> Wait | None:
    """Tell what the loop's thread waits for.

    Args:
        frames: of the callback in work, the innermost first.
        task: the task in work, if it is one.
        loop: the loop.
        thread: the identifier of its thread.
    """
    future = _future_waited_for(frames)
    if future is not None and _needs(future, loop):
        return Wait(
            "it waits for a result that only this very loop can bring about, so neither ever comes",
            "await it (asyncio.wrap_future turns the future of run_coroutine_threadsafe into one that can be awaited)",
            True,
        )
    other = _other_thread(frames, loop, thread) if future is not None or _in_wait(frames) else None
    if other is not None:
        return Wait(
            f"it waits for another thread, and that one waits at {other} for this very loop, so neither ever ends",
            "await asyncio.to_thread(...) or asyncio.wrap_future(...) instead of waiting here",
            True,
        )
    lock = _lock_waited_for(frames)
    if lock is not None:
        holder = _holder(lock, loop, task)
        if holder is not None:
            return Wait(
                f"it waits for a threading lock that a task of this loop took and still holds across an await, at {holder}, so "
                "neither ever goes on",
                "use an asyncio.Lock with async with, or give the lock back before the await",
                True,
            )
    return None


def holding(frames: list[FrameType]) -> Place | None:
    """Return where the code that stands in `frames` holds an asyncio lock; ``None`` if it holds none."""
    for frame in frames:
        for line, lock in _held(frame, asynchronous=True):
            if isinstance(lock, _ASYNC_LOCKS) and _locked(lock):
                return places.place_of(frame)._replace(line=line)
    return None


# Futures.


def _future_waited_for(frames: list[FrameType]) -> concurrent.futures.Future[Any] | None:
    for frame in frames[:8]:
        code = frame.f_code
        if code.co_name in ("result", "exception") and code.co_filename.endswith(
            "concurrent/futures/_base.py"
        ):
            future = frame.f_locals.get("self")
            if isinstance(future, concurrent.futures.Future) and not future.done():
                return future
    return None


def _needs(future: concurrent.futures.Future[Any], loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether only `loop` can complete `future`."""
    for callback in list(getattr(future, "_done_callbacks", ())):
        # A future that stands for a task: cancelling it is passed on to the task by a callback.
        if _mentions(callback, loop):
            return True
    # The callback that starts the coroutine still waits in the loop's queue, and holds the future in a cell.
    for cell in gc.get_referrers(future):
        if isinstance(cell, CellType):
            for closure in gc.get_referrers(cell):
                if isinstance(closure, tuple):
                    for function in gc.get_referrers(closure):
                        if isinstance(function, FunctionType) and _mentions(function, loop):
                            return True
    return False


def _mentions(function: Any, loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a function of asyncio has to do with `loop`."""
    if not isinstance(function, FunctionType) or not (function.__module__ or "").startswith(
        "asyncio"
    ):
        return False
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if value is loop or (isinstance(value, asyncio.Future) and value.get_loop() is loop):
            return True
    return False


def _in_wait(frames: list[FrameType]) -> bool:
    """Tell whether a stack stands in one of threading's or queue's waits."""
    code = frames[0].f_code if frames else None
    return code is not None and code.co_filename.endswith(("threading.py", "queue.py"))


def _other_thread(
    frames: list[FrameType], loop: asyncio.AbstractEventLoop, thread: int
) -> Place | None:
    """Return where another thread waits for the loop."""
    mine = {thread, threading.get_ident()}
    for other in threading.enumerate():
        if other.ident is None or other.ident in mine:
            continue
        stack = places.frames_of(other.ident)
        future = _future_waited_for(stack)
        if future is not None and _needs(future, loop):
            guilty = places.culprit(stack)
            return places.place_of(guilty) if guilty is not None else None
    return None


# Locks.


def _lock_waited_for(frames: list[FrameType]) -> Any:
    """Return the lock at whose ``with`` or ``acquire()`` the innermost frame stands."""
    if not frames:
        return None
    frame = frames[0]
    for node in ast.walk(places.tree(frame.f_code.co_filename)):
        if isinstance(node, ast.With) and node.lineno <= frame.f_lineno < node.body[0].lineno:
            exprs = [item.context_expr for item in node.items]
        elif (
            isinstance(node, ast.Call)
            and node.lineno == frame.f_lineno
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "acquire"
        ):
            exprs = [node.func.value]
        else:
            continue
        for expr in exprs:
            lock = _value(expr, frame)
            if isinstance(lock, _LOCK_TYPES) and _locked(lock):
                return lock
    return None


def _holder(lock: Any, loop: asyncio.AbstractEventLoop, task: Any) -> Place | None:
    """Return where a suspended task of `loop` holds `lock`."""
    for other in asyncio.all_tasks(loop):
        if other is task:
            continue
        awaited: Any = other.get_coro()
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None)
            if frame is None:
                break
            for line, held in _held(frame, asynchronous=False):
                if held is lock:
                    return places.place_of(frame)._replace(line=line)
            awaited = getattr(awaited, "cr_await", None)
    return None


def _held(frame: FrameType, *, asynchronous: bool) -> list[tuple[int, Any]]:
    """Return what the ``with`` blocks around a frame's line hold, as pairs of their line and the value."""
    kind = ast.AsyncWith if asynchronous else ast.With
    line = frame.f_lineno
    found = []
    for node in ast.walk(places.tree(frame.f_code.co_filename)):
        if (
            isinstance(node, kind)
            and node.body[0].lineno <= line <= (node.end_lineno or node.lineno)
            and frame.f_code.co_firstlineno <= node.lineno
        ):
            for item in node.items:
                value = _value(item.context_expr, frame)
                if value is not _PENDING:
                    found.append((node.lineno, value))
    return found


def _value(expr: ast.expr, frame: FrameType) -> Any:
    """Return what a name, or a chain of attributes, stands for in a frame; runs no code of the program."""
    if isinstance(expr, ast.Name):
        for names in (frame.f_locals, frame.f_globals):
            if expr.id in names:
                return names[expr.id]
    if isinstance(expr, ast.Attribute):
        base = _value(expr.value, frame)
        if base is not _PENDING:
            return getattr(base, "__dict__", {}).get(expr.attr, _PENDING)
    return _PENDING


def _locked(lock: Any) -> bool:
    try:
        return bool(lock.locked())
    except AttributeError:  # An RLock, before Python 3.14.
        return "unlocked" not in repr(lock)
