"""Short forms for people who don't need a pipeline: ``tn.map``, ``tn.for_each``, ``tn.run``."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

from tournant.errors import PipelineFailed
from tournant.pipeline import Pipeline
from tournant.report import Report


def map(
    fn: Callable[..., Any],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    window: int = 1000,
    **options: Any,
) -> list[Any]:
    """Return ``[fn(item) for item in items]``, computed concurrently or in parallel; the results are in the items' order.

    Args:
        fn: a coroutine function (runs on the loop) or a plain function (threads, or ``on="processes"``).
        items: an iterable or async iterable.
        window: inputs that may be started ahead of the oldest unfinished one.
        options: as for `Pipeline.map`.

    Raises:
        PipelineFailed: a call failed. Use a `Pipeline` with ``on_error="skip"`` to go on past failures.
    """
    return Pipeline(items).map(fn, **options).ordered(window).collect()


def for_each(
    fn: Callable[..., Any], items: Iterable[Any] | AsyncIterable[Any], **options: Any
) -> Report:
    """Call `fn` with every item, concurrently or in parallel, in no particular order; return the report.

    Arguments and errors as for `map`.
    """
    return Pipeline(items).for_each(fn, **options).run()


def run(fn: Callable[..., Any], *args: Any, on: Any = None, **options: Any) -> Any:
    """Call ``fn(*args)`` on the pool (or the loop) and return its result; what it raises is raised here.

    ``tn.run(parse, text, on="processes")`` is one call in a warm worker process.

    Args:
        fn: a coroutine function or a plain function.
        args: its arguments.
        on: where, as for `Pipeline.map`.
        options: as for `Pipeline.map`.
    """
    pipeline = Pipeline([args]).map(
        _spreading(fn), on=on, name=getattr(fn, "__name__", None), **options
    )
    try:
        return pipeline.collect()[0]
    except PipelineFailed as failed:
        raise failed.exceptions[0] from None


async def arun(fn: Callable[..., Any], *args: Any, on: Any = None, **options: Any) -> Any:
    """Call ``fn(*args)`` on the pool from async code; see `run`."""
    pipeline = Pipeline([args]).map(
        _spreading(fn), on=on, name=getattr(fn, "__name__", None), **options
    )
    try:
        return (await pipeline.acollect())[0]
    except PipelineFailed as failed:
        raise failed.exceptions[0] from None


def _spreading(fn: Callable[..., Any]) -> Callable[..., Any]:
    from tournant.stages import is_coroutine_callable

    if is_coroutine_callable(fn):
        return functools.partial(_spread_async, fn)
    return functools.partial(_spread, fn)


def _spread(fn: Callable[..., Any], args: tuple[Any, ...], *state: Any) -> Any:
    return fn(*args, *state)


async def _spread_async(fn: Callable[..., Any], args: tuple[Any, ...], *state: Any) -> Any:
    return await fn(*args, *state)
