from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading

import pytest

from tournant import sync
from tournant.errors import WouldDeadlock


def test_a_coroutine_runs_on_a_thread_of_its_own_and_gives_its_result():
    async def work():
        return threading.get_ident()

    assert sync.run(work) != threading.get_ident()
    assert sync.run(work, here=True) == threading.get_ident()


def test_here_gives_way_where_a_loop_runs_already():
    async def outer():
        async def work():
            return threading.get_ident()

        return sync.run(work, here=True), threading.get_ident()

    inner, here = asyncio.run(outer())
    assert inner != here


@pytest.mark.parametrize("here", [False, True])
def test_what_it_raises_is_raised(here):
    async def work():
        raise ValueError("from inside")

    with pytest.raises(ValueError, match="from inside"):
        sync.run(work, here=here)


def test_the_callers_context_goes_along():
    variable = contextvars.ContextVar("variable", default="unset")

    async def work():
        return variable.get()

    variable.set("set")
    assert sync.run(work) == "set"


def test_the_thread_is_gone_afterwards():
    async def work():
        return None

    before = set(threading.enumerate())
    sync.run(work)
    assert set(threading.enumerate()) <= before


def test_an_async_iterable_is_iterated_and_closed_early():
    closed = []

    async def numbers():
        try:
            for n in range(100):
                await asyncio.sleep(0)
                yield n
        finally:
            closed.append(True)

    assert list(sync.iterate(numbers())) == list(range(100))
    iterator = sync.iterate(numbers())
    assert next(iterator) == 0
    iterator.close()
    assert closed == [True, True]


def test_an_async_iterables_error_is_raised():
    async def broken():
        yield 1
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        list(sync.iterate(broken()))


def test_only_a_thread_that_hosts_a_run_is_refused():
    sync.refuse_deadlock("x()", "y()")

    async def main():
        loop, me = asyncio.get_running_loop(), threading.get_ident()
        sync.hosts(loop)
        sync.hosts(loop)
        with pytest.raises(WouldDeadlock, match=r"x\(\) waits for its result.*Use y\(\) here"):
            sync.refuse_deadlock("x()", "y()")
        with pytest.raises(WouldDeadlock):
            next(sync.iterate(iter(())))  # type: ignore[arg-type]
        # Another thread may wait.
        await asyncio.to_thread(sync.refuse_deadlock, "x()", "y()")
        sync.hosts_no_more(me, loop)
        with pytest.raises(WouldDeadlock):
            sync.refuse_deadlock("x()", "y()")
        sync.hosts_no_more(me, loop)
        sync.refuse_deadlock("x()", "y()")
        assert not sync._hosting

    asyncio.run(main())


def test_a_loop_that_was_torn_down_under_its_run_keeps_nobody_from_waiting():
    async def main():
        sync.hosts(asyncio.get_running_loop())

    asyncio.run(main())
    try:
        sync.refuse_deadlock("x()", "y()")
    finally:
        sync._hosting.clear()


@pytest.mark.parametrize("on_interrupt", [None, lambda: False])
def test_an_interrupt_cancels_what_nobody_else_can_stop(on_interrupt, monkeypatch):
    cancelled, begun = [], threading.Event()

    async def work():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    submit = sync.LoopThread.submit

    def submit_and_interrupt(self, make):
        future = submit(self, make)

        def result(timeout=None):
            assert begun.wait(20)
            raise KeyboardInterrupt

        future.result = result
        return future

    monkeypatch.setattr(sync.LoopThread, "submit", submit_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        sync.run(work, on_interrupt)
    assert cancelled == [True]


def test_a_thread_that_waits_looks_at_its_signals_again_and_again():
    """A signal that arrives just before a thread begins to wait for a lock is only seen once it has the lock."""
    waits = []

    class Late(concurrent.futures.Future):
        def result(self, timeout=None):
            waits.append(timeout)
            if len(waits) == 3:
                self.set_result("there")
            return super().result(0)

    assert sync.outcome(Late()) == "there"
    assert len(waits) == 3
    assert all(timeout is not None and timeout <= 1 for timeout in waits)


def test_a_timeout_error_of_the_work_itself_is_passed_on():
    future = concurrent.futures.Future()
    future.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        sync.outcome(future)


def test_a_future_that_is_cancelled_cancels_its_work():
    begun, ended = threading.Event(), threading.Event()

    async def work():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with sync.LoopThread() as thread:
        future = thread.submit(work)
        assert begun.wait(20)
        future.cancel()
        assert ended.wait(20)
