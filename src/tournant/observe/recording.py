"""What ran where and when, as plain data: the one form that the trace, the timeline, the chart and the summary read.

A run's ring buffers become a `Recording` when it has ended; the kitchen makes them of its cooks, and a cluster run adds up those of its
nodes. Times are seconds since the recording began.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

#: How a call ended.
OK, FAILED, RETRIED, CANCELLED = "ok", "failed", "retried", "cancelled"


class Lane(NamedTuple):
    """Where slices lie.

    Attributes:
        kind: ``"loop"`` (a stage's coroutines on the event loop; its slices overlap), ``"thread"``, ``"process"`` (slices never
            overlap) or ``"task"`` (one cook of the kitchen).
        name: what is shown, such as ``"process 2"`` or ``"ask"``.
        pid: the process that it belongs to, 0 if unknown.
        group: the node, or the part of a demonstration, that it belongs to; empty when there is only one.
    """

    kind: str
    name: str
    pid: int = 0
    group: str = ""


class Stage(NamedTuple):
    """A stage of the recording.

    Attributes:
        name: the stage's name.
        on: ``"loop"``, ``"threads"``, ``"processes"`` or ``"engine"``.
        computing: CPU seconds of its workers per second of their calls, 0 to 1: near 0 they wait, near 1 they compute. Stages that are
            called one after the other in one hand-over share one figure. ``None`` where it was not measured.
    """

    name: str
    on: str
    computing: float | None = None


class Slice(NamedTuple):
    """One call of a stage, or one chunk of calls that were handed to a worker together.

    Attributes:
        lane: index into `Recording.lanes`.
        stage: index into `Recording.stages`; -1 for what belongs to no stage.
        began: seconds.
        ended: seconds.
        inputs: numbers of the inputs that it worked for, keys of `Recording.inputs`.
        items: items in the call; a batch or a chunk has many.
        outcome: `OK`, `FAILED`, `RETRIED` or `CANCELLED`.
        waited: seconds for which it had been ready and waited for a slot or a limit before it began.
        label: what to show in place of the stage's name; empty for the stage's name.
    """

    lane: int
    stage: int
    began: float
    ended: float
    inputs: tuple[int, ...] = ()
    items: int = 1
    outcome: str = OK
    waited: float = 0.0
    label: str = ""


class InputSpan(NamedTuple):
    """The life of one input.

    Attributes:
        key: as the source named it, shortened.
        began: when it was taken from the source; seconds.
        ended: when its last descendant had ended; seconds.
        outcome: ``"done"``, ``"failed"``, ``"filtered"``, ``"skipped"`` or ``"interrupted"``.
    """

    key: str
    began: float
    ended: float
    outcome: str = "done"


class Counter(NamedTuple):
    """A quantity over time: a queue's depth, cores in use, a limit.

    Attributes:
        name: such as ``"queue: embed"`` or ``"cores"``.
        unit: such as ``"items"``, ``"cores"``, ``"1/s"``.
        samples: pairs of seconds and value; the value holds until the next sample.
        group: as of a lane.
    """

    name: str
    unit: str
    samples: tuple[tuple[float, float], ...]
    group: str = ""


class Mark(NamedTuple):
    """Something that happened at one moment, or held everything up for a while.

    Attributes:
        kind: ``"blocked"`` (the loop), ``"gc"``, ``"limit"``, ``"retry"``, ``"worker"`` (died or started), ``"guard"``, ``"note"``.
        at: seconds.
        text: one sentence.
        lane: index into `Recording.lanes`; -1 where it concerns all.
        lasted: seconds; 0 for a moment.
    """

    kind: str
    at: float
    text: str
    lane: int = -1
    lasted: float = 0.0


@dataclass(frozen=True)
class Recording:
    """One run as it went.

    Attributes:
        title: what ran.
        began: Unix time at which it began.
        duration: seconds.
        cores: cores that the CPU stages shared.
        stages: in the pipeline's order.
        lanes: in the order in which they are shown.
        slices: sorted by `Slice.began`.
        inputs: by number; those whose events have been overwritten may be missing.
        counters: queue depths, cores in use, limits.
        marks: sorted by `Mark.at`.
        lost: events that the ring buffers overwrote, oldest first; 0 when everything is here.
        summary: the lines of the run's report, if there is one.
    """

    title: str = "run"
    began: float = 0.0
    duration: float = 0.0
    cores: int = 1
    stages: tuple[Stage, ...] = ()
    lanes: tuple[Lane, ...] = ()
    slices: tuple[Slice, ...] = ()
    inputs: dict[int, InputSpan] = field(default_factory=dict)
    counters: tuple[Counter, ...] = ()
    marks: tuple[Mark, ...] = ()
    lost: int = 0
    summary: str = ""

    def save_trace(self, path: str | Path) -> Path:
        """Write Chrome's trace format (JSON), which opens in Perfetto and in `tournant trace`.

        Raises:
            OSError: the file can't be written.
        """
        from tournant.observe.trace import save_trace

        return save_trace(self, path)

    def save_timeline(self, path: str | Path) -> Path:
        """Write one HTML file that shows the recording and needs nothing else.

        Raises:
            OSError: the file can't be written.
        """
        from tournant.observe.timeline import save_timeline

        return save_timeline([self], path)
