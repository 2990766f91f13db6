"""From a run's counts to its report: bottleneck, utilisation, ceiling.

The stages of the pool share its cores, so together they are one resource whose demand is their summed busy time. A loop stage or a
blocking stage is a resource of its own with as many servers as it has permits. The utilisation law (Denning and Buzen, 1978) says
what throughput each resource allows: servers divided by seconds per input; the smallest is the ceiling. A stage's rate is a
resource too, in use while somebody waits for it.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.errors import LostItems
from tournant.report import BOTTLENECK, Report, RunSnapshot, StageReport

if TYPE_CHECKING:
    from tournant.engine.run import Run


def build_report(run: Run) -> Report:
    """Return the report of a run that has ended."""
    duration = (run.ended or perf_counter()) - run.began
    stages: list[StageReport] = []
    pooled: list[StageReport] = []
    single: list[StageReport] = []
    cores = run.pool.slots.count
    resources: list[tuple[float, float, str]] = []
    for segment in run.segments:
        mine = [stats.report(duration) for stats in segment.stats]
        stages += mine
        shares_cores = segment.on in ("threads", "processes") and not getattr(
            segment, "blocking", False
        )
        if not shares_cores:
            single += [stage for stage in mine if stage.on != "engine"]
            continue
        pooled += mine
        # Stages that are called one after the other in one hand-over have the same workers.
        if mine[0].limit < cores and duration > 0:
            resources.append(_together(mine, mine[0].limit, duration))
    if pooled and duration > 0:
        resources.append(_together(pooled, cores, duration))
    resources += [
        (s.busy / (s.limit * duration), s.busy / s.limit, s.name) for s in single if duration > 0
    ]
    resources += [(s.rate_share, s.rate_share * duration, s.name) for s in single if s.rate_share]
    if run.events.on:
        run.events.end(run.began + duration, cores, run.source.admitted)
    ended = run.done + run.failed + run.filtered
    report = Report(
        sourced=run.source.sourced,
        done=run.done,
        failed=run.failed,
        skipped=run.skipped,
        filtered=run.filtered,
        interrupted=run.source.admitted - ended + run.source.unused,
        outputs=run.outputs,
        failures=tuple(run.failures.items),
        stages=tuple(stages),
        duration=duration,
        cores=cores,
        warnings=tuple(run.warnings),
        events=run.events if run.events.on else None,
        findings=(*run.guarding.findings, *run.findings),
        **demands(resources, ended),
    )
    for segment in run.segments:
        report = segment.amend(report)
    return report


def _together(stages: list[StageReport], workers: int, duration: float) -> tuple[float, float, str]:
    """Return what stages that share some workers come to: see `demands`."""
    busy = sum(stage.busy for stage in stages)
    return busy / (workers * duration), busy / workers, max(stages, key=lambda s: s.busy).name


def demands(resources: list[tuple[float, float, str]], ended: int) -> dict[str, Any]:
    """Return what a report says of its busiest stage.

    Args:
        resources: of each the share of its capacity that was used, the seconds at full use that this comes to, and the stage's name.
        ended: inputs that ended.
    """
    if not resources or not ended:
        return {}
    utilisation, seconds, busiest = max(resources)
    # What stood idle for much of the run held nothing up, and what it would do at full use nobody has seen.
    held_up = utilisation >= BOTTLENECK and seconds > 0
    return {
        "busiest": busiest,
        "utilisation": min(1.0, utilisation),
        "bottleneck": busiest if held_up else None,
        "ceiling": ended / seconds if held_up else None,
    }


def snapshot(run: Run) -> RunSnapshot:
    """Return a run as it stands. May be called from any thread."""
    stages = tuple(
        stats.snapshot(segment.queued() if n == 0 else 0, segment.running(n))
        for segment in run.segments
        for n, stats in enumerate(segment.stats)
    )
    return RunSnapshot(
        (run.ended or perf_counter()) - run.began, run.total, run.source.sourced, run.done, run.failed, run.skipped,
        run.filtered, stages,
    )  # fmt: skip


def check_sum(run: Run, report: Report) -> None:
    """Raise `LostItems` if the inputs don't add up."""
    ended = report.done + report.failed + report.skipped + report.filtered
    # What a drained source had given in advance is interrupted too.
    stopped_early = run.halted or run.cancelled or report.interrupted == run.source.unused
    if ended + report.interrupted != report.sourced or (report.interrupted and not stopped_early):
        raise LostItems(
            f"{report.sourced} inputs went in, but {report.done} done + {report.failed} failed + {report.skipped} skipped + "
            f"{report.filtered} filtered + {report.interrupted} interrupted came out. This is a bug in Tournant: please "
            "report it with the pipeline's stages"
        )
