"""The guards of a run: what blocks its loop, and thread stages that hold the interpreter lock. Nothing here is on an item's way.

``TOURNANT_GUARDS=0`` switches them off. Inline runs have none: there everything stands in everybody's way on purpose.
"""

from __future__ import annotations

import os
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from tournant.engine.pool_segment import PoolSegment
from tournant.guards import crowd, patrol
from tournant.guards.finding import Finding
from tournant.guards.gil import GilProbe, Scaling
from tournant.guards.loopwatch import Loopwatch

if TYPE_CHECKING:
    from tournant.engine.run import Run


class Guarding:
    """The guards of one run.

    Attributes:
        findings: what they have found so far.
        probe: how the thread stages scale, each by its name (fused ones by the first one's): see `GilProbe.scaling`.
    """

    def __init__(self, run: Run) -> None:
        self.on = not run.inline and os.environ.get("TOURNANT_GUARDS", "1") != "0"
        self.probe = GilProbe()
        self._run = run
        self._found: list[Finding] = []
        self._bound: dict[str, crowd.Lines] = {}
        self._segments: dict[str, PoolSegment] = {}
        self._watch: Loopwatch | None = None
        self._codes: dict[CodeType, str] = {}

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far."""
        blocks = list(self._watch.findings) if self._watch is not None else []
        return [*blocks, *self._found]

    def start(self) -> None:
        """Begin; on the run's loop."""
        if not self.on:
            return
        run = self._run
        for segment in run.segments:
            if isinstance(segment, PoolSegment):
                if segment.stages[0].on == "threads" and segment.limit > 1:
                    self._watch_threads(segment)
                continue
            for stage in segment.stages:
                code = getattr(_unwrapped(stage.fn), "__code__", None)
                if code is not None:
                    self._codes.setdefault(code, stage.name)
        self._watch = Loopwatch(
            on_finding=self._say, on_notice=self._note, stage_of=self._stage_of
        ).start()
        if self._segments:
            patrol.join(self)

    def _watch_threads(self, segment: PoolSegment) -> None:
        name = segment.stages[0].name
        self._segments[name] = segment
        self._bound[name] = crowd.Lines()
        self.probe.add(name, lambda: _threads_in(segment))

    def stop(self) -> None:
        """End, and add what was found to the run's warnings; on the run's loop."""
        patrol.leave(self)
        if self._watch is None:
            return
        self._watch.stop()
        self._run.warnings += [finding.text for finding in self.findings]

    # On the watchdog thread.

    def hurry(self) -> bool:
        """Look often until it is known how the thread stages scale."""
        return self.probe.hurry()

    def look(self, tick: patrol.Tick) -> None:
        """See how the thread stages get on."""
        self.probe.look(tick)
        if not tick.lock_waited:
            return
        for name, lines in list(self._bound.items()):
            threads = _threads_in(self._segments[name])
            if len(threads) < 2:
                continue
            lines.read(threads)
            scaling = self.probe.scaling(name)
            if scaling is not None and scaling.verdict == "gil-bound":
                del self._bound[name]
                self._gil_bound(name, scaling, lines)

    def _gil_bound(self, name: str, scaling: Scaling, lines: crowd.Lines) -> None:
        finding = crowd.gil_bound(
            scaling, lines.place(), name, f'Give stage {name!r} on="processes"'
        )
        self._found.append(finding)
        self._say(finding)

    def _stage_of(self, frames: list[FrameType], task: Any) -> str | None:
        """Name the stage whose callable stands in a stack of one of the run's own tasks."""
        if task is None or not self._run.owns(task):
            return None
        for frame in frames:
            name = self._codes.get(frame.f_code)
            if name is not None:
                return name
        for segment in self._run.segments:
            # A callable object, or one that is all native code.
            if task.get_name().startswith(f"tournant {segment.stages[0].name}"):
                return segment.stages[0].name
        return "source" if task.get_name() == "tournant source" else None

    def _say(self, finding: Finding) -> None:
        self._mark("blocked" if finding.kind == "blocked-loop" else "guard", finding)

    def _note(self, finding: Finding) -> None:
        self._mark("note", finding)

    def _mark(self, kind: str, finding: Finding) -> None:
        events = getattr(self._run, "events", None)
        if events is not None:
            events.mark(kind, finding.text, lasted=finding.seconds if kind != "guard" else 0.0)


def _threads_in(segment: PoolSegment) -> list[int]:
    """Return the native ids of the threads that work on a segment's chunks."""
    return [
        chunk.lane.thread.native_id
        for chunk in list(segment.chunks)
        if chunk.progress
        and not chunk.paused
        and chunk.lane is not None
        and chunk.lane.thread.native_id
    ]


def _unwrapped(fn: Any) -> Any:
    """Return the function behind partials and bound methods."""
    while hasattr(fn, "func"):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    if hasattr(fn, "__code__"):
        return fn
    return getattr(type(fn), "__call__", fn)  # noqa: B004
