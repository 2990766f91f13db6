"""Short forms for people who don't need a pipeline: ``tn.map``, ``tn.for_each``, ``tn.run``."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

from tournant.errors import InvalidPipeline, PipelineFailed, short
from tournant.pipeline import Pipeline
from tournant.report import Report
from tournant.stages import callable_name, is_coroutine_callable
from tournant.sync import refuse_deadlock


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
        InvalidPipeline: an option can't be as it was given.
        PipelineFailed: a call failed. Use a `Pipeline` with ``on_error="skip"`` to go on past failures.
    """
    if options.get("on_error") == "skip":
        raise InvalidPipeline(
            'tn.map(on_error="skip"): a list with holes would not line up with its items; use '
            'tn.Pipeline(items, on_error="skip").map(fn) and look at report.failures, or catch the error in fn'
        )
    refuse_deadlock("tn.map()", "`await tn.Pipeline(items).map(fn).ordered().acollect()`")
    return Pipeline(items).map(fn, **options).ordered(window).collect()


def for_each(
    fn: Callable[..., Any], items: Iterable[Any] | AsyncIterable[Any], **options: Any
) -> Report:
    """Call `fn` with every item, concurrently or in parallel, in no particular order; return the report.

    Arguments and errors as for `map`.
    """
    refuse_deadlock("tn.for_each()", "`await tn.Pipeline(items).for_each(fn).arun()`")
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
    refuse_deadlock("tn.run()", "`await tn.arun()`")
    try:
        return _one_call(fn, args, on, options).collect()[0]
    except PipelineFailed as failed:
        raise failed.exceptions[0] from None


async def arun(fn: Callable[..., Any], *args: Any, on: Any = None, **options: Any) -> Any:
    """Call ``fn(*args)`` on the pool from async code; see `run`."""
    try:
        return (await _one_call(fn, args, on, options).acollect())[0]
    except PipelineFailed as failed:
        raise failed.exceptions[0] from None


def _one_call(
    fn: Callable[..., Any], args: tuple[Any, ...], on: Any, options: dict[str, Any]
) -> Pipeline:
    if not callable(fn):
        raise InvalidPipeline(f"tn.run({short(fn)}): give a callable and its arguments")
    spread = functools.partial(_spread_async if is_coroutine_callable(fn) else _spread, fn)
    return Pipeline([args]).map(spread, on=on, **{"name": callable_name(fn), **options})


def _spread(fn: Callable[..., Any], args: tuple[Any, ...], *state: Any) -> Any:
    return fn(*args, *state)


async def _spread_async(fn: Callable[..., Any], args: tuple[Any, ...], *state: Any) -> Any:
    return await fn(*args, *state)
