"""What must hold of the recording of every run, whatever became of it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import tournant as tn
from tournant.observe.recording import CANCELLED, FAILED, RETRIED, Recording

OUTCOMES = ("done", "failed", "skipped", "filtered", "interrupted")


def check_recording(report: tn.Report, *, unused: int = 0) -> Recording:
    """Compare a run's recording with its report.

    Args:
        report: the run's.
        unused: inputs that the source gave and the run never took in: they have no life to record.
    """
    recording = report.recording
    assert recording.lost == 0
    assert [(stage.name, stage.on) for stage in recording.stages] == [
        (stage.name, stage.on) for stage in report.stages
    ]
    check_times(recording)
    items: Counter[tuple[int, str]] = Counter()
    for one in recording.slices:
        items[one.stage, one.outcome] += one.items
    whole = not report.interrupted
    for number, stage in enumerate(report.stages):
        mine = {outcome: n for (where, outcome), n in items.items() if where == number}
        begun = sum(n for outcome, n in mine.items() if outcome != RETRIED)
        if whole or stage.on != "engine":
            assert begun == stage.items_in, (stage, mine)
        if whole:
            assert CANCELLED not in mine
        if whole and not stage.name.startswith("gather"):
            assert mine.get(FAILED, 0) == stage.failed, (stage, mine)
    outcomes = Counter(span.outcome for span in recording.inputs.values())
    expected = {name: getattr(report, name) for name in OUTCOMES}
    expected["interrupted"] -= unused
    assert outcomes == {name: n for name, n in expected.items() if n}
    return recording


def check_times(recording: Recording) -> None:
    """Everything lies within the run, and what one worker did one after the other."""
    for one in recording.slices:
        assert 0 <= one.began <= one.ended <= recording.duration
        assert one.waited >= 0
        assert set(one.inputs) <= set(recording.inputs)
        assert one.inputs or not one.items
        span = [recording.inputs[n] for n in one.inputs]
        # A batch is collected from its first input on.
        assert not span or min(s.began for s in span) <= one.began
    assert [one.began for one in recording.slices] == sorted(one.began for one in recording.slices)
    by_lane: dict[int, list[tuple[float, float]]] = {}
    for one in recording.slices:
        by_lane.setdefault(one.lane, []).append((one.began, one.ended))
    for lane, spans in by_lane.items():
        if recording.lanes[lane].kind in ("thread", "process"):
            assert all(a[1] <= b[0] for a, b in pairwise(sorted(spans))), recording.lanes[lane]
    for span in recording.inputs.values():
        assert 0 <= span.began <= span.ended <= recording.duration
    for counter in recording.counters:
        times = [when for when, _ in counter.samples]
        assert times == sorted(times)
        assert all(0 <= when <= recording.duration for when in times)
    assert [mark.at for mark in recording.marks] == sorted(mark.at for mark in recording.marks)
    assert all(m.at >= 0 and m.at + m.lasted <= recording.duration + 1e-9 for m in recording.marks)
