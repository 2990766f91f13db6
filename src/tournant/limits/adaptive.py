"""`Adaptive`: a concurrency that finds itself, for stages and for plain ``async with``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tournant.errors import WouldDeadlock, short
from tournant.limits.clock import SYSTEM, Clock
from tournant.limits.concurrency import Controller, Outcome
from tournant.limits.figures import InvalidLimit, is_number
from tournant.limits.verdict import OVERLOADED, TOO_MANY, status_of
from tournant.limits.waiting import Line, running_loop

_START = 8
_ending = threading.Lock()


@dataclass(frozen=True, slots=True)
class AdaptiveSnapshot:
    """An `Adaptive` at one moment.

    Attributes:
        limit: How many calls may be under way at once.
        running: How many are.
        waiting: How many wait in `Adaptive.slot`.
        why: Why the limit is what it is, in a few words.
    """

    limit: int
    running: int
    waiting: int
    why: str

    def __str__(self) -> str:
        return f"{self.running} of {self.limit} at once ({self.why})"


class Adaptive:
    """A concurrency between `min` and `max` that follows what the other side bears.

    It doubles at first, then rises by one while throughput rises with it, and falls to 0.7 of itself on a timeout, a
    429 or 503, or when latency shows a knee; see `Controller` for the algorithm. All who hold the same object
    share one limit, and it keeps what it has found from run to run. ::

        adaptive = Adaptive(min=1, max=64)
        async with adaptive.slot() as slot:
            reply = await call()
            if reply.status == 503:
                slot.throttled()

    Args:
        min: The limit never falls lower. Default 1.
        max: The limit never rises higher. Default 64.
        start: The limit to begin with. Default: 8, or the bound that is nearer.
        state: What `state` of an earlier run returned: begin there, without slow start. It is brought between `min` and
            `max`. Default ``None``.
        clock: Where time comes from. Default: the machine's clock.

    Attributes:
        controller: The synchronous core, for an engine's gate: `Controller.try_enter`, `Controller.leave`,
            `Controller.watch`.

    Raises:
        InvalidLimit: when a bound can't be, or the state is none.
    """

    __slots__ = ("_clock", "_holders", "_line", "_lock", "controller", "max", "min")

    def __init__(
        self,
        min: int = 1,
        max: int = 64,
        *,
        start: int | None = None,
        state: Mapping[str, Any] | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.min = _whole(min, "min", 1)
        self.max = _whole(max, "max", 1)
        if self.max < self.min:
            raise InvalidLimit(f"Adaptive(min={min}, max={max}): give a max that is at least min")
        begin = _within(_START, min, max)
        if start is not None:
            begin = _whole(start, "start", 1)
            if not min <= begin <= max:
                raise InvalidLimit(
                    f"Adaptive(start={start}): give a start between min={min} and max={max}"
                )
        latency = None
        if state is not None:
            limit, latency = _read_state(state)
            begin = _within(limit, min, max)
        settled = state is not None
        self._clock = clock
        self._lock = threading.Lock()
        self._line: Line[None] = Line()
        #: Places whose own calls wait here for another one, with how many.
        self._holders: dict[Slot, int] = {}
        self.controller = Controller(min, max, begin, clock, latency, settled)
        self.controller.watch(self._admit)

    @property
    def clock(self) -> Clock:
        """Where time comes from."""
        return self._clock

    @property
    def limit(self) -> int:
        """How many calls may be under way at once, now."""
        return self.controller.limit

    def slot(self) -> Slot:
        """Return a slot for one call, to be entered with ``async with``: it waits in line, first come first served."""
        return Slot(self)

    def try_slot(self) -> Slot | None:
        """Return a slot that is taken, or ``None`` when it would have to wait. Never waits, needs no event loop.

        Whoever gets one must call its `Slot.close` (or `Slot.give_back`) when the call has ended.
        """
        with self._lock:
            if len(self._line) or not self.controller.try_enter():
                return None
        slot = Slot(self)
        slot._begin()
        return slot

    def snapshot(self) -> AdaptiveSnapshot:
        """Return the limit, why it is so, and how many run and wait."""
        core = self.controller
        return AdaptiveSnapshot(core.limit, core.running, len(self._line), core.why)

    def state(self) -> dict[str, Any]:
        """Return what was found, as plain values that JSON can keep, for ``Adaptive(state=...)`` in a later run."""
        return {"limit": self.controller.limit, "latency": self.controller.latency}

    def __repr__(self) -> str:
        return f"Adaptive(min={self.min}, max={self.max})"

    def __reduce__(self) -> tuple[Callable[..., Adaptive], tuple[Any, ...]]:
        settled = None if self.controller.slow_start else self.state()
        return _restored, (self.min, self.max, settled, self._clock)

    def _admit(self, limit: int = 0) -> None:
        """Give the slots that are free to those who wait."""
        loop = running_loop()
        lost = 0
        with self._lock:
            while (head := self._line.head()) is not None:
                if head.gone(loop):
                    self._line.leave(head)
                elif self.controller.try_enter():
                    self._line.leave(head)
                    if not head.wake(loop):
                        lost += 1
                else:
                    break
        for _ in range(lost):
            self.controller.leave("cancelled", 0.0)

    async def _enter(self) -> None:
        from tournant.limits.current import current

        with self._lock:
            if not len(self._line) and self.controller.try_enter():
                return
            call = current()
            mine = call.slot if call is not None else None
            if mine is not None and (mine._adaptive is not self or not mine._held):
                mine = None
            if mine is not None:
                self._holders[mine] = self._holders.get(mine, 0) + 1
                if len(self._holders) >= self.controller.running:
                    self._waits_no_more(mine)
                    raise WouldDeadlock(
                        f"{self!r}: every one of its {self.controller.running} places is held by a stage's call that waits here for "
                        "another place, so none would ever come free; give the inner calls an Adaptive of their own, or none: "
                        "the stage's place covers them"
                    )
            waiter = self._line.join(None)
        self._admit()
        try:
            await waiter.future
        except BaseException:
            with self._lock:
                self._line.leave(waiter)
                granted = waiter.granted
            if granted:
                self.controller.leave("cancelled", 0.0)
            self._admit()
            raise
        finally:
            if mine is not None:
                with self._lock:
                    self._waits_no_more(mine)

    def _waits_no_more(self, mine: Slot) -> None:
        self._holders[mine] -= 1
        if not self._holders[mine]:
            del self._holders[mine]


class Slot:
    """One call's place. How the call ended is read from its exception, or said with `throttled` or `timed_out`.

    A `TimeoutError` is a timeout; an exception with status 429, 503 or 529 is a throttle; a cancellation and any other
    exception say nothing about the load; no exception is a success.
    """

    __slots__ = ("_adaptive", "_began", "_held", "_outcome", "_used")

    def __init__(self, adaptive: Adaptive) -> None:
        self._adaptive = adaptive
        self._began = 0.0
        self._held = False
        self._outcome: Outcome | None = None
        self._used = False

    def throttled(self) -> None:
        """Say that the call was refused: 429, 503, or an error in the body that means the same."""
        self._outcome = "throttled"

    def timed_out(self) -> None:
        """Say that the call took too long and was given up."""
        self._outcome = "timed_out"

    def failed(self) -> None:
        """Say that the call failed for a reason of its own, though no exception tells: it counts for nothing."""
        self._outcome = "failed"

    def give_back(self) -> None:
        """End it now, without a call: nothing is learned from it."""
        if self._over():
            self._adaptive.controller.leave("cancelled", 0.0)

    def excuse(self, seconds: float) -> None:
        """Leave `seconds` out of the call's latency, because they were not the call's."""
        self._began += seconds

    def close(self, error: BaseException | None = None) -> None:
        """End the call; `error` is what it raised. Only who did not use ``async with`` calls this. Twice is once."""
        if self._over():
            outcome = self._outcome or outcome_of(error)
            self._adaptive.controller.leave(outcome, self._adaptive._clock.now() - self._began)

    def _begin(self) -> None:
        self._used = self._held = True
        self._began = self._adaptive._clock.now()

    def _over(self) -> bool:
        """Tell whether it was held until now; a loop and a thread may both want to end it."""
        with _ending:
            held, self._held = self._held, False
        return held

    async def __aenter__(self) -> Slot:
        if self._used:
            raise InvalidLimit("a slot is for one call: ask adaptive.slot() for another")
        self._used = True
        await self._adaptive._enter()
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)


def outcome_of(error: BaseException | None) -> Outcome:
    """Tell how a call ended that raised `error`, or nothing."""
    if error is None:
        return "ok"
    if isinstance(error, TimeoutError):
        return "timed_out"
    if not isinstance(error, Exception):
        return "cancelled"
    return "throttled" if status_of(error) in TOO_MANY | OVERLOADED else "failed"


def _whole(value: object, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidLimit(f"Adaptive({name}={value!r}): give a whole number >= {least}")
    return value


def _within(value: int, low: int, high: int) -> int:
    return low if value < low else high if value > high else value


def _read_state(state: object) -> tuple[int, float | None]:
    if isinstance(state, Mapping):
        limit, latency = state.get("limit"), state.get("latency")
        if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1:
            if latency is None:
                return limit, None
            if is_number(latency) and 0 < latency < float("inf"):
                return limit, float(latency)
    raise InvalidLimit(
        f"Adaptive(state={short(state)}): give what state() of an earlier run returned, or leave it out"
    )


def _restored(low: int, high: int, state: Mapping[str, Any] | None, clock: Clock) -> Adaptive:
    return Adaptive(low, high, state=state, clock=clock)
