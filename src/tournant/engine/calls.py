"""What a loop stage calls: the user's callable as a coroutine function, with its timeout; a flat_map's results as an async iterator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tournant.errors import StageTimeout
from tournant.pool.leftovers import FINE, check_result
from tournant.pool.steps import many

Call = Callable[[Any], Coroutine[Any, Any, Any]]


def direct(fn: Callable[[Any], Any]) -> Call:
    """A plain function as a coroutine function, for short functions on the loop and for inline runs."""

    async def call(value: Any) -> Any:
        result = fn(value)
        if type(result) not in FINE:
            check_result(result)
        return result

    return call


def timed(call: Call, seconds: float, name: str) -> Call:
    """`call` with a limit on each attempt."""

    async def limited(value: Any) -> Any:
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await call(value)
        except TimeoutError as error:
            if deadline.expired():
                raise too_long(name, seconds) from error
            raise

    return limited


def too_long(name: str, seconds: float | None) -> StageTimeout:
    """The error of an attempt that overran."""
    return StageTimeout(f"stage {name}: one attempt took longer than its timeout of {seconds} s")


@contextlib.asynccontextmanager
async def children_of(call: Any, value: Any, is_async: bool) -> AsyncIterator[AsyncIterator[Any]]:
    """The results of a flat_map callable as an async iterator, closed in any case."""
    result = call(value)
    if is_async and not hasattr(result, "__aiter__"):
        result = await result
    elif type(result) not in FINE and not hasattr(result, "__aiter__"):
        check_result(result)
    if hasattr(result, "__aiter__"):
        iterator = aiter(result)
    else:
        iterator = _from_sync(many(result))
    try:
        yield iterator
    finally:
        if hasattr(iterator, "aclose"):
            await iterator.aclose()


async def _from_sync(results: Any) -> AsyncIterator[Any]:
    iterator = iter(results)
    try:
        for result in iterator:
            yield result
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


class Deadline:
    """The time limit of a fan-out, which stands still while its results wait for room."""

    def __init__(self, name: str, seconds: float | None) -> None:
        self._name = name
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)
        self._left = seconds or 0.0
        self._runs = False
        self._stopped = False

    async def __aenter__(self) -> None:
        """Start the clock."""
        await self._timeout.__aenter__()
        self._runs = self._seconds is not None

    async def __aexit__(self, *error: Any) -> None:
        """Stop the clock; raise `StageTimeout` if it has run out."""
        self._runs = False
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError as expired:
            raise too_long(self._name, self._seconds) from expired

    def stop(self) -> None:
        """Stand still."""
        if self._runs and not self._timeout.expired():
            due = self._timeout.when()
            assert due is not None
            self._left = due - asyncio.get_running_loop().time()
            self._timeout.reschedule(None)
            self._stopped = True

    def go_on(self) -> None:
        """Run on."""
        if self._stopped:
            self._stopped = False
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
