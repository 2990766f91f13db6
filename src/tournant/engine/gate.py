"""The gate of a stage with a limit: every attempt's leave to go, from the stage's rate and its adaptive concurrency.

A loop stage's worker waits here before its call; the admission travels to the call in a context variable, and ends with it.
What is waited here is no work and no part of an attempt's time. When the run halts, everybody leaves at once and holds nothing.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tournant.engine.calls import Call
from tournant.errors import Throttled, short
from tournant.limits.admission import Admission
from tournant.limits.clock import SYSTEM, Clock
from tournant.limits.current import admission
from tournant.limits.figures import InvalidLimit, is_number

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.engine.stats import StageStats
    from tournant.observe.events import Events
    from tournant.stages import Stage


class Gate:
    """Admits the calls of one stage of one run. Everything but `judge` and `close` happens on the run's loop.

    Entered (``with``) while somebody waits for the rate, by `Admission.enter`.

    Attributes:
        clock: the limit's clock.
        judges: results are shown to the limit's predicate.
        limit: the stage's `RateLimit`, or ``None``.
        adaptive: the stage's `Adaptive`, or ``None``.
    """

    def __init__(self, run: Run, stage: Stage, stats: StageStats) -> None:
        self.limit = stage.limit
        self.adaptive = stage.adaptive
        self.judges = stage.limit is not None and stage.limit.is_throttle is not None
        self._run = run
        self._stage = stage
        self._stats = stats
        self.clock: Clock = SYSTEM
        if self.limit is not None:
            self.clock = self.limit.clock
        elif self.adaptive is not None:
            self.clock = self.adaptive.clock
        #: What `current` says around the run, where the run itself is started inside of a limited call.
        self._outside = run.context.get(admission)
        self._waiting: set[asyncio.Task[Any]] = set()
        self._sent_away: set[asyncio.Task[Any]] = set()
        self._frozen = False
        self._for_rate = 0
        self._since = 0.0
        self._pressed = 0.0
        self._most = 0
        stats.gate = self
        run.gates.append(self)

    def call(self, value: Any) -> Admission:
        """Return the admission of one call with `value`, not entered yet; raises what the stage's ``cost`` raises."""
        cost = self._stage.cost
        if callable(cost):
            tokens = cost(value)
            if not is_number(tokens) or not 0 <= tokens < float("inf"):
                raise InvalidLimit(
                    f"stage {self._stage.name}: cost= gave {short(tokens)} for {short(value)}; "
                    "it has to give a number of tokens, 0 or more"
                )
            cost = tokens
        return Admission(self.limit, self.adaptive, cost or 0.0)

    async def enter(self, call: Admission) -> bool:
        """Wait until `call` may go. ``False``: the run has been halted, and nothing is held."""
        if call.try_enter():
            self.entered()
            return True
        return await self.wait(call)

    def entered(self) -> None:
        """Take note of a call that goes, after ``call.try_enter()`` has said yes."""
        if self.adaptive is not None:
            self._most = max(self._most, self.adaptive.controller.running)

    async def wait(self, call: Admission) -> bool:
        """Do as `enter` does, after ``call.try_enter()`` has said no."""
        if self._run.halted:
            return False
        task = asyncio.current_task()
        assert task is not None
        began = self.clock.now()
        self._waiting.add(task)
        try:
            await call.enter(self)
            self.entered()
            return True
        except asyncio.CancelledError:
            if task in self._sent_away and not task.uncancel():
                return False
            raise
        finally:
            self._waiting.discard(task)
            self._sent_away.discard(task)
            self._stats.wait_limit += self.clock.now() - began

    def send_away(self) -> None:
        """Let nobody wait any longer: the run has been halted."""
        for task in self._waiting - self._sent_away:
            self._sent_away.add(task)
            task.cancel()

    def __enter__(self) -> None:
        """Count one more who waits for the rate."""
        if not self._for_rate:
            self._since = self.clock.now()
        self._for_rate += 1

    def __exit__(self, *error: object) -> None:
        """Count one less."""
        self._for_rate -= 1
        if not self._for_rate:
            self._pressed += self.clock.now() - self._since

    def expects(self) -> bool:
        """Tell whether somebody waits here for what comes without this run's doing: time, or another run's calls."""
        if self._for_rate:
            return True
        if not self._waiting:
            return False
        return not any(
            gate._stats.started > gate._stats.left
            for gate in self._run.gates
            if gate.adaptive is self.adaptive
        )

    # Around a call.

    def judge(self, call: Admission, result: Any) -> None:
        """Raise `Throttled` if the limit's predicate says that `result` is a refusal; hot paths ask `judges` before."""
        if call.check(result):
            raise Throttled(
                f"stage {self._stage.name}: the result is a refusal for coming too often, by the limit's is_throttle=: "
                f"{short(result, 200)}; give the stage retry=tn.Retry() so that it is asked again"
            )

    def end(self, call: Admission, error: BaseException | None) -> None:
        """End a call on the loop."""
        admission.set(self._outside)
        call.close(error)

    def around(self) -> FanOut:
        """Return what to enter around a fan-out on the loop."""
        return FanOut(self)

    # What is shown.

    @property
    def concurrency(self) -> int | None:
        """How many calls may be under way at once, as the adaptive concurrency has it now."""
        return self.adaptive.limit if self.adaptive is not None else None

    @property
    def pressed(self) -> float:
        """Seconds, on the limit's clock, in which somebody waited for the rate."""
        return self._pressed + (self.clock.now() - self._since if self._for_rate else 0.0)

    def tell(self, events: Events, now: float) -> None:
        """Tell the run's events how the limits stand."""
        name = self._stage.name
        if self.adaptive is not None:
            events.limit(now, f"concurrency: {name}", "calls", self.adaptive.limit)
        if self.limit is not None:
            limit = self.limit.snapshot()
            for unit, kind in (("requests/s", limit.requests), ("tokens/s", limit.tokens)):
                if kind is not None:
                    events.limit(now, f"rate: {name}", unit, kind.rate / kind.seconds)
            if limit.frozen_for > 0 and not self._frozen:
                events.mark("limit", f"stage {name}: {limit}")
            self._frozen = limit.frozen_for > 0

    def describe(self, *, over: bool = False) -> str:
        """Return the limits and why they are so, as a line; `over`: as they were in a run that has ended."""
        parts = []
        if self.limit is not None:
            parts.append(str(self.limit.snapshot()))
        if self.adaptive is not None:
            now = self.adaptive.snapshot()
            # Of what is under way when all is over nobody learns anything.
            parts.append(
                f"up to {self._most} at once, limit {now.limit} in the end ({now.why})"
                if over
                else str(now)
            )
        return "; ".join(parts)


class FanOut:
    """The admission of a ``flat_map`` call on the loop, which lasts until its generator has ended."""

    __slots__ = ("_call", "_gate")

    def __init__(self, gate: Gate) -> None:
        call = admission.get()
        assert call is not None
        self._gate, self._call = gate, call

    async def __aenter__(self) -> FanOut:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the call."""
        self._gate.end(self._call, error)

    def judge(self, child: Any) -> None:
        """Raise `Throttled` if a child is a refusal."""
        if self._gate.judges:
            self._gate.judge(self._call, child)

    def now(self) -> float:
        """Return seconds on the limit's clock."""
        return self._gate.clock.now()

    def excuse_since(self, when: float) -> None:
        """Leave out of the call's latency what a child has waited for room since `when`."""
        self._call.excuse(self.now() - when)


def admitted(call: Call, gate: Gate) -> Call:
    """`call` for a stage with a gate: it begins with the admission that the worker has set, and ends it."""

    async def limited(value: Any) -> Any:
        mine = admission.get()
        assert mine is not None
        try:
            result = await call(value)
            if gate.judges:
                gate.judge(mine, result)
        except BaseException as error:
            gate.end(mine, error)
            raise
        gate.end(mine, None)
        return result

    return limited
