"""Tasks that a stage's call leaves behind: joined when the call ends, cancelled when it fails.

The loops of runs have a task factory that notes, for each task, in whose call it was made: the worker's `Strays` lies in a context
variable, which tasks inherit, so a call that makes none pays one look at an empty dict. On a loop that is the caller's own, the factory
that was there goes on making the tasks, and is put back when the last run has left.

A task that a library makes for itself (a connection's keep-alive, a pool's housekeeping) is none of the item's: what counts is which
file called for it. Libraries are the standard library, Tournant, and whatever is installed beside them, but for the package that the
stage's own function is from.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tournant.engine.calls import too_long
from tournant.errors import ForgottenAwait, LostWork, note, short
from tournant.pool.leftovers import Forgotten, Leftovers, present, watch
from tournant.stages import Stage, unwrapped

T = TypeVar("T")

#: Seconds that a call's tasks have to end by themselves, unless the stage has a timeout.
JOIN_SECONDS = 30.0
#: Seconds that cancelled tasks get to clean up.
_CANCEL_SECONDS = 5.0
#: Tasks of one call from which on those that have ended well are forgotten.
_PRUNE = 256
_MISSING: Any = object()

_LIBRARIES = tuple(
    {
        str(Path(path).resolve()) + "/"
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_paths().get(name))
    }
    | {str(Path(__file__).resolve().parents[1]) + "/"}
)
_ASYNCIO = str(Path(asyncio.__file__).resolve().parent) + "/"

#: Tasks that were handed over: asyncio itself holds on to none.
_detached: set[asyncio.Task[Any]] = set()


def detach(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Let a task live on after the item whose stage made it; what it raises is then the business of whoever awaits it.

    Without it, a task that a stage leaves behind is waited for when the item ends, and its exception fails the item.
    Outside of a stage it only keeps the task from being garbage-collected.

    Args:
        task: from ``asyncio.create_task``.

    Returns:
        The task.

    Raises:
        ForgottenAwait: it is no task.
    """
    if not isinstance(task, asyncio.Future):
        close = getattr(task, "close", None)
        if callable(close):
            close()
        raise ForgottenAwait(
            f"tn.detach({short(task)}): give a task: tn.detach(asyncio.create_task(...))"
        )
    left = present.get()
    if left is not None:
        left.pop(task, None)
    if not task.done():
        _detached.add(task)
        task.add_done_callback(_detached.discard)
    return task


class Strays(Leftovers):
    """What the call in progress of one loop worker has left behind: tasks, with file and line of their making, and coroutines."""

    __slots__ = ("_homes", "_owner", "_prune_at")

    def __init__(self, stages: list[Stage]) -> None:
        super().__init__()
        self._owner: asyncio.Task[Any] | None = None
        self._homes = frozenset(filter(None, map(_home, stages)))
        self._prune_at = _PRUNE

    def begin(self) -> Strays:
        """Belong to the present task from now on: what is made inside its calls is noted here."""
        self._owner = asyncio.current_task()
        present.set(self)
        return self

    def mine(self) -> bool:
        """Tell whether the present task is the worker's, or was made by its call: it may be a library's, of an earlier one."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return True  # in a thread that the call has started
        return task is not None and (task is self._owner or task in self)

    def made(self, task: asyncio.Task[Any]) -> None:
        """Note a task."""
        if not self.mine():
            return
        if len(self) >= self._prune_at:
            self._prune()
        self[task] = _maker(self._homes)

    def _prune(self) -> None:
        for task in [t for t in self if isinstance(t, asyncio.Task) and t.done()]:
            if not _unseen(task):
                del self[task]
        self._prune_at = 2 * max(_PRUNE, len(self))

    async def settle(self, stage: Stage, spent: float) -> None:
        """Wait for the tasks that a call of `stage` has left, and raise what they raised.

        Args:
            stage: the stage.
            spent: seconds that the call took: what is left of a timeout is for its tasks.

        Raises:
            ForgottenAwait: a coroutine was never awaited.
            LostWork: a task came to no end.
            StageTimeout: the same where the stage has a timeout.
            Exception: what a task raised, with a note that says where it was made.
        """
        seconds = JOIN_SECONDS if stage.timeout is None else max(0.0, stage.timeout - spent)
        due = asyncio.get_running_loop().time() + seconds
        while running := self._running():
            wait = due - asyncio.get_running_loop().time()
            if wait <= 0:
                break
            await asyncio.wait(running, timeout=wait)
        problems: list[Exception] = []
        late = self._running()
        if late:
            error: Exception = LostWork(
                f"stage {stage.name}: the call returned and left {_named(late[0], self[late[0]])} running, which had not ended "
                f"{seconds:g} s later; await it before you return, or hand it over with tn.detach(task) if it is to live on"
            )
            problems.append(error if stage.timeout is None else _timed_out(stage, error))
        problems += self._raised()
        forgotten = any(type(entry) is Forgotten for entry in self)
        if late:
            await self._cancel(late)
        if forgotten:
            problems.append(self.first_error(unwrapped(stage.fn) if stage.fn is not None else None))
        self.clear()
        if not problems:
            return
        for other in problems[1:]:
            note(problems[0], f"besides, the same call left behind: {other!r}")
        raise problems[0]

    async def give_up(self, error: BaseException) -> None:
        """Cancel the tasks of a call that has failed with `error`, and note what they raised on it."""
        running = self._running()
        if running:
            await self._cancel(running)
        for other in self._raised():
            if other is not error:
                note(error, f"besides, a task of the same call raised {other!r}")
        self.clear()

    def _running(self) -> list[asyncio.Task[Any]]:
        return [
            entry
            for entry, place in self.items()
            if place is not None and isinstance(entry, asyncio.Task) and not entry.done()
        ]

    def _raised(self) -> list[Exception]:
        """Return what tasks raised and nobody has looked at."""
        errors = []
        for task, place in self.items():
            if place is None or not isinstance(task, asyncio.Task) or not _unseen(task):
                continue
            error = task.exception()
            if isinstance(error, Exception):
                note(error, f"raised by {_named(task, place)}, which the stage's call left behind")
                errors.append(error)
        return errors

    @staticmethod
    async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


def _unseen(task: asyncio.Task[Any]) -> bool:
    """Tell whether `task` has raised and nobody has asked for it."""
    return task.done() and not task.cancelled() and bool(getattr(task, "_log_traceback", False))


def _named(task: asyncio.Task[Any], place: tuple[str, int]) -> str:
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", None) or task.get_name()
    return f"the task {name}() made at {place[0]}:{place[1]}"


def _timed_out(stage: Stage, cause: Exception) -> Exception:
    error = too_long(stage.name, stage.timeout)
    note(error, str(cause))
    return error


def _home(stage: Stage) -> str | None:
    """Return the package of a stage's function, whose tasks are the user's wherever it is installed."""
    fn = unwrapped(stage.fn) if stage.fn is not None else None
    # A bound method is as likely a client's of some library as the user's own.
    code = getattr(fn, "__code__", None) if not hasattr(fn, "__self__") else None
    package = _package(code.co_filename) if code is not None else None
    return package if package not in _LIBRARIES else None


@lru_cache(4096)
def _package(filename: str) -> str | None:
    """Return the folder or file of the library that `filename` belongs to; ``None`` for a program's own code."""
    path = str(Path(filename).resolve()) if not filename.startswith("<") else filename
    for marker in ("/site-packages/", "/dist-packages/"):
        before, found, inside = path.partition(marker)
        if found:
            return before + found + inside.split("/")[0]
    for library in _LIBRARIES:
        if path.startswith(library):
            return library
    return None


def is_users(filename: str) -> bool:
    """Tell whether a file is the program's own, no library's."""
    return _package(filename) is None and not filename.startswith("<frozen")


def _maker(homes: frozenset[str]) -> tuple[str, int] | None:
    """Return file and line that called for a task; ``None`` where a library did so for itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _passes_on(frame.f_code.co_filename):
        frame = frame.f_back
    package = _package(frame.f_code.co_filename)
    if package is not None and package not in homes:
        return None
    return frame.f_code.co_filename, frame.f_lineno


@lru_cache(1024)
def _passes_on(filename: str) -> bool:
    """Tell whether a file only makes tasks for its callers: asyncio, and this one."""
    return filename == __file__ or str(Path(filename).resolve()).startswith(_ASYNCIO)


class Watched:
    """The task factory of a loop that runs use."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.runs = 0
        self.before = loop.get_task_factory()

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Leave `loop` as it was found, once the last run on it has ended."""
        self.runs -= 1
        # Whoever has put a factory of his own over this one goes on calling it; it finds no run then, and only makes tasks.
        if not self.runs and not loop.is_closed() and loop.get_task_factory() is self:
            loop.set_task_factory(self.before)

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Future[Any]:
        """Make a task, and note it where it was made in a stage's call."""
        before: Callable[..., Any] | None = self.before
        task: Any = (
            asyncio.Task(coroutine, loop=loop, **options)
            if before is None
            else before(loop, coroutine, **options)
        )
        context = options.get("context")
        left = present.get() if context is None else context.get(present, _MISSING)
        if left is _MISSING:
            left = present.get()
        if isinstance(left, Strays):
            left.made(task)
        return task  # type: ignore[no-any-return]


def attach(loop: asyncio.AbstractEventLoop) -> Watched:
    """Note the tasks of the stages on `loop`, on whose thread this is called, until `Watched.leave`."""
    watch()
    watched = loop.get_task_factory()
    if not isinstance(watched, Watched):
        watched = Watched(loop)
        loop.set_task_factory(watched)
    watched.runs += 1
    return watched
