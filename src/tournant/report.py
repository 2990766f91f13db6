"""What a run tells you: a `RunSnapshot` while it runs, a `Report` afterwards. Plain frozen data."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tournant.errors import short

if TYPE_CHECKING:
    from pathlib import Path

    from tournant.guards.finding import Finding
    from tournant.observe.events import Events
    from tournant.observe.recording import Recording

#: The share of its capacity that a stage has to use to be called the bottleneck.
BOTTLENECK = 0.7
_NAME_AT_MOST = 40


@dataclass(frozen=True, slots=True)
class Failure:
    """One item that failed for good.

    Attributes:
        stage: the stage's name.
        key: the key of the input that the item descends from.
        error: the exception of the last attempt.
        attempts: how often it was tried.
    """

    stage: str
    key: Any
    error: Exception
    attempts: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data; the exception as its class name, message and traceback text."""
        return {
            "stage": self.stage,
            "key": self.key if isinstance(self.key, (str, int)) else str(self.key),
            "error": type(self.error).__name__,
            "message": str(self.error),
            "attempts": self.attempts,
            "traceback": "".join(traceback.format_exception(self.error)),
        }


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """One stage at one moment. Seconds are summed over the stage's workers.

    Attributes:
        name: the stage's name.
        on: ``"loop"``, ``"threads"``, ``"processes"`` or ``"engine"`` (barriers and batchers).
        items_in: items (batches count as their items) that the stage has begun.
        items_out: items that it passed on or, for a sink, finished.
        failed: items that failed here for good.
        retried: attempts beyond each item's first.
        queued: items waiting in front of it now.
        running: items that it works on now.
        busy: seconds spent inside the stage's callable.
        limit: how many items (or batches) it may work on at once; with an `Adaptive` as it has it now.
        limits: what its rate and its adaptive concurrency are now, and why, as a line; empty where it has none.
    """

    name: str
    on: str
    items_in: int
    items_out: int
    failed: int
    retried: int
    queued: int
    running: int
    busy: float
    limit: int = 1
    limits: str = ""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run at one moment: what a progress display needs.

    Attributes:
        elapsed: seconds since the run began.
        total: the source's length where it is known.
        sourced: inputs taken from the source so far.
        done: inputs whose every descendant has come through.
        failed: inputs with a failed descendant.
        skipped: inputs that the ledger knew as done.
        filtered: inputs that `filter` dropped.
        stages: one `StageSnapshot` per stage, in order.
    """

    elapsed: float
    total: int | None
    sourced: int
    done: int
    failed: int
    skipped: int
    filtered: int
    stages: tuple[StageSnapshot, ...] = ()


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did. Seconds are summed over its workers.

    Attributes:
        name: the stage's name.
        on: where it ran.
        items_in: items that it began (a batch counts as its items).
        items_out: items that it passed on or, for a sink, finished.
        failed: items that failed here for good.
        retried: attempts beyond each item's first.
        busy: seconds inside the callable. On the loop that includes what the call waited for.
        wait_input: seconds in which the stage had a free worker and nothing to do.
        wait_output: seconds in which finished items waited for room in the next channel.
        wait_slot: seconds in which there was work and room but every core was taken.
        wait_limit: seconds in which items waited for the stage's concurrency, its rate, or a retry.
        p50: median seconds per call; for `map_batches` per batch.
        p90: 90th percentile.
        p99: 99th percentile.
        limit: how many calls may run at once; with an `Adaptive`, what it came to.
        occupancy: ``busy / (limit * duration)``, the share of its capacity that it used.
        rate_share: the share of the run in which calls waited for the stage's rate, 0 to 1.
        limits: what its rate and its adaptive concurrency came to, and why, as a line; empty where it has none.
    """

    name: str
    on: str
    items_in: int
    items_out: int
    failed: int
    retried: int
    busy: float
    wait_input: float
    wait_output: float
    wait_slot: float
    wait_limit: float
    p50: float
    p90: float
    p99: float
    limit: int
    occupancy: float
    rate_share: float = 0.0
    limits: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did with every input. ``sourced`` is always the sum of the five outcomes.

    Attributes:
        sourced: inputs taken from the source.
        done: inputs whose every descendant came through the last stage.
        failed: inputs with at least one failed descendant.
        skipped: inputs that the ledger knew as done and unchanged.
        filtered: inputs that `filter` dropped entirely.
        interrupted: inputs not finished when the run was stopped.
        outputs: items that came out of the last stage.
        failures: each failed item, in the order in which they failed.
        stages: one `StageReport` per stage.
        duration: seconds from start to end.
        cores: the slots of the pool that the run's CPU stages shared.
        busiest: the stage with the highest occupancy, of its concurrency or its rate, or ``None`` when nothing ran.
        utilisation: the share of the busiest stage's capacity that was used, 0 to 1; where CPU stages
            share the cores this is the share of all cores, and where it is a rate, the share of the run in which calls
            waited for it.
        bottleneck: the busiest stage where it used at least 70 % of its capacity; otherwise ``None``.
        ceiling: inputs per second that the measured demands allow at full use of the bottleneck, by the utilisation law
            (Denning and Buzen, 1978); ``None`` without a bottleneck.
        warnings: what looked wrong, each with its mend.
        events: the buffers that `recording` is made from; ``None`` where ``TOURNANT_EVENTS=0`` has switched them off.
        findings: what the guards found, each with file, line and stage; their sentences are among the warnings.
    """

    sourced: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    filtered: int = 0
    interrupted: int = 0
    outputs: int = 0
    failures: tuple[Failure, ...] = ()
    stages: tuple[StageReport, ...] = ()
    duration: float = 0.0
    cores: int = 1
    busiest: str | None = None
    utilisation: float = 0.0
    bottleneck: str | None = None
    ceiling: float | None = None
    warnings: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    events: Events | None = field(default=None, repr=False, compare=False)

    @property
    def recording(self) -> Recording:
        """What ran where and when: see `tournant.observe.recording`. Made on first use.

        It goes back as far as the run's buffers reach (`tournant.observe.events`), and is empty where they were switched off.
        """
        if self.events is None:
            from tournant.observe.recording import Recording

            return Recording(duration=self.duration, cores=self.cores, summary=str(self))
        return self.events.recording(str(self))

    def save_trace(self, path: str | Path) -> Path:
        """Write what ran where and when in Chrome's trace format, which opens in Perfetto and in `tournant trace`.

        Raises:
            OSError: the file can't be written.
        """
        return self.recording.save_trace(path)

    def save_timeline(self, path: str | Path) -> Path:
        """Write one HTML file that shows what ran where and when, and needs nothing else.

        Raises:
            OSError: the file can't be written.
        """
        return self.recording.save_timeline(path)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "events"}
        plain["failures"] = [failure.as_dict() for failure in self.failures]
        plain["stages"] = [asdict(stage) for stage in self.stages]
        plain["warnings"] = list(self.warnings)
        plain["findings"] = [finding.as_dict() for finding in self.findings]
        return plain

    def __str__(self) -> str:
        """Return a table that a person reads, with the failures and warnings below it."""
        head = (
            f"{self.sourced:,} in: {self.done:,} done, {self.failed:,} failed, {self.skipped:,} skipped, "
            f"{self.filtered:,} filtered, {self.interrupted:,} interrupted; {self.outputs:,} out "
            f"in {_seconds(self.duration)}"
        )
        rows = [
            ("stage", "on", "in", "out", "failed", "retried", "busy", "no input", "no room", "no slot",
             "at limit", "p50", "p99", "occupied")
        ]  # fmt: skip
        rows += [
            (
                labelled(stage.name),
                stage.on,
                f"{stage.items_in:,}",
                f"{stage.items_out:,}",
                f"{stage.failed:,}",
                f"{stage.retried:,}",
                _seconds(stage.busy),
                _seconds(stage.wait_input),
                _seconds(stage.wait_output),
                _seconds(stage.wait_slot),
                _seconds(stage.wait_limit),
                _seconds(stage.p50),
                _seconds(stage.p99),
                f"{stage.occupancy:.0%}",
            )
            for stage in self.stages
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [head]
        for row in rows:
            cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines.append("  " + "  ".join(cells).rstrip())
        if self.bottleneck is not None:
            ceiling = f", ceiling {paced(self.ceiling)}" if self.ceiling else ""
            lines.append(
                f"bottleneck: {labelled(self.bottleneck)} at {self.utilisation:.0%}{ceiling}"
            )
        elif self.busiest is not None:
            lines.append(
                f"busiest: {labelled(self.busiest)} at {self.utilisation:.0%} of its capacity"
            )
        for stage in self.stages:
            if stage.limits:
                much = "mostly " if stage.rate_share >= 0.5 else ""
                name = labelled(stage.name)
                waited = f"stage {name} waited {much}for its rate {stage.rate_share:.0%} of the run"
                lines.append(f"{waited if stage.rate_share else f'stage {name}'}: {stage.limits}")
        shown = self.failures[:10]
        lines += [
            f"failed: {short(f.key)} in {labelled(f.stage)} after {f.attempts} attempt(s): "
            f"{type(f.error).__name__}: {short(str(f.error), 200)}"
            for f in shown
        ]
        if len(self.failures) > len(shown):
            lines.append(
                f"... and {len(self.failures) - len(shown):,} more failures in report.failures"
            )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def paced(rate: float) -> str:
    """Return inputs per second as people write them: ``104.2 inputs/s``, ``12.0 inputs/h``."""
    for seconds, unit in ((1, "s"), (60, "min")):
        if rate * seconds >= 1:
            return f"{rate * seconds:,.1f} inputs/{unit}"
    return f"{rate * 3600:,.1f} inputs/h"


def labelled(name: str) -> str:
    """Return a name as a table or a sentence can hold it: at most 40 letters."""
    if len(name) <= _NAME_AT_MOST:
        return name
    return f"{name[: _NAME_AT_MOST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _seconds(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.1f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.1f} ms"
    return f"{value * 1e6:.0f} us"
