from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tournant as tn
from tournant import _cache_file, _cache_values
from tournant.cache import (
    MISSING,
    Cache,
    CacheError,
    InvalidCache,
    MemoryStore,
    SQLiteStore,
    cache_key,
    keyed_by,
)
from tournant.errors import BatchMismatch, ForgottenAwait, TournantError, WouldDeadlock
from tournant.stages import is_coroutine_callable


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    """Run a test on a loop of its own; what it leaves behind fails it."""

    async def main() -> Any:
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        async with asyncio.timeout(20):
            result = await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        gc.collect(0)
        assert not lost, lost
        return result

    return asyncio.run(main())


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came about")


class Calls:
    """A function that notes what it was called with, and can be made to wait."""

    def __init__(self, *, waits: bool = False, fails: Exception | None = None) -> None:
        self.seen: list[Any] = []
        self.cancelled = 0
        self.fails = fails
        self.go = asyncio.Event()
        if not waits:
            self.go.set()

    async def __call__(self, x: Any) -> Any:
        self.seen.append(x)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.cancelled += 1
            raise
        if self.fails:
            raise self.fails
        return [f"<{one}>" for one in x] if isinstance(x, list) else f"<{x}>"


# Hits and misses


def test_a_value_is_computed_once_and_peek_sees_it() -> None:
    async def test() -> None:
        calls = Calls()
        cache: Cache[str, str] = Cache(calls)
        assert cache.peek("a") is MISSING
        assert not MISSING
        assert str(MISSING) == repr(MISSING) == "MISSING"
        assert [await cache.get("a"), await cache.get("a"), cache.peek("a")] == ["<a>"] * 3
        assert calls.seen == ["a"]
        assert cache.stats().computed == cache.stats().entries == 1

    run(test)


def test_a_hit_gives_nothing_to_the_loop() -> None:
    async def test() -> None:
        cache: Cache[str, str] = Cache(Calls())
        await cache.get_many("abc")
        for hit in (cache.get("a"), cache.get_many(["a", "b"]), cache("a")):
            with pytest.raises(StopIteration):
                hit.send(None)

    run(test)


def test_none_is_a_value_like_any_other() -> None:
    async def test() -> None:
        seen = []

        async def nothing(x: int) -> None:
            seen.append(x)

        cache: Cache[int, None] = Cache(nothing)
        assert [await cache.get(1), await cache.get(1), cache.peek(1)] == [None] * 3
        assert await cache.get_many([1, 2, 1]) == [None] * 3
        assert seen == [1, 2]

    run(test)


def test_a_key_function_decides_what_is_the_same() -> None:
    async def test() -> None:
        calls = Calls()
        cache: Cache[str, str] = Cache(calls, key=str.lower)
        assert await cache.get_many(["A", "a", "b"]) == ["<A>", "<A>", "<b>"]
        assert cache.peek("a") == "<A>"
        assert cache.peek("A") is MISSING
        assert calls.seen == ["A", "b"]

    run(test)


def test_unhashable_items_need_a_key() -> None:
    async def test() -> None:
        cache: Cache[Any, str] = Cache(Calls())
        for attempt in (cache.get({}), cache.get_many([{}])):
            with pytest.raises(InvalidCache, match="give key="):
                await attempt

        def broken(x: Any) -> Any:
            raise TypeError("mine")

        with pytest.raises(TypeError, match="mine"):
            await Cache(Calls(), key=broken).get(1)

    run(test)


def test_a_plain_function_runs_in_a_thread() -> None:
    async def test() -> None:
        threads = []

        def compute(x: int) -> int:
            threads.append(threading.get_ident())
            return x * 2

        cache: Cache[int, int] = Cache(compute)
        assert await cache.get_many([1, 2, 1]) == [2, 4, 2]
        assert len(threads) == 2
        assert threading.get_ident() not in threads
        batched: Cache[int, int] = Cache(lambda xs: [x + 1 for x in xs], batch=True)
        assert await batched.get_many([1, 2]) == [2, 3]
        with pytest.raises(ForgottenAwait, match="async def"):
            await Cache(lambda x: turns(1)).get(1)

    run(test)


# Many at once


@settings(deadline=None)
@given(known=st.lists(st.integers(0, 9)), asked=st.lists(st.integers(0, 9)), batch=st.booleans())
def test_only_misses_reach_the_function_each_once_and_order_is_kept(
    known: list[int], asked: list[int], batch: bool
) -> None:
    async def test() -> None:
        calls = Calls()
        cache: Cache[int, str] = Cache(calls, batch=batch)
        await cache.get_many(known)
        calls.seen.clear()
        assert await cache.get_many(iter(asked)) == [f"<{x}>" for x in asked]
        misses = [x for x in dict.fromkeys(asked) if x not in known]
        assert calls.seen == (([misses] if misses else []) if batch else misses)

    run(test)


@settings(deadline=None)
@given(
    plans=st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 6), st.integers(0, 9)), max_size=8),
    batch=st.booleans(),
)  # fmt: skip
def test_under_any_interleaving_and_cancelling_nothing_is_computed_twice_or_lost(
    plans: list[tuple[list[int], int, int]], batch: bool
) -> None:
    async def test() -> None:
        running: list[int] = []
        computed: list[int] = []

        async def compute(x: Any) -> Any:
            rows = x if batch else [x]
            running.extend(rows)
            try:
                await turns(1 + rows[0] % 3)
                computed.extend(rows)
                return [f"<{row}>" for row in rows] if batch else f"<{x}>"
            finally:
                for row in rows:
                    running.remove(row)

        cache: Cache[int, str] = Cache(compute, batch=batch, concurrency=2)

        async def caller(xs: list[int], start: int) -> None:
            await turns(start)
            assert await cache.get_many(xs) == [f"<{x}>" for x in xs]

        async def canceller(task: asyncio.Task[None], after: int) -> None:
            await turns(after)
            if after < 8:
                task.cancel()

        tasks = [asyncio.create_task(caller(xs, start)) for xs, start, _ in plans]
        cancelling = [
            canceller(task, after) for task, (*_, after) in zip(tasks, plans, strict=True)
        ]
        await asyncio.gather(*cancelling)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome, (*_, after) in zip(outcomes, plans, strict=True):
            assert outcome is None or (isinstance(outcome, asyncio.CancelledError) and after < 8)
        # A call that was given up may still come through while another for its key has begun.
        if not any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes):
            assert len(computed) == len(set(computed))
        assert not running
        assert not cache._wanted

    run(test)


def test_items_of_a_function_of_one_item_run_side_by_side_up_to_a_bound() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[int, str] = Cache(calls, concurrency=3)
        asking = asyncio.create_task(cache.get_many(range(10)))
        await turns(20)
        assert calls.seen == [0, 1, 2]
        calls.go.set()
        assert await asking == [f"<{x}>" for x in range(10)]

    run(test)


def test_whoever_waits_for_one_of_many_has_it_before_the_rest() -> None:
    async def test() -> None:
        slow = asyncio.Event()

        async def compute(x: int) -> int:
            if x:
                await slow.wait()
            return x

        cache: Cache[int, int] = Cache(compute)
        everything = asyncio.create_task(cache.get_many([1, 0]))
        await turns(1)
        assert await cache.get(0) == 0
        slow.set()
        assert await everything == [1, 0]

    run(test)


@pytest.mark.parametrize("returned", [[1], [1, 2, 3], {1: 1, 2: 2}, "ab", 7, iter([1, 2])])
def test_a_batch_function_that_returns_another_number_of_values_is_refused(returned: Any) -> None:
    async def test() -> None:
        async def wrong(xs: list[int]) -> Any:
            return returned

        cache: Cache[int, int] = Cache(wrong, batch=True)
        with pytest.raises(BatchMismatch, match="2 items"):
            await cache.get_many([1, 2])
        assert cache.peek(1) is MISSING

    run(test)


# One flight


@pytest.mark.parametrize("batch", [False, True])
def test_a_thousand_misses_of_one_key_are_one_call(batch: bool) -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls, batch=batch)
        callers = [asyncio.create_task(cache.get("a")) for _ in range(1000)]
        await turns(3)
        calls.go.set()
        assert await asyncio.gather(*callers) == ["<a>"] * 1000
        assert calls.seen == [["a"] if batch else "a"]
        assert cache.stats().shared == 999

    run(test)


def test_a_cancelled_caller_leaves_the_others_their_call() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls)
        first, second, third = (asyncio.create_task(cache.get("a")) for _ in range(3))
        await turns(3)
        first.cancel()
        await asyncio.wait([first])
        third.cancel()
        await asyncio.wait([third])
        assert first.cancelled()
        assert third.cancelled()
        calls.go.set()
        assert await second == "<a>"
        assert (calls.seen, calls.cancelled) == (["a"], 0)

    run(test)


def test_when_all_callers_have_left_the_call_is_cancelled_and_the_last_sees_its_end() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls)
        callers = [asyncio.create_task(cache.get("a")) for _ in range(3)]
        await turns(3)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        assert all(caller.cancelled() for caller in callers)
        assert calls.cancelled == 1
        calls.go.set()
        assert await cache.get("a") == "<a>"
        assert calls.seen == ["a", "a"]

    run(test)


def test_who_comes_while_an_abandoned_call_is_ending_gets_a_call_of_his_own() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls)
        caller = asyncio.create_task(cache.get("a"))
        await turns(3)
        caller.cancel()
        await turns(1)
        late = asyncio.create_task(cache.get("a"))
        await until(lambda: len(calls.seen) == 2)
        calls.go.set()
        assert await late == "<a>"
        await asyncio.wait([caller])

    run(test)


def test_a_batch_goes_on_while_anybody_waits_for_one_of_its_rows() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls, batch=True)
        batch = asyncio.create_task(cache.get_many(["a", "b", "c"]))
        await turns(3)
        one = asyncio.create_task(cache.get("b"))
        await turns(1)
        batch.cancel()
        await asyncio.wait([batch])
        calls.go.set()
        assert await one == "<b>"
        assert (calls.seen, calls.cancelled) == ([["a", "b", "c"]], 0)
        assert cache.peek("a") == "<a>", "what was computed all the same is kept"

    run(test)


def test_a_row_that_was_left_can_be_joined_again_while_its_batch_goes_on() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls, batch=True)
        batch = asyncio.create_task(cache.get_many(["a", "b"]))
        await turns(3)
        one = asyncio.create_task(cache.get("b"))
        await turns(1)
        batch.cancel()
        await asyncio.wait([batch])
        again = asyncio.create_task(cache.get("a"))
        await turns(1)
        one.cancel()
        await asyncio.wait([one])
        calls.go.set()
        assert await again == "<a>"
        assert calls.seen == [["a", "b"]]

    run(test)


def test_a_batch_computes_only_what_no_other_is_computing() -> None:
    async def test() -> None:
        calls = Calls(waits=True)
        cache: Cache[str, str] = Cache(calls, batch=True)
        first = asyncio.create_task(cache.get_many(["a", "b"]))
        await turns(3)
        second = asyncio.create_task(cache.get_many(["b", "c", "a"]))
        await turns(3)
        calls.go.set()
        assert await first == ["<a>", "<b>"]
        assert await second == ["<b>", "<c>", "<a>"]
        assert calls.seen == [["a", "b"], ["c"]]

    run(test)


def test_an_exception_reaches_all_and_is_not_kept() -> None:
    async def test() -> None:
        calls = Calls(waits=True, fails=LookupError("down"))
        cache: Cache[str, str] = Cache(calls)
        callers = [asyncio.create_task(cache.get("a")) for _ in range(5)]
        await turns(3)
        calls.go.set()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["down"] * 5
        assert calls.seen == ["a"]
        calls.fails = None
        assert await cache.get("a") == "<a>"

    run(test)


def test_one_failing_item_fails_its_many_and_what_was_computed_is_kept() -> None:
    async def test() -> None:
        waiting = asyncio.Event()
        cancelled = []

        async def compute(x: int) -> int:
            if x == 1:
                raise ValueError("one")
            if x == 2:
                try:
                    await waiting.wait()
                except asyncio.CancelledError:
                    cancelled.append(x)
                    raise
            return x

        cache: Cache[int, int] = Cache(compute)
        with pytest.raises(ValueError, match="one"):
            await cache.get_many([0, 1, 2])
        assert cancelled == [2], "nobody waits for it any more"
        assert (cache.peek(0), cache.peek(1), cache.peek(2)) == (0, MISSING, MISSING)

    run(test)


def test_a_poisoned_batch_harms_only_its_own_caller() -> None:
    async def test() -> None:
        seen: list[list[str]] = []
        go = asyncio.Event()

        async def compute(rows: list[str]) -> list[str]:
            seen.append(rows)
            await go.wait()
            if "poison" in rows:
                raise ValueError("poison")
            return rows

        cache: Cache[str, str] = Cache(compute, batch=True)
        bad = asyncio.create_task(cache.get_many(["a", "poison"]))
        await turns(3)
        others = [asyncio.create_task(cache.get("a")) for _ in range(50)]
        more = asyncio.create_task(cache.get_many(["b", "a"]))
        await turns(3)
        go.set()
        with pytest.raises(ValueError, match="poison"):
            await bad
        assert await asyncio.gather(*others) == ["a"] * 50
        assert await more == ["b", "a"]
        assert seen == [["a", "poison"], ["b"], ["a"]]

    run(test)


def test_a_function_that_cancels_itself_leaves_nobody_waiting() -> None:
    async def test() -> None:
        async def gone(x: int) -> int:
            raise asyncio.CancelledError

        for ask in (Cache(gone).get(1), Cache(gone).get_many([1, 2, 3])):
            (outcome,) = await asyncio.gather(asyncio.create_task(ask), return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError)

    run(test)


def test_a_function_may_ask_the_cache_for_other_keys_but_not_for_its_own() -> None:
    async def test() -> None:
        async def fibonacci(n: int) -> int:
            return n if n < 2 else sum(await cache.get_many([n - 1, n - 2]))

        cache: Cache[int, int] = Cache(fibonacci)
        assert await cache.get(30) == 832040
        assert cache.stats().computed == 31

        async def circular(n: int) -> int:
            return await circle.get((n + 1) % 3)

        circle: Cache[int, int] = Cache(circular)
        with pytest.raises(WouldDeadlock, match="itself"):
            await circle.get(0)

    run(test)


def test_runs_on_several_loops_share_what_is_known() -> None:
    cache: Cache[int, str] = Cache(Calls())
    assert run(lambda: cache.get(1)) == "<1>"
    assert run(lambda: cache.get(1)) == "<1>"
    go = threading.Event()

    def compute(x: int) -> int:
        go.wait(20)
        return x

    slow: Cache[int, int] = Cache(compute)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(lambda: slow.get(7)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(20)
    assert found == [7, 7, 7]


def test_what_is_forgotten_is_computed_again_even_if_it_was_on_its_way() -> None:
    async def test() -> None:
        calls = Calls()
        cache: Cache[str, str] = Cache(calls)
        await cache.get_many("ab")
        await cache.forget("a", "never known")
        assert cache.peek("a") is MISSING
        assert cache.peek("b") == "<b>"
        calls.go.clear()
        old = asyncio.create_task(cache.get("a"))
        await turns(3)
        await cache.forget("a")
        new = asyncio.create_task(cache.get("a"))
        await turns(3)
        assert calls.seen == ["a", "b", "a", "a"]
        old.cancel()
        calls.go.set()
        assert await new == cache.peek("a") == "<a>"
        await asyncio.wait([old])

    run(test)


# In a pipeline


def test_the_cache_stands_in_a_stage_under_its_functions_name() -> None:
    seen: list[Any] = []

    async def embed(texts: list[str]) -> list[int]:
        seen.extend(texts)
        return [len(text) for text in texts]

    cache: Cache[str, int] = Cache(embed, batch=True)
    assert is_coroutine_callable(cache)
    texts = ["a", "bb", "ccc"] * 30
    for _ in range(2):
        found = tn.Pipeline(texts).map_batches(cache, size=8).ordered().collect()
        assert found == [len(text) for text in texts]
    assert sorted(seen) == ["a", "bb", "ccc"]
    report = tn.Pipeline(texts).map_batches(cache).run()
    assert report.stages[0].name == "embed"

    single: Cache[str, int] = Cache(len)
    assert tn.Pipeline(texts).map(single).ordered().collect() == [len(text) for text in texts]
    assert single.stats().computed == 3


def test_in_a_pipeline_a_poisoned_row_fails_alone() -> None:
    async def embed(texts: list[str]) -> list[int]:
        if "bad" in texts:
            raise ValueError("bad row")
        return [len(text) for text in texts]

    cache: Cache[str, int] = Cache(embed, batch=True)
    items = [f"text {n}" for n in range(50)]
    items[17] = "bad"
    report = tn.Pipeline(items, on_error="skip").map_batches(cache, size=10).run()
    assert (report.done, report.failed) == (49, 1)


# What is refused


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Cache(3), "needs a function"),  # type: ignore[arg-type]
        (lambda: Cache(generator), "return a list"),
        (lambda: Cache(len, key=turns), "plain function"),
        (lambda: Cache(len, key=3), "plain function"),  # type: ignore[arg-type]
        (lambda: Cache(len, store={}), "async methods"),  # type: ignore[arg-type]
        (lambda: Cache(len, concurrency=0), "1 or more"),
        (lambda: Cache(len, memory="many"), "bytes"),
        (lambda: Cache(len, memory=0), "bytes"),
        (lambda: Cache(len, memory=10, store=MemoryStore()), "one of them"),
        (lambda: Cache(len, store=SQLiteStore("x.db")), "keyed_by"),
        (lambda: MemoryStore(0), "bytes"),
        (lambda: SQLiteStore(""), "path"),
        (lambda: SQLiteStore(":memory:"), "MemoryStore"),
        (lambda: SQLiteStore("x.db", max_bytes="-1"), "bytes"),
    ],
)
def test_arguments_that_cannot_work_are_refused(wrong: Callable[[], Any], says: str) -> None:
    with pytest.raises(InvalidCache, match=says):
        wrong()
    assert issubclass(InvalidCache, TournantError)


async def generator(x: int) -> AsyncIterator[int]:
    yield x


# Keys

parts = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=())),
        st.binary(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def described(part: Any) -> Any:
    """Return what a key is to tell apart, in a form in which 1 and True differ."""
    if isinstance(part, list):
        return ["list", *map(described, part)]
    if isinstance(part, dict):
        return ["dict", *sorted(((key, repr(described(value))) for key, value in part.items()))]
    return [type(part).__name__, repr(part)]


@settings(max_examples=300)
@given(st.lists(parts, max_size=3), st.lists(parts, max_size=3))
def test_keys_are_the_same_only_for_the_same_parts(one: list[Any], other: list[Any]) -> None:
    same = described(one) == described(other)
    assert (cache_key(*one) == cache_key(*other)) == same
    assert cache_key(*one) == cache_key(*one)


@given(st.lists(parts, max_size=3), parts)
def test_keyed_by_gives_the_key_of_its_parts_and_the_item(fixed: list[Any], item: Any) -> None:
    assert keyed_by(*fixed)(item) == cache_key(*fixed, item)


def test_where_a_part_ends_matters_and_where_a_dict_begins_does_not() -> None:
    assert cache_key("ab", "c") != cache_key("a", "bc")
    assert cache_key("ab") != cache_key(b"ab")
    assert cache_key(["a"], "b") != cache_key(["a", "b"])
    assert cache_key() != cache_key([]) != cache_key(None)
    assert len({cache_key(part) for part in (1, 1.0, True, "1", b"1", "True")}) == 6
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert cache_key({3, 1, 2}) == cache_key({1, 2, 3}) != cache_key([1, 2, 3])
    assert cache_key((1, 2)) == cache_key([1, 2])
    assert cache_key(Path("a")) != cache_key("a")
    assert cache_key(2**20_000) != cache_key(2**20_000 + 1)
    assert cache_key(np.float32([1, 2])) != cache_key(np.float64([1, 2]))
    assert cache_key(np.zeros((2, 3))) != cache_key(np.zeros((3, 2)))


def test_a_key_is_the_same_on_every_day() -> None:
    key = cache_key("minilm", 2, {"pooling": "mean"}, "text")
    assert key.hex() == PINNED
    code = "from tournant.cache import cache_key; print(cache_key('minilm', 2, {'pooling': 'mean'}, 'text').hex())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    assert out.stdout.strip() == PINNED


PINNED = "ecd2acde3c4370f6c1825643410dafe14a6453dca2d98f982b58f4c70a0cc019"


def test_what_has_no_lasting_identity_is_no_part_of_a_key() -> None:
    for part in (object(), len, [object()], np.array([object()])):
        with pytest.raises(InvalidCache, match="no part of a cache key"):
            cache_key("a", part)


# The stores: what every one of them does

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(exclude_categories=())),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
values = st.one_of(
    json_values,
    st.binary(max_size=50),
    st.lists(st.floats(), max_size=5),
    st.builds(np.array, st.lists(st.floats(width=32), max_size=5), st.sampled_from(["<f4", "<f8"])),
)


@contextmanager
def store_of(kind: str) -> Iterator[Any]:
    if kind == "memory":
        yield MemoryStore()
        return
    folder = tempfile.mkdtemp()
    try:
        with SQLiteStore(os.path.join(folder, "cache.db")) as store:
            yield store
    finally:
        shutil.rmtree(folder)


every_store = pytest.mark.parametrize("kind", ["memory", "sqlite"])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, float):
        return type(other) is float and (one == other or (one != one and other != other))
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    return type(one) is type(other) and bool(one == other)


@every_store
@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.one_of(st.text(), st.binary()), values, max_size=6))
def test_what_is_put_comes_back_as_it_was(kind: str, items: dict[Any, Any]) -> None:
    async def test(store: Any) -> None:
        await store.put_many(items)
        found = await store.get_many([*items, ("never", "put")])
        assert found.keys() == items.keys()
        for key, value in items.items():
            assert same(value, found[key])

    with store_of(kind) as store:
        run(lambda: test(store))


@every_store
def test_a_store_replaces_deletes_and_does_without(kind: str) -> None:
    async def test(store: Any) -> None:
        await store.put_many({})
        assert await store.get_many([]) == {}
        await store.put_many({"a": 1, "b": None})
        await store.put_many({"a": 2})
        assert await store.get_many(["a", "b", "c", "a"]) == {"a": 2, "b": None}
        await store.delete_many(["a", "c"])
        await store.delete_many([])
        assert await store.get_many(["a", "b"]) == {"b": None}
        many = {f"key {n}": n for n in range(1203)}
        await store.put_many(many)
        assert await store.get_many(many) == many

    with store_of(kind) as store:
        run(lambda: test(store))


@every_store
def test_many_callers_at_once_get_each_his_own(kind: str) -> None:
    async def test(store: Any) -> None:
        async def caller(n: int) -> None:
            await store.put_many({("key", n): [n]})
            assert await store.get_many([("key", n), ("key", -1)]) == {("key", n): [n]}

        await asyncio.gather(*map(caller, range(200)))

    with store_of(kind) as store:
        run(lambda: test(store))


@every_store
def test_a_cache_recalls_from_its_store(kind: str) -> None:
    async def test(store: Any) -> None:
        calls = Calls()
        first: Cache[str, str] = Cache(calls, key=keyed_by("m", 1), store=store, batch=True)
        assert await first.get_many("abc") == ["<a>", "<b>", "<c>"]
        again: Cache[str, str] = Cache(calls, key=keyed_by("m", 1), store=store, batch=True)
        assert await again.get_many("bcda") == ["<b>", "<c>", "<d>", "<a>"]
        assert await again.get("b") == "<b>"
        other: Cache[str, str] = Cache(calls, key=keyed_by("m", 2), store=store, batch=True)
        assert await other.get("a") == "<a>"
        assert calls.seen == [["a", "b", "c"], ["d"], ["a"]]
        await again.forget(keyed_by("m", 1)("a"))
        assert await again.get("a") == "<a>"
        assert calls.seen[3:] == [["a"]]

    with store_of(kind) as store:
        run(lambda: test(store))


# Memory


def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(3 * size_of_one())
    for key in "abc":
        store.put(key, 1)
    assert store.peek("a") == 1
    store.put("d", 1)
    assert [store.peek(key) for key in "abcd"] == [1, MISSING, 1, 1]
    assert (len(store), store.evicted) == (3, 1)


def size_of_one() -> int:
    store = MemoryStore()
    store.put("a", 1)
    return store.bytes


@given(
    st.lists(
        st.tuples(st.sampled_from("ppgd"), st.integers(0, 20), st.integers(0, 400)), max_size=60
    )
)
def test_memory_stays_within_its_bytes_and_never_gives_a_wrong_value(
    steps: list[tuple[str, int, int]],
) -> None:
    store = MemoryStore(2000)
    latest: dict[int, bytes] = {}
    for step, key, size in steps:
        if step == "p":
            latest[key] = os.urandom(size)
            store.put(key, latest[key])
        elif step == "g":
            assert store.peek(key) in (MISSING, latest.get(key))
        else:
            store.delete(key)
            assert store.peek(key) is MISSING
        assert store.bytes <= 2000
        assert store.bytes == sum(entry.size for entry in store.entries.values())
        assert len(store._circle) <= 2 * len(store) + 65
    store.clear()
    assert (len(store), store.bytes) == (0, 0)


def test_what_is_in_steady_use_is_never_dropped() -> None:
    store = MemoryStore(10 * size_of_one())
    store.put("hot", 1)
    for n in range(500):
        assert store.peek("hot") == 1
        store.put(f"c{n % 100}", 1)


def test_a_value_larger_than_the_memory_is_given_but_not_kept() -> None:
    async def test() -> None:
        cache: Cache[int, bytes] = Cache(lambda n: bytes(n), memory=1000)
        assert len(await cache.get(5000)) == 5000
        assert cache.peek(5000) is MISSING
        assert cache.stats().bytes == 0

    run(test)


def test_arrays_are_shared_read_only_and_let_their_batch_go() -> None:
    async def test() -> None:
        async def embed(texts: list[str]) -> Any:
            return np.ones((len(texts), 4), np.float32)

        cache: Cache[str, Any] = Cache(embed, batch=True)
        (one, _) = await cache.get_many(["a", "b"])
        with pytest.raises(ValueError, match="read-only"):
            one *= 2
        assert one.base is None
        assert one is cache.peek("a")
        assert one.dtype == np.float32

    run(test)


# SQLite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


def ask(store: SQLiteStore, *texts: str) -> list[Any]:
    """Ask a new cache over `store`; what it had to compute comes back in angle brackets."""

    async def compute(x: str) -> str:
        return f"<{x}>"

    cache: Cache[str, str] = Cache(compute, key=keyed_by("t"), store=store)
    return run(lambda: cache.get_many(texts))  # type: ignore[no-any-return]


def fill(path: Path, **known: Any) -> None:
    key = keyed_by("t")
    with SQLiteStore(path) as store:
        run(lambda: store.put_many({key(name): value for name, value in known.items()}))


def rows(path: Path, sql: str, *args: Any) -> list[Any]:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return db.execute(sql, args).fetchall()
    finally:
        db.close()


def test_values_outlive_the_process_and_float32_stays_four_bytes(path: Path) -> None:
    vector = np.linspace(0, 1, 256, dtype=np.float32)
    code = (
        "import sys, asyncio, numpy as np; from tournant.cache import SQLiteStore, keyed_by\n"
        "with SQLiteStore(sys.argv[1]) as store:\n"
        "    asyncio.run(store.put_many({keyed_by('t')('a'): np.linspace(0, 1, 256, dtype=np.float32)}))"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=True)
    with SQLiteStore(path) as store:
        (found,) = ask(store, "a")
    assert same(vector, found)
    assert rows(path, "SELECT length(data) FROM entries") == [(1024,)]
    assert not path.with_name("cache.db-wal").exists()


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.array(7),
        np.zeros((0, 3), np.float32),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.array(["2026-01-02"], "M8[D]"),
        [1.5, float("inf")],
        {"usage": {"tokens": 3}, "choices": ["\ud800", None, True, 2**70]},
    ],
)  # fmt: skip
def test_every_kind_of_value_comes_back_as_the_same_kind(path: Path, value: Any) -> None:
    fill(path, a=value)
    with SQLiteStore(path) as store:
        (found,) = ask(store, "a")
    assert type(found) is type(value)
    if isinstance(value, (np.ndarray, np.generic)):
        assert found.dtype == value.dtype
        assert np.array_equal(found, value)
    else:
        assert found == value


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, {"a": {1}}, object(), [Path("a")], np.array([object()]), bytearray(b"a"), [10**5000]],
)  # fmt: skip
def test_what_would_come_back_changed_is_refused(path: Path, value: Any) -> None:
    async def test() -> None:
        async def compute(x: str) -> Any:
            return value if x == "bad" else x

        async with SQLiteStore(path) as store:
            cache: Cache[str, Any] = Cache(compute, key=keyed_by("t"), store=store)
            good, bad = await asyncio.gather(
                cache.get("good"), cache.get("bad"), return_exceptions=True
            )
            assert good == "good"
            assert isinstance(bad, CacheError)
            assert "can't store" in str(bad)

    run(test)


def test_what_is_asked_for_at_once_is_read_and_written_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    go = threading.Event()

    class Watched(_cache_file.CacheFile):
        def read(self, keys: Any) -> Any:
            go.wait(20)
            calls.append(("read", len(keys)))
            return super().read(keys)

        def write(self, rows: Any) -> None:
            calls.append(("write", len(rows)))
            super().write(rows)

    monkeypatch.setattr("tournant._cache_sqlite.CacheFile", Watched)

    async def test() -> None:
        async with SQLiteStore(path) as store:
            cache: Cache[str, str] = Cache(Calls(), key=keyed_by("t"), store=store)
            asking = [asyncio.create_task(cache.get(f"text {n}")) for n in range(100)]
            await turns(5)
            go.set()
            await asyncio.gather(*asking)

    run(test)
    assert sum(count for what, count in calls if what == "read") == 100
    assert sum(count for what, count in calls if what == "write") == 100
    assert len([what for what, _ in calls if what == "read"]) <= 2


def test_two_stores_share_a_file(path: Path) -> None:
    with SQLiteStore(path) as one, SQLiteStore(path) as other:
        assert ask(one, "a") == ["<a>"]
        run(lambda: other.put_many({keyed_by("t")("b"): "from the other"}))
        assert ask(one, "b") == ["from the other"]


def test_a_closed_store_says_so_and_leaves_no_thread(path: Path) -> None:
    store = SQLiteStore(path)
    store.close()
    store = SQLiteStore(path)
    ask(store, "a")
    assert [t for t in threading.enumerate() if t.name == "tournant-cache"]
    store.close()
    store.close()
    assert not [t for t in threading.enumerate() if t.name == "tournant-cache"]
    with pytest.raises(CacheError, match="closed"):
        ask(store, "a")


def test_a_store_nobody_closed_ends_its_thread_when_it_is_forgotten(path: Path) -> None:
    store = SQLiteStore(path)
    ask(store, "a")
    (thread,) = [t for t in threading.enumerate() if t.name == "tournant-cache"]
    del store
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_file_that_grows_beyond_its_bounds_loses_its_oldest(path: Path) -> None:
    with SQLiteStore(path, max_bytes=200_000) as store:
        for n in range(60):
            run(lambda n=n: store.put_many({f"key {n}": os.urandom(10_000)}))  # type: ignore[misc]
        found = run(lambda: store.get_many([f"key {n}" for n in range(60)]))
        assert 5 <= len(found) < 20
        assert f"key {59}" in found
        assert "key 0" not in found


# A file in trouble: a clear error or a cold cache, never a wrong value


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET data = CAST('x' || substr(data, 2) AS BLOB)",
        "UPDATE entries SET data = substr(data, 1, length(data) - 1)",
        "UPDATE entries SET data = x''",
        "UPDATE entries SET data = 'text'",
        "UPDATE entries SET data = 7",
        "UPDATE entries SET kind = kind % 5 + 1",
        "UPDATE entries SET kind = 'x'",
        "UPDATE entries SET about = '[\"<f8\",[2]]'",
        "UPDATE entries SET about = CAST(x'ff' AS TEXT)",
        "UPDATE entries SET checksum = x'00'",
        "UPDATE entries SET checksum = zeroblob(8)",
        "UPDATE entries SET data = CAST(data || x'00' AS BLOB)",
    ],
)
def test_a_damaged_value_is_computed_again_and_mended(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, a=np.float32([1, 2, 3, 4]), b="some text")
    rows(path, damage)
    with SQLiteStore(path) as store:
        assert ask(store, "a", "b") == ["<a>", "<b>"]
        assert "damaged" in caplog.text
        caplog.clear()
        assert ask(store, "a", "b") == ["<a>", "<b>"]
        assert not caplog.text
    with SQLiteStore(path) as store:
        assert ask(store, "a") == ["<a>"]


def test_a_value_under_anothers_key_is_not_taken_for_his(path: Path) -> None:
    fill(path, a="of a", b="of b")
    key = cache_key(keyed_by("t")("a"))
    rows(path, "DELETE FROM entries WHERE key = ?", key)
    rows(path, "UPDATE entries SET key = ?", key)
    with SQLiteStore(path) as store:
        assert ask(store, "a", "b") == ["<a>", "<b>"]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_bytes_changed_anywhere_in_the_file_never_give_a_wrong_value(data: st.DataObject) -> None:
    logging.getLogger("tournant.cache").disabled = True
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "cache.db"
        known = {f"k{n}": f"the value of k{n} " * 40 for n in range(20)}
        fill(path, **known)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content)))]
        path.write_bytes(content)
        with SQLiteStore(path) as store:
            try:
                found = ask(store, *known)
            except CacheError:
                return
        for (name, value), got in zip(known.items(), found, strict=True):
            assert got in (value, f"<{name}>")
    finally:
        logging.getLogger("tournant.cache").disabled = False
        shutil.rmtree(folder)


def test_a_file_of_anothers_is_refused_and_left_alone(path: Path, tmp_path: Path) -> None:
    path.write_text("dear diary, this is no database at all\n" * 100)
    other = tmp_path / "other.db"
    rows(other, "CREATE TABLE people (name TEXT)")
    newer = tmp_path / "newer.db"
    fill(newer, a=1)
    rows(newer, "PRAGMA user_version = 99")
    for file, says in ((path, "not a cache"), (other, "another program"), (newer, "upgrade")):
        before = file.read_bytes()
        with SQLiteStore(file) as store:
            for _ in range(2):
                with pytest.raises(CacheError, match=says):
                    ask(store, "a")
        assert file.read_bytes() == before


def test_a_path_that_cannot_be_is_an_error_with_the_mend(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store, pytest.raises(CacheError, match="is a folder"):
        ask(store, "a")
    with SQLiteStore(tmp_path / "no" / "x.db") as store, pytest.raises(CacheError, match="make"):
        ask(store, "a")
    with (
        SQLiteStore(tmp_path / "x.db", read_only=True) as store,
        pytest.raises(CacheError, match="no cache at"),
    ):
        ask(store, "a")


def test_a_locked_file_is_left_alone_for_a_while(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache_file, "BUSY_SECONDS", 0.01)
    fill(path, a="known")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with SQLiteStore(path) as store:
        assert ask(store, "a") == ["<a>"]
        assert caplog.text.count("held by another program") == 1
        holder.close()
        assert ask(store, "a") == ["<a>"], "not tried again so soon"
        assert len(caplog.records) == 1
        monkeypatch.setattr(store._file, "_retry_at", 0.0)
        assert ask(store, "a") == ["known"]


def test_a_file_that_is_locked_while_it_is_written_loses_only_the_writing(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache_file, "BUSY_SECONDS", 0.01)
    fill(path, a="known")
    with SQLiteStore(path) as store:
        assert ask(store, "a") == ["known"]
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        assert ask(store, "a", "b") == ["known", "<b>"]
        assert "held by another program" in caplog.text
        with pytest.raises(CacheError, match="forgotten"):
            run(lambda: store.delete_many([keyed_by("t")("a")]))
        holder.close()


def test_read_only_by_request_reads_and_does_not_write(path: Path) -> None:
    fill(path, a="known")
    before = path.read_bytes()
    with SQLiteStore(path, read_only=True) as store:
        assert ask(store, "a", "b") == ["known", "<b>"]
        assert ask(store, "b") == ["<b>"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_file_that_may_not_be_written_is_read(
    folder_too: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "cache.db"
        fill(path, a="known")
        path.chmod(0o444)
        folder.chmod(0o555 if folder_too else 0o777)
        with unprivileged():
            with SQLiteStore(path) as store:
                assert ask(store, "a", "b") == ["known", "<b>"]
                assert ask(store, "b") == ["<b>"]
            if folder_too:
                with (
                    SQLiteStore(folder / "new.db") as store,
                    pytest.raises(CacheError, match="leave to write"),
                ):
                    ask(store, "a")
        assert len(caplog.records) == 1
        assert "can't be written" in caplog.text
    finally:
        folder.chmod(0o777)
        shutil.rmtree(folder)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Do without root's leave to write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_damaged_while_it_is_open_is_not_used_any_more(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, **{f"k{n}": "x" * 3000 for n in range(50)})
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\x00" * (len(content) - 4096))
    with SQLiteStore(path) as store:
        assert ask(store, "k1", "k2") == ["<k1>", "<k2>"]
        assert ask(store, "k1") == ["<k1>"]
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text


def test_a_full_disk_costs_the_new_values_only(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, a="known")
    with SQLiteStore(path) as store:
        ask(store, "a")
        assert store._file._db is not None
        store._file._db.execute("PRAGMA max_page_count = 1")
        big = "b" * 100_000
        assert ask(store, "a", big) == ["known", f"<{big}>"]
        assert "no room" in caplog.text
        assert ask(store, "a") == ["known"]


def test_arrays_without_numpy_are_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, a=np.float32([1]))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with SQLiteStore(path) as store, pytest.raises(CacheError, match="install"):
        ask(store, "a")


def test_a_store_of_ones_own_needs_three_methods() -> None:
    class Shelf:
        def __init__(self) -> None:
            self.kept: dict[Any, Any] = {}

        async def get_many(self, keys: Any) -> dict[Any, Any]:
            return {key: self.kept[key] for key in keys if key in self.kept}

        async def put_many(self, values: Any) -> None:
            self.kept.update(values)

        async def delete_many(self, keys: Any) -> None:
            for key in keys:
                self.kept.pop(key, None)

    async def test() -> None:
        shelf, calls = Shelf(), Calls()
        for _ in range(2):
            cache: Cache[str, str] = Cache(calls, key=keyed_by(1), store=shelf)
            assert await cache.get("a") == "<a>"
        assert calls.seen == ["a"]
        assert cache.stats().recalled == 1
        await cache.forget(keyed_by(1)("a"))
        assert shelf.kept == {}

    run(test)


def test_the_checksum_covers_everything_that_is_stored() -> None:
    stored = _cache_values.Stored(2, '["<f4",[1]]', b"abcd")
    sums = {
        _cache_values.checksum(key, each)
        for key in (b"k", b"l")
        for each in (stored, stored._replace(kind=1), stored._replace(about="["), stored._replace(data=b"abce"))
    }  # fmt: skip
    assert len(sums) == 8
