"""What a worker does with a chunk: run each value through the steps. The same code in threads and processes.

Light on purpose (worker processes import it before their first item) and free of any knowledge of the engine.

Results gather in an `Outbox` and leave as `Part`s: those of consecutive items, in order. The worker sends a part when the
chunk ends, and before that whenever `FLUSH` seconds have passed. If one item takes long, somebody else (a thread of
the worker process, or the loop) flushes the outbox meanwhile, so a finished result never waits for its chunk-mates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from time import perf_counter, thread_time
from typing import Any

from tournant.errors import BatchMismatch, StageExit, short
from tournant.pool.leftovers import FINE, Leftovers, check_result, present
from tournant.sizes import size_of

#: Seconds after which a worker sends what it has, though its chunk is not finished.
FLUSH = 0.004

Step = tuple[str, Callable[..., Any]]


class Failed:
    """In place of a result: the step that raised and what it raised."""

    __slots__ = ("error", "step")

    def __init__(self, step: int, error: Exception) -> None:
        self.step = step
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return Failed, (self.step, self.error)


class Dropped:
    """In place of a result: the filter step that dropped the item."""

    __slots__ = ("step",)

    def __init__(self, step: int) -> None:
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return Dropped, (self.step,)


class Part:
    """Results of consecutive items of one chunk.

    Attributes:
        values: one entry per finished item: its result, `Failed` or `Dropped`; for ``map_batches`` a list with one entry
            per row or `Failed`. For a ``flat_map`` the children of all items in a row.
        ends: for a ``flat_map`` one entry per finished item: how many entries of `values` come before its end, and
            ``None``, `Failed` or `Dropped`. Children behind the last end belong to the item still in work.
        odd: whether any entry may be `Failed` or `Dropped`.
        times: per step, the seconds of each call.
        last: no part follows.
        since: when the worker began with this, after the part before, by its clock.
        sent: when the part was made.
        used: of a chunk's last part: the seconds that its calls took, and the CPU seconds of the thread that made them; else
            ``None``.
    """

    __slots__ = ("ends", "last", "odd", "sent", "since", "times", "used", "values")

    def __init__(
        self,
        values: list[Any],
        ends: list[Any] | None,
        odd: bool,
        times: list[list[float]],
        last: bool,
        since: float = 0.0,
        sent: float = 0.0,
        used: tuple[float, float] | None = None,
    ) -> None:
        self.values = values
        self.ends = ends
        self.odd = odd
        self.times = times
        self.last = last
        self.since = since
        self.sent = sent
        self.used = used

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (
            self.values, self.ends, self.odd, self.times, self.last, self.since, self.sent, self.used
        )  # fmt: skip


class Outbox:
    """Collects a chunk's results; any thread may flush what is there. Only the worker appends."""

    __slots__ = (
        "_lock",
        "_send",
        "_sent",
        "_sent_ends",
        "_timed",
        "cpu",
        "ends",
        "last_flush",
        "odd",
        "since",
        "times",
        "values",
    )

    def __init__(self, steps: int, send: Callable[[Part], None], lock: Any, flat: bool) -> None:
        self.values: list[Any] = []
        self.ends: list[tuple[int, Any]] | None = [] if flat else None
        self.odd = False
        self.times: list[list[float]] = [[] for _ in range(steps)]
        self.last_flush = self.since = perf_counter()
        #: CPU seconds of the worker's thread when it began.
        self.cpu = 0.0
        self._send = send
        self._lock = lock
        self._sent = 0
        self._sent_ends = 0
        self._timed = [0] * steps

    def flush(self, last: bool = False) -> bool:
        """Send everything that has not been sent, blocking; tell whether there was anything."""
        with self._lock:
            return self._flush(last)

    def flush_if_free(self) -> bool:
        """Send what has not been sent, unless a flush is under way; tell whether a part was sent."""
        if self._lock.acquire(blocking=False):
            try:
                return self._flush(False)
            finally:
                self._lock.release()
        return False

    def _flush(self, last: bool) -> bool:
        ends: list[Any] | None = None
        if self.ends is not None:
            # Ends first: an end names only values that are there already.
            ends = [(n - self._sent, what) for n, what in self.ends[self._sent_ends :]]
            self._sent_ends += len(ends)
        values = self.values[self._sent :]
        if not last and not values and not ends:
            return False
        self._sent += len(values)
        times = []
        for k, spent in enumerate(self.times):
            new = spent[self._timed[k] :]
            self._timed[k] += len(new)
            times.append(new)
        used = (sum(map(sum, self.times)), thread_time() - self.cpu) if last else None
        self.last_flush = perf_counter()
        self._send(Part(values, ends, self.odd, times, last, self.since, self.last_flush, used))
        return True


def bind(steps: Sequence[tuple[str, Callable[..., Any], Any]]) -> tuple[list[Step], list[Any]]:
    """Build each step's per-worker state and bind it to the callable.

    Args:
        steps: (kind, callable, `PerWorker` or None) per step.

    Returns:
        The steps as (kind, callable of one value), and the (close, state) pairs to close later.
    """
    bound: list[Step] = []
    closing: list[Any] = []
    for kind, fn, per_worker in steps:
        if per_worker is None:
            bound.append((kind, fn))
            continue
        try:
            state = per_worker.factory()
        except BaseException:
            with contextlib.suppress(Exception):
                close_all(closing)
            raise
        if per_worker.close is not None:
            closing.append((per_worker.close, state))
        bound.append((kind, WithState(fn, state)))
    return bound, closing


def close_all(closing: Sequence[tuple[Callable[[Any], None], Any]]) -> None:
    """Close every state, whatever the others raise; raise the first error in the end."""
    with contextlib.ExitStack() as stack:
        for close, state in reversed(closing):
            stack.callback(close, state)


class WithState:
    """A callable of one value that hands a state along."""

    __slots__ = ("fn", "state")

    def __init__(self, fn: Callable[..., Any], state: Any) -> None:
        self.fn = fn
        self.state = state

    def __call__(self, value: Any) -> Any:
        """Call the function with the value and the state."""
        return self.fn(value, self.state)


def run_chunk(
    steps: Sequence[Step],
    values: Sequence[Any],
    out: Outbox,
    wanted: Callable[[], bool] | None = None,
    context: Context | None = None,
    skip: int = 0,
    hold: bool = False,
    part_bytes: int | None = None,
) -> None:
    """Run every value through `steps` into `out`, and flush it to the end.

    Args:
        steps: fused steps; only the last may be a ``flat_map``; ``map_batches`` stands alone.
        values: the chunk's items; for ``map_batches`` each is a list of rows.
        out: where results go.
        wanted: asked after each part that was sent; blocks while there is no room; False ends the chunk early.
        context: each call runs in a copy of it; ``None`` calls directly.
        skip: children of the first item that were passed on by an earlier attempt.
        hold: pass the children of an item on only when its generator has ended.
        part_bytes: send the children that have gathered when they come to more than this.
    """
    kind = steps[-1][0]
    out.cpu = thread_time()
    if kind == "flat_map":
        finished = _run_flat(steps, values, out, wanted, context, skip, hold, part_bytes)
    elif len(steps) == 1 and kind in ("map", "map_batches"):
        finished = _run_single(steps[0], values, out, wanted, context)
    else:
        finished = _run_fused(steps, values, out, wanted, context)
    if finished:
        out.flush(last=True)


def _run_single(
    step: Step,
    values: Sequence[Any],
    out: Outbox,
    wanted: Callable[[], bool] | None,
    context: Context | None,
) -> bool:
    """Run one map or map_batches step: the common case, with nothing in the loop but the call and the clock."""
    kind, fn = step
    batches = kind == "map_batches"
    left = leftovers_of(context)
    clock = perf_counter
    append, timed = out.values.append, out.times[0].append
    began = clock()
    due = began + FLUSH
    for value in values:
        try:
            result = fn(value) if context is None else context.copy().run(fn, value)
            if type(result) not in FINE:
                check_result(result)
            if left:
                raise left.first_error(fn)
            if batches:
                result = checked_rows(result, len(value))
        except BaseException as error:
            out.odd = True
            left.clear()
            result = Failed(0, plain(error))
        now = clock()
        timed(now - began)
        append(result)
        began = now
        if now > due:
            if out.flush() and wanted is not None and not wanted():
                return False
            began = out.since = clock()
            due = began + FLUSH
    return True


def _run_fused(
    steps: Sequence[Step],
    values: Sequence[Any],
    out: Outbox,
    wanted: Callable[[], bool] | None,
    context: Context | None,
) -> bool:
    clock = perf_counter
    left = leftovers_of(context)
    due = clock() + FLUSH
    for value in values:
        out.values.append(_through(steps, value, out, context, left))
        if clock() > due:
            if out.flush() and wanted is not None and not wanted():
                return False
            out.since = clock()
            due = out.since + FLUSH
    return True


def _through(
    steps: Sequence[Step], value: Any, out: Outbox, context: Context | None, left: Leftovers
) -> Any:
    """Run one value through plain steps; return its result, `Failed` or `Dropped`."""
    clock = perf_counter
    apply = context.copy().run if context is not None else None
    began = clock()
    for n, (kind, fn) in enumerate(steps):
        try:
            result = fn(value) if apply is None else apply(fn, value)
            if type(result) not in FINE:
                check_result(result)
            if left:
                raise left.first_error(fn)
            keep = kind != "filter" or bool(result)
        except BaseException as error:
            out.odd = True
            left.clear()
            return Failed(n, plain(error))
        now = clock()
        out.times[n].append(now - began)
        began = now
        if kind == "map":
            value = result
        elif not keep:
            out.odd = True
            return Dropped(n)
    return value


def _run_flat(
    steps: Sequence[Step],
    values: Sequence[Any],
    out: Outbox,
    wanted: Callable[[], bool] | None,
    context: Context | None,
    skip: int,
    hold: bool,
    part_bytes: int | None,
) -> bool:
    clock = perf_counter
    left = leftovers_of(context)
    weight = 0
    ahead, fn = steps[:-1], steps[-1][1]
    mine = len(steps) - 1
    children, ends = out.values, out.ends
    assert ends is not None
    due = clock() + FLUSH
    for value in values:
        if ahead:
            value = _through(ahead, value, out, context, left)  # noqa: PLW2901
            if type(value) in (Failed, Dropped):
                ends.append((len(children), value))
                continue
        apply = context.copy().run if context is not None else None
        target: list[Any] = [] if hold else children
        began = clock()
        paused = 0.0
        outcome: Failed | None = None
        try:
            result = fn(value) if apply is None else apply(fn, value)
            if type(result) not in FINE:
                check_result(result)
            iterator: Any = iter(many(result))
            closing = (
                contextlib.closing(iterator)
                if hasattr(iterator, "close")
                else contextlib.nullcontext()
            )
            with closing:
                while True:
                    try:
                        child = next(iterator) if apply is None else apply(next, iterator)
                    except StopIteration:
                        break
                    if skip:
                        skip -= 1
                        continue
                    target.append(child)
                    if part_bytes is not None:
                        weight += size_of(child, 2)
                        if weight > part_bytes:
                            weight, due = 0, 0.0
                    if not hold and clock() > due:
                        before = clock()
                        if out.flush() and wanted is not None and not wanted():
                            return False
                        now = out.since = clock()
                        paused += now - before
                        due = now + FLUSH
            if left:
                raise left.first_error(fn)
            if hold:
                children.extend(target)
        except BaseException as error:
            out.odd = True
            left.clear()
            outcome = Failed(mine, plain(error))
        out.times[mine].append(clock() - began - paused)
        ends.append((len(children), outcome))
        skip = 0
        if clock() > due:
            if out.flush() and wanted is not None and not wanted():
                return False
            out.since = clock()
            due = out.since + FLUSH
    return True


def leftovers_of(context: Context | None) -> Leftovers:
    """Return where what a call leaves behind is collected, if anywhere: of `context`, or of the present one."""
    left = present.get() if context is None else context.get(present)
    if left is None:
        return Leftovers()
    left.clear()  # What was freed between two chunks is no call's of this one.
    return left


def checked_rows(result: Any, rows: int) -> list[Any]:
    """Return the results of a batch as a list of `rows` entries, or raise `BatchMismatch`."""
    try:
        results = list(result)
    except TypeError:
        raise BatchMismatch(
            f"the batch callable returned {short(result)} for {rows} items; return one result per item, in order"
        ) from None
    if len(results) != rows:
        raise BatchMismatch(
            f"the batch callable returned {len(results)} results for {rows} items; return one result per item, in order"
        )
    return results


def many(result: Any) -> Iterable[Any]:
    """Return `result` if it is an iterable of results; raise `TypeError` with the mend for a string or a scalar."""
    if isinstance(result, (str, bytes)) or not hasattr(result, "__iter__"):
        raise TypeError(
            f"a flat_map callable returns an iterable of results or yields them, but this one gave {short(result)}; "
            "wrap a single result in a list, or use .map()"
        )
    return result  # type: ignore[no-any-return]


def plain(error: BaseException) -> Exception:
    """Return `error` if it is an `Exception`, else a `StageExit` that says what it was."""
    if isinstance(error, Exception):
        return error
    wrapped = StageExit(
        f"it raised {type(error).__name__}({error}), which would have ended the program"
    )
    wrapped.__cause__ = error
    return wrapped
