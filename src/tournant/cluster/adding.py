"""Adding nodes up: the counts of their stages, their warnings, the report and the recording of the whole run."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tournant.engine.stats import StageStats
from tournant.engine.summary import demands
from tournant.observe.recording import Counter, InputSpan, Lane, Recording, Slice, Stage
from tournant.report import Report, StageReport, StageSnapshot

if TYPE_CHECKING:
    from tournant.cluster.messages import Measured


class _Gate:
    """What the nodes' gates came to, where `StageStats` looks for one."""

    concurrency: int | None = None

    def __init__(self, pressed: float, text: str) -> None:
        self.pressed = pressed
        self._text = text

    def describe(self, *, over: bool = False) -> str:
        """Return what the stage's rate and concurrency are now, as a line."""
        return self._text


class SummedStats(StageStats):
    """The counts of one stage over all nodes.

    Attributes:
        queued: items that wait in front of it on the nodes.
        pooled: it shares the cores of its node with other stages.
    """

    __slots__ = ("pooled", "queued")

    def __init__(self, name: str, on: str) -> None:
        super().__init__(name, on, 1)
        self.queued = 0
        self.pooled = False

    def add_up(self, nodes: Iterable[Measured], living: Iterable[Measured]) -> None:
        """Take in how the stage stands on each node; `living` are those that still work."""
        found = list(nodes)
        living = list(living) or found
        if not found:
            return
        reports = [one.report for one in found]
        for name in (
            "items_out", "failed", "retried", "busy", "wait_input", "wait_output", "wait_slot", "wait_limit",
        ):  # fmt: skip
            setattr(self, name, sum(getattr(report, name) for report in reports))
        self.on = reports[0].on
        self.started = sum(report.items_in for report in reports)
        running = sum(one.running for one in living)
        self.left = self.started - running
        self.limit = max(1, sum(one.report.limit for one in living))
        self.queued = sum(one.queued for one in living)
        self.pooled = found[0].pooled
        buckets: dict[int, int] = {}
        for one in found:
            for bucket, count in one.buckets.items():
                buckets[bucket] = buckets.get(bucket, 0) + count
        self._buckets = buckets
        texts = [one.report.limits for one in living if one.report.limits]
        if texts:
            text = texts[-1] if len(texts) == 1 else f"{texts[-1]} (on one of {len(texts)} nodes)"
            self.gate = _Gate(max(one.pressed for one in found), text)  # type: ignore[assignment]

    def snapshot(self, queued: int, running: int) -> StageSnapshot:
        """Return the stage as it stands, with what waits on the nodes."""
        return super().snapshot(queued + self.queued, running)


def add_warnings(said: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return the nodes' warnings, each once, with the nodes that gave it."""
    where: dict[str, list[str]] = {}
    for node, warnings in said:
        for warning in warnings:
            where.setdefault(warning, []).append(node)
    return [f"{warning} (on {', '.join(dict.fromkeys(nodes))})" for warning, nodes in where.items()]


def add_report(report: Report, stats: Sequence[SummedStats], cores: int) -> Report:
    """Return the driver's `report` with the nodes' cores, and the bottleneck where it was found anew.

    The cores of all nodes are one resource, each other stage of the nodes is another; see `tournant.engine.summary`.
    """
    names = {one.name for one in stats}
    pooled = {one.name for one in stats if one.pooled}
    duration, ended = report.duration, report.done + report.failed + report.filtered
    resources: list[tuple[float, float, str]] = []
    cpu = [stage for stage in report.stages if stage.name in pooled]
    if cpu and duration > 0:
        busy, largest = sum(s.busy for s in cpu), max(cpu, key=lambda s: s.busy)
        resources.append((busy / (cores * duration), busy / cores, largest.name))
    for stage in report.stages:
        if stage.name not in names or stage.name in pooled or stage.on == "engine" or not duration:
            continue
        resources.append(
            (stage.busy / (stage.limit * duration), stage.busy / stage.limit, stage.name)
        )
        if stage.rate_share:
            resources.append((stage.rate_share, stage.rate_share * duration, stage.name))
    there: tuple[StageReport, ...] = tuple(s for s in report.stages if s.name not in names)
    if any(stage.name == report.busiest for stage in there):
        share = report.utilisation
        resources.append((share, share * duration, str(report.busiest)))
    return replace(report, cores=cores, **demands(resources, ended))


class SummedEvents:
    """Stands in a report where a local run's buffers are: makes the recording of the whole, on first use.

    Args:
        own: the driver's buffers.
        nodes: of each node its name, the pickle of its recording, and the driver's numbers of its inputs.
    """

    def __init__(self, own: Any, nodes: Sequence[tuple[str, bytes, dict[int, int]]]) -> None:
        self._own = own
        self._nodes = nodes
        self._recording: Recording | None = None

    def recording(self, summary: str) -> Recording:
        """Return the recording of the driver and all nodes."""
        if self._recording is None:
            parts: list[tuple[str, Recording, dict[int, int] | None]] = [
                ("driver", self._own.recording(summary), None)
            ]
            parts += [(name, pickle.loads(data), numbers) for name, data, numbers in self._nodes]
            self._recording = add_recordings(parts, summary=summary)
        return self._recording


def add_recordings(
    parts: Sequence[tuple[str, Recording, dict[int, int] | None]],
    *,
    title: str = "",
    summary: str = "",
) -> Recording:
    """Return several recordings as one, on one clock, with a group of lanes for each.

    Args:
        parts: of each its group (the node's name), the recording, and the number that each of its inputs has in the
            whole; ``None`` where the numbers are the same already.
        title: of the whole; by default that of the first.
        summary: the lines of the whole run's report; by default those of the first.

    Machines' clocks differ by what their synchronisation leaves, usually below a few milliseconds; slices of different groups are
    no more exact than that against each other.
    """
    if not parts:
        return Recording(title=title or "run", summary=summary)
    began = min(recording.began for _, recording, _ in parts)
    stages: dict[tuple[str, str], int] = {}
    computing: dict[int, list[float]] = {}
    lanes: list[Lane] = []
    slices: list[Slice] = []
    inputs: dict[int, InputSpan] = {}
    counters: list[Counter] = []
    marks: list[Any] = []
    end = 0.0
    for group, recording, numbers in parts:
        late = recording.began - began
        end = max(end, late + recording.duration)
        stage_at = [stages.setdefault((s.name, s.on), len(stages)) for s in recording.stages]
        for at, stage in zip(stage_at, recording.stages, strict=True):
            if stage.computing is not None:
                computing.setdefault(at, []).append(stage.computing)
        first = len(lanes)
        lanes += [lane._replace(group=lane.group or group) for lane in recording.lanes]

        def number(own: int, numbers: dict[int, int] | None = numbers) -> int | None:
            return own if numbers is None else numbers.get(own)

        for piece in recording.slices:
            mine = tuple(n for own in piece.inputs if (n := number(own)) is not None)
            slices.append(
                piece._replace(
                    lane=piece.lane + first,
                    stage=stage_at[piece.stage] if piece.stage >= 0 else -1,
                    began=piece.began + late,
                    ended=piece.ended + late,
                    inputs=mine,
                )
            )
        for own, span in recording.inputs.items():
            known = number(own)
            if known is None:
                continue
            moved = span._replace(began=span.began + late, ended=span.ended + late)
            before = inputs.get(known)
            if before is not None:
                # The driver's span begins earlier and has the outcome that counts.
                moved = before._replace(
                    began=min(before.began, moved.began), ended=max(before.ended, moved.ended)
                )
            inputs[known] = moved
        counters += [
            counter._replace(
                group=counter.group or group,
                samples=tuple((at + late, value) for at, value in counter.samples),
            )
            for counter in recording.counters
        ]
        marks += [
            mark._replace(at=mark.at + late, lane=mark.lane + first if mark.lane >= 0 else -1)
            for mark in recording.marks
        ]
    head = parts[0][1]
    return replace(
        head,
        title=title or head.title,
        began=began,
        duration=end,
        cores=sum(recording.cores for _, recording, _ in parts[1:]) or head.cores,
        stages=tuple(
            Stage(name, on, fmean(computing[n]) if n in computing else None)
            for (name, on), n in stages.items()
        ),
        lanes=tuple(lanes),
        slices=tuple(sorted(slices, key=lambda piece: piece.began)),
        inputs=inputs,
        counters=tuple(counters),
        marks=tuple(sorted(marks, key=lambda mark: mark.at)),
        lost=sum(recording.lost for _, recording, _ in parts),
        summary=summary or head.summary,
    )
