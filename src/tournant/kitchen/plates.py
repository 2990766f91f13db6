"""What travels through the kitchen: a plate per order, which keeps a record of who worked on it."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

Address = tuple[str, int]
Row = tuple[str, int, int]


class Step(NamedTuple):
    """One task done for one order, and who did it.

    Attributes:
        name: ``"query"``, ``"blur"``, ``"compress"`` or ``"upload"``.
        order: the order's number.
        began: seconds on the machine's monotonic clock, which all processes share.
        ended: seconds on the same clock.
        cpu: seconds for which the thread computed meanwhile. On an event loop that includes what other tasks computed.
        pid: the process.
        thread: the thread's name.
        thread_id: the thread's number in the operating system.
        task: the asyncio task's name; empty outside of an event loop.
        cores: the cores on which the step began and ended; empty where the system does not say.
    """

    name: str
    order: int
    began: float
    ended: float
    cpu: float
    pid: int
    thread: str
    thread_id: int
    task: str
    cores: tuple[int, ...]


class Setting(NamedTuple):
    """What is the same for all orders.

    Attributes:
        database: address of the database server.
        uploads: address of the upload server.
        side: width and height of the photographs in pixels.
    """

    database: Address
    uploads: Address
    side: int


@dataclass(frozen=True, slots=True)
class Plate:
    """One order on its way. Each task returns a new plate with its own result on it.

    Attributes:
        order: its number, from 1.
        setting: the servers and the size of the photographs.
        rows: what the database said: dish, how many, price in cents.
        image: the photograph, one byte a pixel.
        png: the compressed photograph.
        digest: what the upload server received, as SHA-256.
        steps: who did what, in the order in which it was done.
    """

    order: int
    setting: Setting
    rows: tuple[Row, ...] = ()
    image: bytes = b""
    png: bytes = b""
    digest: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def result(self) -> tuple[int, tuple[Row, ...], bytes, bytes, str]:
        """What must come out the same, whoever cooked."""
        return (self.order, self.rows, self.image, self.png, self.digest)


def recorded(task: Callable[[Plate], Any]) -> Callable[[Plate], Any]:
    """Have a task, a plain function or a coroutine function, note on the plate who did it, when and where."""
    name = task.__name__.removeprefix("async_")

    if inspect.iscoroutinefunction(task):

        @functools.wraps(task)
        async def awaited(plate: Plate) -> Plate:
            note = _Note(name, plate.order)
            return note.on(await task(plate))

        return awaited

    @functools.wraps(task)
    def called(plate: Plate) -> Plate:
        note = _Note(name, plate.order)
        return note.on(task(plate))

    return called


class _Note:
    """A step from its beginning; `on` ends it and puts it onto the plate."""

    def __init__(self, name: str, order: int) -> None:
        self.name, self.order = name, order
        self.core = _core()
        self.cpu = time.thread_time()
        self.began = time.monotonic()

    def on(self, plate: Plate) -> Plate:
        ended = time.monotonic()
        cores = {core for core in (self.core, _core()) if core is not None}
        step = Step(
            self.name, self.order, self.began, ended, time.thread_time() - self.cpu, os.getpid(), threading.current_thread().name,
            threading.get_native_id(), _task_name(), tuple(sorted(cores)),
        )  # fmt: skip
        return replace(plate, steps=(*plate.steps, step))


def _task_name() -> str:
    # A worker process that never had an event loop shall not import asyncio for the question.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return ""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return ""
    return "" if task is None else str(task.get_name())


@functools.cache
def _sched_getcpu() -> Callable[[], int] | None:
    """The C library's function, which Python has no name for; not every system has it."""
    try:
        import ctypes

        # PyDLL keeps the GIL: the question takes nanoseconds, and must not give the core to somebody else.
        function = ctypes.PyDLL(None).sched_getcpu
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    function.restype, function.argtypes = ctypes.c_int, []
    return function


def _core() -> int | None:
    ask = _sched_getcpu()
    core = ask() if ask is not None else -1
    return core if core >= 0 else None
