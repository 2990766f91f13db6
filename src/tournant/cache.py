"""A cache in front of a function: hits cost next to nothing, misses go to the function once, and only they do.

It wraps a function of one item, or of a list of items (``batch=True``), and stands in its place::

    cache = Cache(embed, batch=True, key=keyed_by("minilm", "2"), store=SQLiteStore("vectors.db"))

    vector = await cache.get(text)
    vectors = await cache.get_many(texts)            # embed() sees only the texts that are not known
    Pipeline(paths).flat_map(chunk).map_batches(cache, size=32)

What it knows lies in memory, and behind that in a `Store` if one is given. A cache serves any number of runs and event loops. It
never starts anything by itself, so there is nothing to close but the store, by whoever made it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from tournant._cache_calls import Call, Wanted, check_arguments, serving
from tournant._cache_sqlite import SQLiteStore
from tournant._cache_stores import (
    MISSING,
    CacheError,
    Entry,
    InvalidCache,
    MemoryStore,
    Missing,
    Store,
)
from tournant._cache_values import cache_key, frozen, keyed_by
from tournant.errors import BatchMismatch, ForgottenAwait, WouldDeadlock, short
from tournant.stages import callable_name, is_coroutine_callable

__all__ = [
    "MISSING",
    "Cache",
    "CacheError",
    "CacheStats",
    "InvalidCache",
    "MemoryStore",
    "Missing",
    "SQLiteStore",
    "Store",
    "cache_key",
    "keyed_by",
]

X = TypeVar("X")
V = TypeVar("V")

_MEMORY = "64MiB"


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has done so far. Hits in memory are not counted: that would cost more than they do.

    Attributes:
        computed: values that the function returned.
        recalled: values that came from the store behind the memory.
        shared: misses that joined a call under way for the same key.
        entries: values in memory.
        bytes: their bytes.
        evicted: values dropped from memory for want of room.
    """

    computed: int
    recalled: int
    shared: int
    entries: int
    bytes: int
    evicted: int


class Cache(Generic[X, V]):
    """Remembers what a function returned.

    * Concurrent misses of a key share one call. A caller that is cancelled leaves the others theirs; when the last has left, the call is
      cancelled too, and the last waits until it has ended.
    * What the function raises reaches everyone who waits for that key, and is not kept. Whoever had only joined a batch of
      somebody else's asks again by himself, since the fault may lie in another row.
    * ``None`` is kept like any other value. Arrays are handed out read-only, since all callers share them; other mutable values
      are shared as they are, so leave them unchanged.

    Args:
        fn: ``async def``, or a plain function, which then runs in a thread (`asyncio.to_thread`). It takes an item and returns a value; with
            `batch` it takes a list of items and returns as many values in the same order.
        key: A plain function of an item that gives its key: hashable, and different for everything that has another result. Default: the
            item itself, so ``1``, ``1.0`` and ``True`` are the same. Needed with a store, which outlives the function: use `keyed_by`.
        store: Where values are kept besides, or instead, if it is a `MemoryStore`. Default: a memory store of this cache's own.
            One store may serve several caches, if their keys tell them apart.
        batch: `fn` takes lists.
        memory: Bytes of values in memory, with a `store` behind them or without; a number or text. Default 64 MiB.
        concurrency: Calls of `fn` at once for the misses of one `get_many`, when `fn` takes single items. Default 64.

    Raises:
        InvalidCache: an argument can't be as it was given.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        key: Callable[[X], Hashable] | None = None,
        store: Store | None = None,
        batch: bool = False,
        memory: int | str | None = None,
        concurrency: int = 64,
    ) -> None:
        where = f"Cache({callable_name(fn) if callable(fn) else short(fn)})"
        check_arguments(where, fn, key, store, memory, concurrency)
        self.__name__ = callable_name(fn)
        self._fn = fn
        self._is_async = is_coroutine_callable(fn)
        self._key = key
        self._batch = batch
        self._concurrency = concurrency
        self._store = None if isinstance(store, MemoryStore) else store
        if isinstance(store, MemoryStore):
            self._memory = store
        else:
            self._memory = MemoryStore(_MEMORY if memory is None else memory)
        self._entries: dict[Hashable, Entry[V]] = self._memory.entries
        self._wanted: dict[Hashable, Wanted] = {}
        self._computed = self._recalled = self._shared = 0

    def peek(self, key: Hashable) -> V | Missing:
        """Return the value in memory or `MISSING`, at once, without a task or an await.

        It takes the key, not the item, and never looks into the store behind the memory. For any thread.
        """
        try:
            entry = self._entries[key]
        except KeyError:
            return MISSING
        entry.used = True
        return entry.value

    async def get(self, x: X) -> V:
        """Return the value for an item: at once if it is in memory, else from the store or the function.

        Raises:
            CacheError: the store can't be used, or can't keep the value.
            Exception: what the function raises.
        """
        make_key = self._key
        key = x if make_key is None else make_key(x)
        try:
            entry = self._entries[key]
        except KeyError:
            pass
        except TypeError as error:
            raise self._unhashable(key, error) from error
        else:
            entry.used = True
            value = entry.value
            if value is not MISSING:  # as it is when another thread has just deleted it
                return value
        return (await self._obtain({key: x}))[key]

    async def get_many(self, xs: Iterable[X]) -> list[V]:
        """Return the values for items, in their order. Only what is not known reaches the function, each key once.

        Raises:
            CacheError: the store can't be used, or can't keep a value.
            BatchMismatch: the function returned another number of values than it was given items.
            Exception: what the function raises. Calls for the other items that nobody else waits for are cancelled then; what had been computed is kept.
        """
        items = list(xs)
        make_key = self._key
        keys: list[Any] = items if make_key is None else [make_key(x) for x in items]
        peek = self.peek
        try:
            values = [peek(key) for key in keys]
            missing: dict[Hashable, X] = {}
            for key, x, value in zip(keys, items, values, strict=True):
                if value is MISSING:
                    missing.setdefault(key, x)
        except TypeError as error:
            raise self._unhashable(keys, error) from error
        if missing:
            found = await self._obtain(missing)
            values = [
                found[key] if value is MISSING else value
                for key, value in zip(keys, values, strict=True)
            ]
        return cast("list[V]", values)

    async def __call__(self, x: Any) -> Any:
        """Stand in the function's place: `get`, or with ``batch=True`` `get_many`."""
        return await (self.get_many(x) if self._batch else self.get(x))

    async def forget(self, *keys: Hashable) -> None:
        """Forget keys, in memory and in the store; a call under way for one of them is not kept either.

        Raises:
            CacheError: the store can't be written.
        """
        for key in keys:
            wanted = self._wanted.pop(key, None)
            if wanted is not None:
                wanted.keep = False
            self._memory.delete(key)
        if self._store is not None:
            await self._store.delete_many(keys)

    def stats(self) -> CacheStats:
        """Return what the cache has done so far."""
        memory = self._memory
        return CacheStats(
            computed=self._computed,
            recalled=self._recalled,
            shared=self._shared,
            entries=len(memory),
            bytes=memory.bytes,
            evicted=memory.evicted,
        )

    def __repr__(self) -> str:
        return f"Cache({self.__name__})"

    # Misses.

    async def _obtain(self, missing: Mapping[Hashable, X]) -> dict[Hashable, V]:
        """Join the calls that are under way for some of the keys, make one for the others, and wait for all."""
        values, again = await self._attempt(missing, join_batches=True)
        if again:
            more, _ = await self._attempt(again, join_batches=False)
            values.update(more)
        return values

    async def _attempt(
        self, missing: Mapping[Hashable, X], *, join_batches: bool
    ) -> tuple[dict[Hashable, V], dict[Hashable, X]]:
        """Return the values, and those items whose batch, somebody else's, has failed."""
        loop = asyncio.get_running_loop()
        waits: list[tuple[Wanted, asyncio.Future[Any]]] = []
        joined: set[Hashable] = set()
        mine: dict[Hashable, X] = {}
        for wanted in serving.get():
            if wanted.key in missing and self._wanted.get(wanted.key) is wanted:
                raise WouldDeadlock(
                    f"{self!r}: the call for {short(wanted.key)} asks the cache for that same key, and would wait for itself"
                )
        for key, x in missing.items():
            under_way = self._wanted.get(key)
            # A call on another loop can't be waited for here. Such runs each make their own.
            if (
                under_way is None
                or under_way.call.loop is not loop
                or (under_way.call.is_batch and not join_batches)
            ):
                mine[key] = x
            else:
                waits.append((under_way, under_way.join(loop)))
                if under_way.call.is_batch:
                    joined.add(key)
        self._shared += len(waits)
        if mine:
            call = Call(loop, is_batch=self._batch and len(mine) > 1)
            for key, x in mine.items():
                wanted = self._wanted[key] = Wanted(key, x, call)
                call.wanted.append(wanted)
                waits.append((wanted, wanted.join(loop)))
            call.start(self._serve(call.wanted))
        values: dict[Hashable, V] = {}
        again: dict[Hashable, X] = {}
        try:
            for wanted, waiter in waits:
                try:
                    values[wanted.key] = await waiter
                except Exception:
                    if wanted.key not in joined:
                        raise
                    again[wanted.key] = missing[wanted.key]
        except BaseException:
            for wanted, waiter in waits:
                wanted.leave(waiter)
            await self._end(waits)
            raise
        await self._end(waits)
        return values, again

    async def _end(self, waits: list[tuple[Wanted, asyncio.Future[Any]]]) -> None:
        """End those calls that nobody waits for any more, and see them end."""
        inside = {wanted.call for wanted in serving.get()}  # they end after us
        ended: list[asyncio.Task[None]] = []
        for call in {wanted.call for wanted, _ in waits}:
            if (task := call.stop()) is not None:
                for wanted in call.wanted:
                    self._unregister(wanted)
                if call not in inside:
                    ended.append(task)
        if ended:
            await asyncio.wait(ended)

    def _unregister(self, wanted: Wanted) -> None:
        if self._wanted.get(wanted.key) is wanted:
            del self._wanted[wanted.key]

    # Calls.

    async def _serve(self, all_wanted: list[Wanted]) -> None:
        """Find or compute what is wanted. Everyone who waits gets an outcome, whatever happens."""
        failure: BaseException = asyncio.CancelledError()
        try:
            if self._store is not None:
                found = await self._store.get_many([wanted.key for wanted in all_wanted])
                for wanted in all_wanted:
                    if wanted.key in found and wanted.keep:
                        self._recalled += 1
                        self._settle(wanted, found[wanted.key])
            rows = [wanted for wanted in all_wanted if self._is_open(wanted)]
            if not rows:
                return
            if self._batch:
                await self._compute_batch(rows)
            elif len(rows) == 1:
                await self._compute(rows[0])
            else:
                queue = iter(rows)
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._concurrency, len(rows))):
                        group.create_task(self._work(queue))
        except BaseException as error:
            failure = error
            if not isinstance(error, Exception):
                raise
        finally:
            for wanted in all_wanted:
                self._fail(wanted, failure)

    async def _work(self, queue: Iterator[Wanted]) -> None:
        for wanted in queue:
            if not self._is_open(wanted):
                continue
            try:
                await self._compute(wanted)
            except BaseException as error:
                task = asyncio.current_task()
                cancelled = task is not None and task.cancelling() > 0
                if cancelled or not isinstance(error, (Exception, asyncio.CancelledError)):
                    raise
                self._fail(wanted, error)

    def _is_open(self, wanted: Wanted) -> bool:
        """Tell whether a value is still to be computed. Once it is told that it isn't, nobody can join any more."""
        if wanted.watched and not wanted.settled:
            return True
        self._unregister(wanted)
        return False

    async def _compute(self, wanted: Wanted) -> None:
        x = wanted.x
        value = frozen(await self._invoke([x] if self._batch else x, [wanted]))
        await self._keep([(wanted, value)])

    async def _compute_batch(self, rows: list[Wanted]) -> None:
        values = await self._invoke([wanted.x for wanted in rows], rows)
        count = len(values) if hasattr(values, "__len__") else None
        if count != len(rows) or isinstance(values, (str, bytes, Mapping)):
            returned = type(values).__name__ if count is None else f"{count} values"
            raise BatchMismatch(
                f"{self!r}: the function was given {len(rows)} items and returned {returned}; "
                "with batch=True it returns a list with one value for each item, in their order"
            )
        await self._keep([(w, frozen(value)) for w, value in zip(rows, values, strict=True)])

    async def _invoke(self, argument: Any, rows: list[Wanted]) -> Any:
        token = serving.set((*serving.get(), *rows))
        try:
            if self._is_async:
                return await self._fn(argument)
            result = await asyncio.to_thread(self._fn, argument)
        finally:
            serving.reset(token)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise ForgottenAwait(
                f"{self!r}: the function is a plain def and returned an awaitable; make it an async def"
            )
        return result

    async def _keep(self, values: list[tuple[Wanted, Any]]) -> None:
        self._computed += len(values)
        if self._store is not None:
            kept = {wanted.key: value for wanted, value in values if wanted.keep}
            await self._store.put_many(kept)
        for wanted, value in values:
            self._settle(wanted, value)

    def _settle(self, wanted: Wanted, value: Any) -> None:
        if wanted.keep:
            self._memory.put(wanted.key, value)
        self._unregister(wanted)
        wanted.resolve(value)

    def _fail(self, wanted: Wanted, error: BaseException) -> None:
        if not wanted.settled:
            self._unregister(wanted)
            wanted.reject(error)

    def _unhashable(self, keys: Any, error: TypeError) -> InvalidCache:
        if "unhashable" not in str(error):
            raise error
        return InvalidCache(
            f"{self!r}: {short(keys)} can't be a key ({error}): give key=, a function of an item that returns text, bytes or numbers"
        )
