"""A cache's calls under way, who waits for them, and what a cache refuses to be made of. Internal to `tournant.cache`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Hashable
from contextvars import ContextVar
from typing import Any

from tournant._cache_stores import InvalidCache, MemoryStore
from tournant.errors import short
from tournant.stages import is_async_generator_callable, is_coroutine_callable, unwrapped


class Call:
    """One call of the function, or what stands for it: a task.

    Attributes:
        is_batch: the function gets several items at once, so that what it raises may be another item's fault.
        wanted: the keys it is for.
        alive: how many of them are open and waited for.
    """

    __slots__ = ("_stopped", "_task", "alive", "is_batch", "loop", "wanted")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_batch: bool) -> None:
        self.loop = loop
        self.is_batch = is_batch
        self.wanted: list[Wanted] = []
        self.alive = 0
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the call."""
        self._task = self.loop.create_task(work)

    def stop(self) -> asyncio.Task[None] | None:
        """If nobody waits for the call any more, have it end; return its task until it has."""
        if self.alive or self._task is None or self._task.done():
            return None
        if not self._stopped:  # once, so as not to cut short what it does about it
            self._stopped = True
            self._task.cancel()
        return self._task


class Wanted:
    """A key that is being found or computed, and those who wait for it."""

    __slots__ = ("_waiters", "call", "keep", "key", "settled", "watched", "x")

    def __init__(self, key: Hashable, x: Any, call: Call) -> None:
        self.key = key
        self.x = x
        self.call = call
        self.keep = True
        self.settled = False
        self.watched = 0
        self._waiters: list[asyncio.Future[Any]] = []

    def join(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
        # A future each: cancelling a task cancels the future that it waits for.
        waiter: asyncio.Future[Any] = loop.create_future()
        self._waiters.append(waiter)
        if not self.watched:
            self.call.alive += 1
        self.watched += 1
        return waiter

    def leave(self, waiter: asyncio.Future[Any]) -> None:
        """One of them waits no longer."""
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # seen, as far as asyncio is concerned
        if self.settled:
            return
        waiter.cancel()
        self.watched -= 1
        if not self.watched:
            self.call.alive -= 1

    def resolve(self, value: Any) -> None:
        self._settled()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(value)

    def reject(self, error: BaseException) -> None:
        self._settled()
        for waiter in self._waiters:
            if waiter.done():
                continue
            if isinstance(error, Exception):
                waiter.set_exception(error)
            else:
                waiter.cancel()

    def _settled(self) -> None:
        if self.watched:
            self.call.alive -= 1
        self.settled = True


# What the running call computes, so that a function that asks for its own key is told instead of waiting for ever.
serving: ContextVar[tuple[Wanted, ...]] = ContextVar("tournant_cacheserving", default=())


def check_arguments(
    where: str, fn: Any, key: Any, store: Any, memory: int | str | None, concurrency: Any
) -> None:
    """Refuse arguments of a cache that can't be."""
    if not callable(fn):
        raise InvalidCache(f"{where}: a cache needs a function, got {type(fn).__name__}")
    if is_async_generator_callable(fn) or inspect.isgeneratorfunction(unwrapped(fn)):
        raise InvalidCache(
            f"{where}: a generator's results can't be remembered; return a list instead"
        )
    if key is not None and (not callable(key) or is_coroutine_callable(key)):
        raise InvalidCache(f"{where}: key={short(key)}; give a plain function of one item")
    if store is not None and not all(
        is_coroutine_callable(getattr(store, name, None) or int)
        for name in ("get_many", "put_many", "delete_many")
    ):
        raise InvalidCache(
            f"{where}: store={short(store)}; give a MemoryStore, a SQLiteStore, or what has their async methods"
        )
    if key is None and store is not None and not isinstance(store, MemoryStore):
        raise InvalidCache(
            f"{where}: a store outlives the function, so its keys must tell what the function was: give for example "
            'key=keyed_by("model", "version")'
        )
    if memory is not None and isinstance(store, MemoryStore):
        raise InvalidCache(f"{where}: memory={memory!r} and a MemoryStore; give one of them")
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
        raise InvalidCache(
            f"{where}: concurrency={concurrency!r}; give a whole number of 1 or more"
        )
