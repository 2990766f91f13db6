"""The five ways to do the same work. Each takes the plates and returns them cooked; they are short on purpose.

The first four are plain Python, as the standard library offers them. The last is a Tournant pipeline: every task where it belongs.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, NamedTuple

import tournant as tn
from tournant import sync
from tournant.kitchen import tasks
from tournant.kitchen.plates import Plate

Task = Callable[[Plate], Any]


class Work(NamedTuple):
    """What is done for each order.

    Attributes:
        name: what it is called on the command line.
        title: what it is, in a few words.
        plain: the tasks in their order as plain functions.
        awaited: the same for an event loop: coroutine functions where a task waits, plain functions where it computes.
        placed: where a pipeline runs each: ``"loop"``, ``"threads"`` or ``"processes"``.
    """

    name: str
    title: str
    plain: tuple[Task, ...]
    awaited: tuple[Task, ...]
    placed: tuple[str, ...]

    @property
    def waits(self) -> bool:
        """Whether any of its tasks waits."""
        return self.plain != self.awaited

    @property
    def thinks(self) -> tuple[str, ...]:
        """The names of those of its tasks that compute."""
        return tuple(task.__name__ for task in self.awaited if task in self.plain)


WORKS = {
    work.name: work
    for work in (
        Work(
            "waiting", "a database query and a file upload",
            (tasks.query, tasks.upload), (tasks.async_query, tasks.async_upload), ("loop", "loop"),
        ),
        Work(
            "thinking", "image processing in Python, which holds the GIL",
            (tasks.blur,), (tasks.blur,), ("processes",),
        ),
        Work(
            "native", "image compression in C (zlib), which lets go of the GIL",
            (tasks.compress,), (tasks.compress,), ("threads",),
        ),
        Work(
            "meal", "all of it: query, image processing, compression, upload",
            (tasks.query, tasks.blur, tasks.compress, tasks.upload),
            (tasks.async_query, tasks.blur, tasks.compress, tasks.async_upload),
            ("loop", "processes", "threads", "loop"),
        ),
    )
}  # fmt: skip

#: The ways and what they are in a kitchen.
WAYS = {
    "synchronous": "one cook, one dish at a time",
    "concurrent": "one cook, many dishes: tasks on an event loop",
    "threads": "many cooks, one GIL: a thread for each dish",
    "processes": "many cooks with a stove each: a process for each core",
    "hybrid": "the tournant: a pipeline, each task where it belongs",
}


def cook(work: str, plate: Plate) -> Plate:
    """Cook one dish from its first task to its last."""
    for task in WORKS[work].plain:
        plate = task(plate)
    return plate


async def async_cook(work: str, plate: Plate) -> Plate:
    """Cook one dish on an event loop; where a task computes, the loop stands still."""
    for task in WORKS[work].awaited:
        done = task(plate)
        plate = await done if asyncio.iscoroutine(done) else done
    return plate


def synchronous(work: str, plates: Sequence[Plate]) -> list[Plate]:
    """One cook, one dish at a time: a loop, as everybody writes it first."""
    return [cook(work, plate) for plate in plates]


def concurrent(work: str, plates: Sequence[Plate]) -> list[Plate]:
    """One cook, many dishes: one thread, an event loop, and a task for each order."""

    async def everything() -> list[Plate]:
        return await asyncio.gather(
            *(
                asyncio.create_task(async_cook(work, plate), name=f"order {plate.order}")
                for plate in plates
            )
        )

    return sync.run(everything, here=True)


def threads(work: str, plates: Sequence[Plate], pool: ThreadPoolExecutor) -> list[Plate]:
    """Many cooks, one GIL: a thread for each order."""
    return list(pool.map(functools.partial(cook, work), plates))


def processes(work: str, plates: Sequence[Plate], pool: ProcessPoolExecutor) -> list[Plate]:
    """Many cooks with a stove each: a process for each core, which takes one order after the other."""
    return list(pool.map(functools.partial(cook, work), plates))


def hybrid(work: str, plates: Sequence[Plate]) -> list[Plate]:
    """The tournant: a pipeline in which each task runs where it belongs, and the cores go where the work is."""
    pipeline = tn.Pipeline(plates, key=lambda plate: plate.order)
    for task, on in zip(WORKS[work].awaited, WORKS[work].placed, strict=True):
        pipeline = pipeline.map(task, on=on)  # type: ignore[arg-type]
    return pipeline.ordered().collect()
