"""How a blocking segment keeps to its stage's limit: the loop asks at the gate before it hands a call to a thread.

One call a chunk, and one chunk at a time waits at the gate. The admission travels to the thread with the value, so that the
callable finds it with `tournant.limits.current`, and ends there, with the call. Where the thread has been left behind, or
never got to it, the loop ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.chunk import Chunk
from tournant.engine.gate import Gate
from tournant.engine.segment import Segment
from tournant.limits.admission import Admission
from tournant.limits.current import admission
from tournant.pool.leftovers import FINE, check_result
from tournant.pool.steps import many
from tournant.stages import callable_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from tournant.engine.run import Run
    from tournant.stages import Stage


class Ticket:
    """A value on its way to a thread, with the leave to be called with it.

    Attributes:
        value: what the callable takes.
        call: its admission.
        problem: what telling its cost raised; the attempt fails with it.
        begun: the thread has got to it.
    """

    __slots__ = ("begun", "call", "problem", "value")

    def __init__(self, value: Any, call: Admission | None, problem: Exception | None) -> None:
        self.value = value
        self.call = call
        self.problem = problem
        self.begun = False

    def __len__(self) -> int:
        """Return the rows of a batch: so many results it has to give."""
        return len(self.value)

    def end(self, error: BaseException | None) -> None:
        """End the call from the loop, if the thread has not; what never began is given back."""
        if self.call is None:
            return
        if self.begun:
            self.call.close(error)
        else:
            self.call.release()


class InThread:
    """A stage's callable as threads call it: with a `Ticket` in place of the value."""

    def __init__(self, fn: Callable[..., Any], gate: Gate, *, flat: bool) -> None:
        self.__name__ = callable_name(fn)
        self._fn = fn
        self._gate = gate
        self._flat = flat

    def __call__(self, ticket: Ticket, *state: Any) -> Any:
        """Call the stage's callable and end the admission with it; each call has a context of its own."""
        call, gate = ticket.call, self._gate
        if ticket.problem is not None:
            raise ticket.problem
        assert call is not None
        ticket.begun = True
        admission.set(call)
        try:
            result = self._fn(ticket.value, *state)
            if self._flat:
                if type(result) not in FINE:
                    check_result(result)
                return self._children(iter(many(result)), call)
            if gate.judges:
                gate.judge(call, result)
        except BaseException as error:
            call.close(error)
            raise
        call.close()
        return result

    def _children(self, children: Iterator[Any], call: Admission) -> Iterator[Any]:
        """Yield the children; the time in which nobody asks for the next is not the call's."""
        gate = self._gate
        try:
            for child in children:
                if gate.judges:
                    gate.judge(call, child)
                before = gate.clock.now()
                yield child
                call.excuse(gate.clock.now() - before)
        except GeneratorExit:
            call.close(asyncio.CancelledError())
            raise
        except BaseException as error:
            call.close(error)
            raise
        finally:
            if hasattr(children, "close"):
                children.close()
        call.close()


class Admissions(Segment):
    """The part of a pool segment that knows of limits.

    Attributes:
        gate: what admits the calls of a blocking stage with a limit; otherwise ``None``.
        next: the chunk that waits at the gate, or that has been admitted and not gone yet.
    """

    def __init__(self, run: Run, stages: list[Stage], limits: list[int]) -> None:
        super().__init__(run, stages, limits)
        self.gate = Gate(run, stages[0], self.stats[0]) if stages[0].limited else None
        self.next: Chunk | None = None
        self._may_go = False

    def _take(self) -> Chunk:
        raise NotImplementedError

    def callable_of(self, stage: Stage) -> Any:
        """Return what threads call."""
        if self.gate is None:
            return stage.fn
        assert stage.fn is not None
        return InThread(stage.fn, self.gate, flat=stage.kind == "flat_map")

    def admitted(self) -> bool:
        """Tell whether the next chunk may go; if not, it is asked for, and the run told when it may."""
        gate = self.gate
        if gate is None:
            return True
        if self.next is None:
            self.next = chunk = self._take()
            value = chunk.values[0]
            try:
                call = gate.call(value)
            except Exception as error:
                chunk.ticket = Ticket(value, None, error)
                self._may_go = True
            else:
                chunk.ticket = Ticket(value, call, None)
                self._may_go = call.try_enter()
                if self._may_go:
                    gate.entered()
                if not self._may_go:
                    chunk.waited = -perf_counter()
                    self.run.spawn(self._ask(gate, call), f"tournant {self.stages[0].name} gate")
            chunk.values = [chunk.ticket]
        return self._may_go

    async def _ask(self, gate: Gate, call: Admission) -> None:
        if await gate.wait(call):
            if self.run.halted:
                call.release()
                return
            self._may_go = True
            self.run.schedule()

    def take_admitted(self) -> Chunk:
        """Return the chunk that may go."""
        if self.next is None:
            return self._take()
        chunk, self.next, self._may_go = self.next, None, False
        if chunk.waited < 0:
            chunk.waited += perf_counter()
        return chunk

    def drop_next(self) -> None:
        """Give up what waits at the gate, and give back what was admitted and has not gone: the run has been halted."""
        if self.gate is not None:
            self.gate.send_away()
        chunk, self.next = self.next, None
        if chunk is not None and self._may_go:
            self._may_go = False
            end_admission(chunk)


def end_admission(chunk: Chunk, error: BaseException | None = None) -> None:
    """End a chunk's admission on the loop, if its thread has not: with `error`, or as a call that was given up."""
    ticket = chunk.ticket
    if ticket is not None:
        ticket.end(error if error is not None else asyncio.CancelledError())
