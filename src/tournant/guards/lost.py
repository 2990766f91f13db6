"""Work that gets lost: tasks that nobody keeps, exceptions that nobody fetches, coroutines that nobody awaits."""

from __future__ import annotations

import ast
import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tournant.errors import short
from tournant.guards import places
from tournant.guards.finding import Finding
from tournant.guards.places import Place

_PENDING = "Task was destroyed but it is pending!"
_UNSEEN = ("Task exception was never retrieved", "Future exception was never retrieved")
_NAMED = 200


def made_at(coroutine: Any) -> Place | None:
    """Return the user's own line that made a coroutine, or else where its function begins."""
    innermost: Place | None = None
    for file, line, function in getattr(coroutine, "cr_origin", None) or ():
        if innermost is None:
            innermost = Place(file, line, function)
        if places.owner(file) == "user":
            return Place(file, line, function)
    if innermost is not None:
        return innermost
    code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
    return None if code is None else places.beginning_of(code)


def never_awaited(coroutine: Any) -> Finding:
    """Name a coroutine that was thrown away before it began."""
    place = made_at(coroutine) or Place("", 0, "?")
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    return Finding(
        "never-awaited",
        f"the coroutine {name}() made in {place}{_source(place)} was never awaited, so nothing of it ran: write `await` in "
        "front of the call, or give it to a TaskGroup",
        place.file, place.line, function=place.function,
    )  # fmt: skip


def complaint(context: dict[str, Any]) -> Finding | None:
    """Make a finding of what a loop told its exception handler, if it is about lost work."""
    message = context.get("message", "")
    task = context.get("task") or context.get("future")
    if message == _PENDING:
        coroutine, name = _coroutine(task)
        place = made_at(coroutine) or Place("", 0, "?")
        return Finding(
            "stray-task",
            f"the task of {name} made in {place}{_source(place)} was garbage-collected before it had ended, so the rest of it "
            "never ran: keep a reference to it, or start it in a TaskGroup",
            place.file, place.line, function=place.function,
        )  # fmt: skip
    if message in _UNSEEN:
        error = context.get("exception")
        coroutine, name = _coroutine(task)
        place = made_at(coroutine) or Place("", 0, "?")
        what = f"{type(error).__name__}: {short(str(error), _NAMED)}"
        raised = _raised(error)
        where = f", raised in {raised}," if raised is not None else ""
        return Finding(
            "lost-exception",
            f"the task of {name} made in {place}{_source(place)} failed with {what}{where} and nobody looked: await the task, or "
            "start it in a TaskGroup, which passes the error on",
            place.file, place.line, function=place.function,
        )  # fmt: skip
    return None


def left_behind(tasks: Iterable[asyncio.Task[Any]]) -> list[Finding]:
    """Name the user's own tasks that were still at work when `asyncio.run` ended, but for services that run for ever."""
    findings = []
    for task in tasks:
        coroutine = task.get_coro()
        code = getattr(coroutine, "cr_code", None)
        frame = getattr(coroutine, "cr_frame", None)
        place = made_at(coroutine)
        if code is None or place is None or places.owner(place.file) != "user":
            continue
        if frame is not None and _in_a_loop(code.co_filename, code.co_firstlineno, frame.f_lineno):
            continue
        findings.append(
            Finding(
                "stray-task",
                f"the task of {code.co_qualname}() made in {place}{_source(place)} was still at work when asyncio.run() ended, and "
                "was cancelled: await it before the end, or start it in a TaskGroup",
                place.file,
                place.line,
                function=place.function,
            )
        )
    return findings


def crowd(tasks: list[asyncio.Task[Any]], grown: int) -> Finding:
    """Say that very many tasks wait at once."""
    where: Counter[Place] = Counter()
    for task in tasks[:: max(1, len(tasks) // 100)]:
        place = made_at(task.get_coro())
        if place is not None:
            where[place] += 1
    place = max(where, key=where.__getitem__) if where else Place("", 0, "?")
    return Finding(
        "unbounded-tasks",
        f"{len(tasks):,} tasks wait at once, most of them made in {place}{_source(place)}, and memory has grown by "
        f"{grown / 1e6:,.0f} MB: start fewer at a time (an asyncio.Semaphore, a queue with workers, or "
        "tn.Pipeline(...).map(..., concurrency=100))",
        place.file, place.line, function=place.function,
    )  # fmt: skip


def _coroutine(task: Any) -> tuple[Any, str]:
    if not isinstance(task, asyncio.Task):
        return None, short(task)
    coroutine = task.get_coro()
    return coroutine, f"{getattr(coroutine, '__qualname__', short(coroutine))}()"


def _source(place: Place) -> str:
    return f": `{place.source}`" if place.source else ""


def _raised(error: BaseException | None) -> Place | None:
    trace = getattr(error, "__traceback__", None)
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    for frame, line in reversed(frames):
        if places.owner(frame.f_code.co_filename) == "user":
            return places.place_of(frame)._replace(line=line)
    return None


def _in_a_loop(file: str, first: int, line: int) -> bool:
    """Tell whether a line lies in a loop of the function that begins at `first`: such a task serves for as long as the program runs."""
    return any(
        isinstance(node, (ast.While, ast.AsyncFor))
        and first < node.lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(places.tree(file))
    )
