"""Tournant: pipelines for AI work that wait and think at the same time.

The public names, loaded on first use, so that ``import tournant`` costs next to nothing and worker processes start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tournant._version import __version__

if TYPE_CHECKING:
    from tournant import cluster, limits, llm, streams
    from tournant.background import BackgroundRun
    from tournant.cache import Cache
    from tournant.engine.barriers import Group
    from tournant.engine.strays import detach
    from tournant.errors import (
        BatchMismatch,
        ForgottenAwait,
        InvalidPipeline,
        LedgerError,
        LostItems,
        LostWork,
        NotPicklable,
        PipelineFailed,
        PoolClosed,
        RunClosed,
        SourceFailed,
        StageExit,
        StageTimeout,
        Throttled,
        TooManyFailures,
        TournantError,
        WorkerDied,
        WouldDeadlock,
    )
    from tournant.guards.finding import Finding
    from tournant.guards.watch import watch
    from tournant.handle import RunHandle, Watched
    from tournant.ledger import Ledger
    from tournant.pipeline import Pipeline
    from tournant.policies import PerWorker, Retry
    from tournant.pool.lanes import shutdown
    from tournant.report import Failure, Report, RunSnapshot, StageReport, StageSnapshot
    from tournant.shortcuts import arun, for_each, map, run

_HOMES = {
    "tournant.background": ("BackgroundRun",),
    "tournant.cache": ("Cache",),
    "tournant.engine.barriers": ("Group",),
    "tournant.engine.strays": ("detach",),
    "tournant.errors": (
        "BatchMismatch", "ForgottenAwait", "InvalidPipeline", "LedgerError", "LostItems", "LostWork",
        "NotPicklable", "PipelineFailed", "PoolClosed", "RunClosed", "SourceFailed", "StageExit", "StageTimeout", "Throttled", "TooManyFailures",
        "TournantError", "WorkerDied", "WouldDeadlock",
    ),
    "tournant.guards.finding": ("Finding",),
    "tournant.guards.watch": ("watch",),
    "tournant.handle": ("RunHandle", "Watched"),
    "tournant.ledger": ("Ledger",),
    "tournant.pipeline": ("Pipeline",),
    "tournant.policies": ("PerWorker", "Retry"),
    "tournant.pool.lanes": ("shutdown",),
    "tournant.report": ("Failure", "Report", "RunSnapshot", "StageReport", "StageSnapshot"),
    "tournant.shortcuts": ("arun", "for_each", "map", "run"),
}  # fmt: skip
_ROOMS = ("cluster", "limits", "llm", "streams")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BackgroundRun",
    "BatchMismatch",
    "Cache",
    "Failure",
    "Finding",
    "ForgottenAwait",
    "Group",
    "InvalidPipeline",
    "Ledger",
    "LedgerError",
    "LostItems",
    "LostWork",
    "NotPicklable",
    "PerWorker",
    "Pipeline",
    "PipelineFailed",
    "PoolClosed",
    "Report",
    "Retry",
    "RunClosed",
    "RunHandle",
    "RunSnapshot",
    "SourceFailed",
    "StageExit",
    "StageReport",
    "StageSnapshot",
    "StageTimeout",
    "Throttled",
    "TooManyFailures",
    "TournantError",
    "Watched",
    "WorkerDied",
    "WouldDeadlock",
    "__version__",
    "arun",
    "cluster",
    "detach",
    "for_each",
    "limits",
    "llm",
    "map",
    "run",
    "shutdown",
    "streams",
    "watch",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _ROOMS:
        return importlib.import_module(f"tournant.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF, *_ROOMS])
