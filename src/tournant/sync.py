"""Running async code for synchronous callers: a loop of our own in a thread of its own, never the caller's.

So it works in scripts, notebooks, GUI event handlers and worker threads alike. What it refuses is to wait, on a thread
that runs one of our loops, for something that needs that very loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from tournant.errors import WouldDeadlock

T = TypeVar("T")

#: Seconds between two looks of a waiting thread at its signals.
_SLICE = 0.1

#: The runs whose stages the present code is part of: in their calls, and in what takes over their contexts.
within: contextvars.ContextVar[tuple[object, ...]] = contextvars.ContextVar(
    "tournant_within", default=()
)
_hosting: dict[int, list[asyncio.AbstractEventLoop]] = {}
_hosting_lock = threading.Lock()


def hosts(loop: asyncio.AbstractEventLoop) -> None:
    """Remember that a run's loop runs on this thread."""
    with _hosting_lock:
        _hosting.setdefault(threading.get_ident(), []).append(loop)


def hosts_no_more(thread: int, loop: asyncio.AbstractEventLoop) -> None:
    """A run on `thread` has ended."""
    with _hosting_lock:
        loops = _hosting.get(thread, [])
        if loop in loops:
            loops.remove(loop)
        if not loops:
            _hosting.pop(thread, None)


def refuse_deadlock(call: str, instead: str) -> None:
    """Raise `WouldDeadlock` if this thread runs the loop of a run.

    Args:
        call: the call as the user wrote it, for the message.
        instead: what to write in its place.
    """
    # A loop that was torn down under its run, by whatever force, runs no more.
    if any(loop.is_running() for loop in _hosting.get(threading.get_ident(), ())):
        raise WouldDeadlock(
            f"{call} waits for its result, but this thread runs the event loop of a Tournant run, which would stand still "
            f'meanwhile. Use {instead} here, or move the call into a plain def stage (on="threads")'
        )


def refuse_self_wait(run: object, call: str, *, needs_slot: bool) -> None:
    """Raise `WouldDeadlock` if the present code is what `run` waits for, so that waiting for it would never end.

    Args:
        run: the run that the caller is about to wait for.
        call: the call as the user wrote it, for the message.
        needs_slot: the run has CPU stages on the shared pool.
    """
    if run in within.get():
        raise WouldDeadlock(
            f"{call} waits for a run, but it is called inside one of that run's own stages (or its source), which the run waits for. "
            "Wait for it outside, where it was started; to end it from a stage use its drain() or cancel(), which don't wait"
        )
    if needs_slot:
        from tournant.pool.lanes import holds_slot

        if holds_slot():
            raise WouldDeadlock(
                f"{call} waits for a run that needs the pool's workers, but it is called on one of them: with every worker waiting "
                "like this, none is left to do the work. Call pipeline.run() here instead, which gets a worker of its own, or give "
                "this stage blocking=True"
            )


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: uvloop's where it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def outcome(future: concurrent.futures.Future[T]) -> T:
    """Wait for a future and return its result, open to Ctrl-C.

    It waits in slices: a signal that arrives just before a thread begins to wait for a lock is not seen until it has the lock,
    which here may be never.
    """
    while True:
        try:
            return future.result(_SLICE)
        except TimeoutError:
            if future.done():
                return future.result()


class LoopThread:
    """An event loop in a daemon thread, for as long as a ``with`` block.

    `submit` schedules a coroutine on it from any other thread.
    """

    def __init__(self, name: str = "tournant-loop") -> None:
        self._ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = (
            concurrent.futures.Future()
        )
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True
        )

    def __enter__(self) -> LoopThread:
        """Start the thread and wait for its loop."""
        self._thread.start()
        try:
            self.loop = outcome(self._ready)
        except BaseException:
            self._ready.add_done_callback(lambda _: self._leave())
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the loop and wait for the thread to end; on that thread itself, see `leave_after`."""
        if not self.here:
            self._leave()
            self.join()

    def join(self) -> None:
        """Wait for the thread to end, if it is not the caller's own."""
        if not self.here:
            self._thread.join(10.0)

    def leave_after(self, future: concurrent.futures.Future[Any]) -> None:
        """Stop the loop, without waiting, once `future` is done."""
        future.add_done_callback(lambda _: self._leave())

    @property
    def here(self) -> bool:
        """Whether the caller runs on this very thread, where nobody may wait for it."""
        return self._thread is threading.current_thread()

    def _leave(self) -> None:
        if self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._ready.result().call_soon_threadsafe(self._stop.set)

    def submit(
        self, make: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> concurrent.futures.Future[T]:
        """Run the coroutine that ``make(*args)`` gives on the loop.

        It is made there: a Ctrl-C in between must not leave a coroutine behind that nobody awaits.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        async def work() -> None:
            try:
                result = await make(*args)
            except BaseException as error:
                if not future.cancelled():
                    future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                if not future.cancelled():
                    future.set_result(result)
            finally:
                if future.cancelled():
                    # Whoever waits for a cancelled future is told only now, when its work has ended.
                    future.set_running_or_notify_cancel()

        def start() -> None:
            task = self.loop.create_task(work())
            tasks.append(task)

        def cancel(_: object) -> None:
            if future.cancelled():
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

        tasks: list[asyncio.Task[None]] = []
        future.add_done_callback(cancel)
        self.loop.call_soon_threadsafe(start)
        return future

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                raise

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._ready.set_result(asyncio.get_running_loop())
        await self._stop.wait()


def run(
    make: Callable[[], Coroutine[Any, Any, T]],
    on_interrupt: Callable[[], bool] | None = None,
    *,
    here: bool = False,
) -> T:
    """Run a coroutine on a loop of its own in a thread of its own, and wait for its result.

    Args:
        make: makes the coroutine; called on the new loop's thread.
        on_interrupt: called when KeyboardInterrupt arrives while waiting; the coroutine should then end soon. It gets ten seconds.
            If it returns False, or there is none, the coroutine is cancelled.
        here: use the calling thread, if no loop runs in it.

    Returns:
        What the coroutine returned.
    """

    async def made() -> T:
        return await make()

    if here and not _loop_runs_here():
        with asyncio.Runner() as runner:
            # Not runner.run(): its Ctrl-C waits for the loop's next turn, and here the calls themselves block the loop.
            loop = runner.get_loop()
            task = loop.create_task(made())
            try:
                return loop.run_until_complete(task)
            except (KeyboardInterrupt, SystemExit):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    loop.run_until_complete(task)
                raise
    with LoopThread() as thread:
        future = thread.submit(made)
        try:
            return outcome(future)
        except BaseException:
            # KeyboardInterrupt, or anything else that ends the waiting: nothing may go on behind the caller's back.
            if not future.done():
                if on_interrupt is None or not on_interrupt():
                    future.cancel()
                concurrent.futures.wait([future], 10.0)
            raise


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def iterate(source: AsyncIterable[T]) -> Iterator[T]:
    """Iterate over an async iterable from synchronous code.

    The iterable is advanced on a loop of its own. Leaving early closes it.

    Raises:
        WouldDeadlock: on a thread that runs the loop of a run.
    """
    refuse_deadlock("tournant.sync.iterate()", "async for")
    with LoopThread() as thread:
        iterator = aiter(source)

        async def step() -> T:
            return await anext(iterator)

        try:
            while True:
                refuse_deadlock("tournant.sync.iterate()", "async for")
                try:
                    yield outcome(thread.submit(step))
                except StopAsyncIteration:
                    return
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:

                async def closing() -> None:
                    await close()

                closed = thread.submit(closing)
                # A generator that nobody refers to any more is closed wherever it is collected, perhaps on its own loop.
                thread.leave_after(closed) if thread.here else outcome(closed)
